package micro

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/arpc-go/arpc"
)

// A Node is one provider of one service.
type Node struct {
	// Service is the name that clients ask for. Version, Group and Protocol tell its providers apart, see Want; they may be empty.
	Service, Version, Group, Protocol string
	// ID tells the node from others with the same four above. It survives a restart of the provider at the same place.
	ID string
	// Addr is what clients dial, "host:port" unless their dialers take something else.
	Addr string
	// Weight is the node's share of the calls under balancers that look at it; 0 is 1. To get no calls, deregister.
	Weight int
	// Meta is what else is known of the node, such as its "zone". Nodes are values that everybody shares: it must not be changed.
	Meta map[string]string
}

const (
	// maxNode is the longest value of a node in a registry.
	maxNode   = 64 << 10
	maxWeight = 1_000_000
	// weightKey is where a weight stands in a value. Others put everything into the metadata too.
	weightKey = "weight"
)

// Key identifies the node within a registry: two Nodes with the same key are states of one. It is not for people; see Path.
func (n Node) Key() string {
	return n.Service + "\x00" + n.Version + "\x00" + n.Group + "\x00" + n.Protocol + "\x00" + n.ID
}

// Check returns an *arpc.Error with CodeInvalidArgument unless the node can be published: it needs a service, an address and an
// ID that is a path element, text in UTF-8, a weight between 0 and 1,000,000, no metadata "weight", and at most 64 KiB in all.
func (n Node) Check() error {
	_, reserved := n.Meta[weightKey]
	switch {
	case n.Service == "" || n.Addr == "":
		return invalid("a node needs a service and an address")
	case n.ID == "" || n.ID == "." || n.ID == ".." || strings.ContainsFunc(n.ID, func(r rune) bool { return r == '/' || r < ' ' || r == 0x7f }):
		return invalid("the ID %q is no path element", n.ID)
	case !n.valid():
		return invalid("text that is not UTF-8")
	case strings.Contains(n.Service+n.Version+n.Group+n.Protocol, "\x00"):
		return invalid("a NUL in what identifies a node")
	case n.Weight < 0 || n.Weight > maxWeight:
		return invalid("a weight of %d", n.Weight)
	case reserved:
		return invalid("the metadata %q is the field Weight", weightKey)
	}
	value, err := n.MarshalValue()
	if size := len(value) + len(n.Path("")); err == nil && size > maxNode {
		err = invalid("a node of %d bytes; %d are allowed", size, maxNode)
	}
	return err
}

func invalid(format string, args ...any) error {
	return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "micro: " + fmt.Sprintf(format, args...)}
}

// valid reports whether all text is UTF-8, as JSON would change what is not.
func (n Node) valid() bool {
	for key, value := range n.Meta {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return false
		}
	}
	return !slices.ContainsFunc([]string{n.Service, n.Version, n.Group, n.Protocol, n.ID, n.Addr}, func(s string) bool { return !utf8.ValidString(s) })
}

// provider is the role of those who are called, consumer that of those who call.
const (
	provider     = 1
	providerName = "SRT_Provider"
)

// dir is the path element of all nodes of a service with the same version, group and protocol.
func (n Node) dir() string {
	return url.QueryEscape(url.Values{
		"group": {n.Group}, "protocol": {n.Protocol}, "role": {providerName}, "service": {n.Service}, "version": {n.Version},
	}.Encode())
}

// Dir is the directory of the node in stores with paths: root, and what the node is a provider of. It is that of qsocket (getty).
func (n Node) Dir(root string) string { return strings.TrimSuffix(root, "/") + "/" + n.dir() }

// Path is the key of the node in such stores: its Dir and its ID.
func (n Node) Path(root string) string { return n.Dir(root) + "/" + n.ID }

// ParseDir is the reverse of Dir: a Node with Service, Version, Group and Protocol. ok is false for what is not below root, and
// for directories of consumers; a path with more elements than a directory has is not one.
func ParseDir(root, dir string) (n Node, ok bool) {
	name, ok := strings.CutPrefix(dir, strings.TrimSuffix(root, "/")+"/")
	if !ok || strings.Contains(name, "/") {
		return Node{}, false
	}
	query, err := url.QueryUnescape(name)
	if err != nil {
		return Node{}, false
	}
	v, err := url.ParseQuery(query)
	if err != nil || v.Get("role") != providerName || v.Get("service") == "" {
		return Node{}, false
	}
	return Node{Service: v.Get("service"), Version: v.Get("version"), Group: v.Get("group"), Protocol: v.Get("protocol")}, true
}

// ParsePath is the reverse of Path: what a Node is identified by.
func ParsePath(root, path string) (n Node, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 || i == len(path)-1 {
		return Node{}, false
	}
	n, ok = ParseDir(root, path[:i])
	n.ID = path[i+1:]
	return n, ok
}

// value is a node as qsocket writes it.
type value struct {
	Attr struct {
		Group, Service, Protocol, Version string
		Role                              int
	}
	Nodes []valueNode
}

type valueNode struct {
	ID, Address string
	Port        int32
	Metadata    map[string]string `json:",omitempty"`
}

// MarshalValue returns the node as stores keep it: JSON, as qsocket (getty) writes it, with the weight among the metadata.
func (n Node) MarshalValue() ([]byte, error) {
	var v value
	v.Attr.Group, v.Attr.Service, v.Attr.Protocol, v.Attr.Version, v.Attr.Role = n.Group, n.Service, n.Protocol, n.Version, provider
	one := valueNode{ID: n.ID, Address: n.Addr, Metadata: n.Meta}
	if host, port, err := net.SplitHostPort(n.Addr); err == nil {
		if p, err := strconv.ParseUint(port, 10, 16); err == nil && p > 0 {
			one.Address, one.Port = host, int32(p)
		}
	}
	if n.Weight > 0 {
		if one.Metadata = maps.Clone(n.Meta); one.Metadata == nil {
			one.Metadata = map[string]string{}
		}
		one.Metadata[weightKey] = strconv.Itoa(n.Weight)
	}
	v.Nodes = []valueNode{one}
	return json.Marshal(v)
}

// UnmarshalValue is the reverse of MarshalValue. Values come from others: what is not one node of a provider, or longer than 64 KiB,
// is an error, and so is a weight that is not 1 to 1,000,000.
func UnmarshalValue(data []byte) (Node, error) {
	if len(data) > maxNode {
		return Node{}, invalid("a value of %d bytes", len(data))
	}
	var v value
	if err := json.Unmarshal(data, &v); err != nil {
		return Node{}, invalid("a value that is no JSON of a node: %v", err)
	}
	if v.Attr.Role != provider || len(v.Nodes) != 1 || v.Nodes[0].Port < 0 || v.Nodes[0].Port > 65535 {
		return Node{}, invalid("a value that is not one provider")
	}
	one := v.Nodes[0]
	n := Node{
		Service: v.Attr.Service, Version: v.Attr.Version, Group: v.Attr.Group, Protocol: v.Attr.Protocol,
		ID: one.ID, Addr: one.Address, Meta: one.Metadata,
	}
	if one.Port > 0 {
		n.Addr = net.JoinHostPort(one.Address, strconv.Itoa(int(one.Port)))
	}
	if w, err := strconv.Atoi(n.Meta[weightKey]); err == nil && w > 0 && w <= maxWeight {
		n.Weight = w
		if delete(n.Meta, weightKey); len(n.Meta) == 0 {
			n.Meta = nil
		}
	}
	return n, n.Check()
}
