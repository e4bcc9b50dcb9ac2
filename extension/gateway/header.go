package gateway

import (
	"encoding/base64"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/arpc-go/arpc"
)

const (
	metaPrefix = "Arpc-Meta-"
	binSuffix  = "-Bin" // of headers whose value is base64

	maxKey      = 255
	maxMetadata = 65535
	pairExtra   = 3 // bytes that a pair costs besides key and value
)

// requestMetadata returns what goes with the call, and the status if that cannot be.
func (g *Gateway) requestMetadata(r *http.Request) (arpc.Metadata, int, error) {
	var md arpc.Metadata
	size := 0
	set := func(key, value string) bool {
		if md == nil {
			md = arpc.Metadata{}
		}
		md[key] = value
		size += pairExtra + len(key) + len(value)
		return len(key) <= maxKey && size <= maxMetadata
	}
	for name, values := range r.Header {
		key, ok := strings.CutPrefix(name, metaPrefix)
		if !ok || key == "" {
			continue
		}
		value := strings.Join(values, ", ")
		if k, ok := strings.CutSuffix(key, binSuffix); ok && k != "" {
			b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return nil, http.StatusBadRequest, invalid("the header " + name + " is not base64")
			}
			key, value = k, string(b)
		}
		if !set(strings.ToLower(key), value) {
			return nil, http.StatusRequestHeaderFieldsTooLarge, errMetadata
		}
	}
	if a := r.Header.Get("Authorization"); a != "" && !set("authorization", a) {
		return nil, http.StatusRequestHeaderFieldsTooLarge, errMetadata
	}
	if f := g.config.metadata; f != nil {
		for k, v := range f(r) {
			if !set(k, v) {
				return nil, http.StatusRequestHeaderFieldsTooLarge, errMetadata
			}
		}
	}
	return md, 0, nil
}

// putMetadata sets the headers for the metadata of an answer. Keys that no header can have are left out.
func (g *Gateway) putMetadata(h http.Header, r *http.Request, md arpc.Metadata) {
	if len(md) == 0 {
		return
	}
	names := make([]string, 0, len(md))
	for key, value := range md {
		if !isToken(key) {
			continue
		}
		name := textproto.CanonicalMIMEHeaderKey(metaPrefix + key)
		if strings.HasSuffix(name, binSuffix) || !isText(value) {
			name += binSuffix
			value = base64.StdEncoding.EncodeToString([]byte(value))
		}
		h[name] = []string{value}
		names = append(names, name)
	}
	if len(names) > 0 && h.Get("Access-Control-Allow-Origin") != "" {
		slices.Sort(names)
		h.Set("Access-Control-Expose-Headers", strings.Join(names, ", "))
	}
}

// isToken reports whether a key can be part of a header's name.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// isText reports whether a value arrives as it is in a header.
func isText(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s == strings.TrimSpace(s)
}

func (g *Gateway) hasCORS() bool { return g.config.anyOrigin || len(g.config.origins) > 0 }

// cors deals with requests of pages. It returns false when the request is answered.
func (g *Gateway) cors(w http.ResponseWriter, r *http.Request, get bool) bool {
	h := w.Header()
	origin := r.Header.Get("Origin")
	if len(g.config.origins) > 0 && !g.config.anyOrigin {
		h.Add("Vary", "Origin")
	}
	allowed := origin != "" && (g.config.anyOrigin || g.config.origins[strings.ToLower(origin)])
	preflight := r.Method == http.MethodOptions && origin != "" && r.Header.Get("Access-Control-Request-Method") != ""
	if !allowed {
		if g.config.anyOrigin && !preflight { // no page, or one that does not say whose it is
			return true
		}
		if preflight && g.hasCORS() || g.config.sameSite.Check(r) != nil {
			fail(w, http.StatusForbidden, errCrossOrigin)
			return false
		}
		return true
	}
	if g.config.anyOrigin {
		h.Set("Access-Control-Allow-Origin", "*")
	} else {
		h.Set("Access-Control-Allow-Origin", origin)
	}
	if !preflight {
		return true
	}
	h.Add("Vary", "Access-Control-Request-Headers")
	methods := http.MethodPost
	if get {
		methods = "GET, POST"
	}
	h.Set("Access-Control-Allow-Methods", methods)
	var headers []string
	for name := range strings.SplitSeq(strings.Join(r.Header["Access-Control-Request-Headers"], ","), ",") {
		name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
		switch name {
		case "Content-Type", "Authorization", "Arpc-Timeout", "Connect-Timeout-Ms", "Connect-Protocol-Version":
			headers = append(headers, name)
		default:
			if strings.HasPrefix(name, metaPrefix) && isToken(name) {
				headers = append(headers, name)
			}
		}
	}
	if len(headers) > 0 {
		h.Set("Access-Control-Allow-Headers", strings.Join(headers, ", "))
	}
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return false
}
