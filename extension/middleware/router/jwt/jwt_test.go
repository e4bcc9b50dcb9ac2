package jwt_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
	"github.com/arpc-go/arpc/extension/middleware/router/jwt"
)

const patience = 20 * time.Second

// keys are made once, as those of RSA take long.
var keys = sync.OnceValue(func() (k struct {
	rsa, other *rsa.PrivateKey
	weak       *rsa.PublicKey
	p256, p384 *ecdsa.PrivateKey
	ed         ed25519.PrivateKey
	secret     []byte
}) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var err error
	k.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	k.other, err = rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(err)
	k.weak = &weak.PublicKey
	k.p256, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	k.p384, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(err)
	_, k.ed, err = ed25519.GenerateKey(rand.Reader)
	must(err)
	k.secret = []byte(strings.Repeat("0123456789abcdef", 4))
	return k
})

func claims() gojwt.MapClaims {
	return gojwt.MapClaims{"sub": "ann", "iss": "us", "aud": []string{"them", "orders"}, "exp": time.Now().Add(time.Hour).Unix()}
}

func sign(t testing.TB, alg string, key any, c gojwt.Claims) string {
	t.Helper()
	token, err := gojwt.NewWithClaims(gojwt.GetSigningMethod(alg), c).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// forge makes a token of any header, signed by what sign does with the text.
func forge(t testing.TB, header map[string]any, c any, sign func(text string) []byte) string {
	t.Helper()
	segment := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := segment(header) + "." + segment(c)
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

func hs256(key []byte) func(string) []byte {
	return func(text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
}

func newVerify(t testing.TB, key any, opts ...jwt.Option) jwt.Verify {
	t.Helper()
	v, err := jwt.New(key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAlgorithms(t *testing.T) {
	k := keys()
	for _, test := range []struct {
		alg         string
		sign, check any
	}{
		{"HS256", k.secret, k.secret}, {"HS384", k.secret, k.secret}, {"HS512", k.secret, k.secret},
		{"RS256", k.rsa, &k.rsa.PublicKey}, {"RS512", k.rsa, &k.rsa.PublicKey}, {"PS256", k.rsa, &k.rsa.PublicKey},
		{"ES256", k.p256, &k.p256.PublicKey}, {"ES384", k.p384, &k.p384.PublicKey},
		{"EdDSA", k.ed, k.ed.Public()},
	} {
		token := sign(t, test.alg, test.sign, claims())
		for _, key := range []any{test.check, jwt.Keyfunc(func(*jwt.Token) (any, error) { return test.check, nil }),
			func(*jwt.Token) (any, error) {
				return gojwt.VerificationKeySet{Keys: []gojwt.VerificationKey{test.check}}, nil
			}} {
			v := newVerify(t, key, jwt.Algorithms(test.alg), jwt.Issuer("us"), jwt.Audience("orders"))
			p, err := v(context.Background(), token)
			if c, ok := p.(jwt.MapClaims); err != nil || !ok || c["sub"] != "ann" {
				t.Errorf("%s: %v, %v", test.alg, p, err)
			}
		}
	}
}

func TestForgedTokens(t *testing.T) {
	k := keys()
	public := &k.rsa.PublicKey
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	good := sign(t, "RS256", k.rsa, claims())
	parts := strings.Split(good, ".")
	none := func(string) []byte { return nil }
	rs256 := func(text string) []byte {
		sum := sha256.Sum256([]byte(text))
		sig, err := rsa.SignPKCS1v15(nil, k.rsa, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	change := func(f func(gojwt.MapClaims)) string {
		c := claims()
		f(c)
		return sign(t, "RS256", k.rsa, c)
	}
	tokens := map[string]string{
		"empty":                       "",
		"no token":                    "x",
		"two parts":                   parts[0] + "." + parts[1],
		"four parts":                  good + ".x",
		"no signature":                parts[0] + "." + parts[1] + ".",
		"another signature":           parts[0] + "." + parts[1] + "." + strings.Split(sign(t, "RS256", k.rsa, jwt.MapClaims{}), ".")[2],
		"other claims":                parts[0] + "." + strings.Split(sign(t, "RS256", k.other, jwt.MapClaims{"sub": "root", "exp": 1 << 40}), ".")[1] + "." + parts[2],
		"padded":                      good + "==",
		"another key":                 sign(t, "RS256", k.other, claims()),
		"alg none":                    forge(t, map[string]any{"alg": "none"}, claims(), none),
		"alg None":                    forge(t, map[string]any{"alg": "None"}, claims(), none),
		"alg NONE, signed":            forge(t, map[string]any{"alg": "NONE"}, claims(), rs256),
		"no alg":                      forge(t, map[string]any{}, claims(), rs256),
		"alg of another type":         forge(t, map[string]any{"alg": []string{"RS256"}}, claims(), rs256),
		"alg in lower case":           forge(t, map[string]any{"alg": "rs256"}, claims(), rs256),
		"HS256 with the key's PEM":    forge(t, map[string]any{"alg": "HS256"}, claims(), hs256(text)),
		"HS256 with the key's DER":    forge(t, map[string]any{"alg": "HS256"}, claims(), hs256(der)),
		"HS256 with the key's N":      forge(t, map[string]any{"alg": "HS256"}, claims(), hs256(public.N.Bytes())),
		"HS256 with no key":           forge(t, map[string]any{"alg": "HS256"}, claims(), hs256(nil)),
		"RS512, not listed":           sign(t, "RS512", k.rsa, claims()),
		"PS256, not listed":           sign(t, "PS256", k.rsa, claims()),
		"a key in the header":         forge(t, map[string]any{"alg": "HS256", "jwk": map[string]any{"kty": "oct", "k": "AAAA"}}, claims(), hs256([]byte{0, 0, 0})),
		"crit":                        forge(t, map[string]any{"alg": "RS256", "crit": []string{"exp"}}, claims(), rs256),
		"header is no object":         base64.RawURLEncoding.EncodeToString([]byte(`[]`)) + "." + parts[1] + "." + parts[2],
		"claims are no object":        forge(t, map[string]any{"alg": "RS256"}, []int{1}, rs256),
		"claims are null":             forge(t, map[string]any{"alg": "RS256"}, nil, rs256),
		"no exp":                      change(func(c gojwt.MapClaims) { delete(c, "exp") }),
		"exp is a text":               change(func(c gojwt.MapClaims) { c["exp"] = "never" }),
		"expired":                     change(func(c gojwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() }),
		"not yet":                     change(func(c gojwt.MapClaims) { c["nbf"] = time.Now().Add(time.Minute).Unix() }),
		"another issuer":              change(func(c gojwt.MapClaims) { c["iss"] = "them" }),
		"no issuer":                   change(func(c gojwt.MapClaims) { delete(c, "iss") }),
		"another audience":            change(func(c gojwt.MapClaims) { c["aud"] = "payments" }),
		"no audience":                 change(func(c gojwt.MapClaims) { delete(c, "aud") }),
		"an audience that is longer":  change(func(c gojwt.MapClaims) { c["aud"] = "orders2" }),
		"deep":                        parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 30_000))) + "." + parts[2],
		"nothing but points":          strings.Repeat(".", 30_000),
		"a signature of many letters": parts[0] + "." + parts[1] + "." + strings.Repeat("A", 30_000),
	}
	// Also where a Keyfunc gives the public key as what it was read from.
	confused := func(*jwt.Token) (any, error) { return text, nil }
	for name, v := range map[string]jwt.Verify{
		"key":     newVerify(t, public, jwt.Algorithms("RS256"), jwt.Issuer("us"), jwt.Audience("orders")),
		"keyfunc": newVerify(t, func(*jwt.Token) (any, error) { return public, nil }, jwt.Algorithms("RS256"), jwt.Issuer("us"), jwt.Audience("orders")),
		"PEM":     newVerify(t, confused, jwt.Algorithms("HS256"), jwt.Issuer("us"), jwt.Audience("orders")),
	} {
		for what, token := range tokens {
			p, err := v(context.Background(), token)
			if arpc.CodeOf(err) != arpc.CodeUnauthenticated || p != nil {
				t.Errorf("%s, %s: %v, %v", name, what, p, err)
			}
		}
	}
	v := newVerify(t, public, jwt.Algorithms("RS256"))
	for _, test := range [][2]string{{"expired", "expired"}, {"not yet", "not valid yet"}, {"another key", "not valid"}} {
		if _, err := v(context.Background(), tokens[test[0]]); err == nil || !strings.Contains(err.Error(), test[1]) {
			t.Errorf("%s: %v", test[0], err)
		}
	}
	if _, err := v(context.Background(), good); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	k := keys()
	for _, test := range []struct {
		what string
		key  any
		algs []string
	}{
		{"no algorithm", k.secret, nil},
		{"none", k.secret, []string{"none"}},
		{"none among others", k.secret, []string{"HS256", "none"}},
		{"unknown", k.secret, []string{"HS257"}},
		{"empty", k.secret, []string{""}},
		{"mixed", func(*jwt.Token) (any, error) { return k.secret, nil }, []string{"HS256", "RS256"}},
		{"no key", nil, []string{"HS256"}},
		{"a nil Keyfunc", jwt.Keyfunc(nil), []string{"HS256"}},
		{"a nil key", (*rsa.PublicKey)(nil), []string{"RS256"}},
		{"an empty key", &rsa.PublicKey{}, []string{"RS256"}},
		{"a private key", k.rsa, []string{"RS256"}},
		{"a short secret", k.secret[:31], []string{"HS256"}},
		{"a secret that is short for one", k.secret[:32], []string{"HS256", "HS512"}},
		{"a text", string(k.secret), []string{"HS256"}},
		{"a public key as secret", []byte("-----BEGIN PUBLIC KEY-----\n" + string(k.secret)), []string{"HS256"}},
		{"a secret for RSA", k.secret, []string{"RS256"}},
		{"RSA for a secret's", &k.rsa.PublicKey, []string{"HS256"}},
		{"weak RSA", k.weak, []string{"RS256"}},
		{"another curve", &k.p256.PublicKey, []string{"ES384"}},
		{"ECDSA for EdDSA", &k.p256.PublicKey, []string{"EdDSA"}},
		{"an empty curve", &ecdsa.PublicKey{}, []string{"ES256"}},
		{"a short Ed25519", ed25519.PublicKey{1}, []string{"EdDSA"}},
	} {
		if _, err := jwt.New(test.key, jwt.Algorithms(test.algs...)); err == nil {
			t.Errorf("%s: no error", test.what)
		}
	}
}

// A Keyfunc chooses the key; its errors with codes go to the peer.
func TestKeyfunc(t *testing.T) {
	k := keys()
	v := newVerify(t, func(t *jwt.Token) (any, error) {
		switch t.Header["kid"] {
		case "a":
			return &k.rsa.PublicKey, nil
		case "weak":
			return k.weak, nil
		case "down":
			return nil, &arpc.Error{Code: arpc.CodeUnavailable, Message: "the keys cannot be fetched"}
		case "nil":
			return nil, nil
		}
		return nil, errors.New("secret: no such key")
	}, jwt.Algorithms("RS256", "PS256"))
	for kid, code := range map[string]arpc.Code{
		"a": 0, "weak": arpc.CodeUnauthenticated, "down": arpc.CodeUnavailable, "nil": arpc.CodeUnauthenticated, "b": arpc.CodeUnauthenticated,
	} {
		token := gojwt.NewWithClaims(gojwt.SigningMethodPS256, claims())
		token.Header["kid"] = kid
		text, err := token.SignedString(k.rsa)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v(context.Background(), text); arpc.CodeOf(err) != code || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", kid, err)
		}
	}
}

func TestLeewayAndClaims(t *testing.T) {
	type own struct {
		jwt.RegisteredClaims
		Role string `json:"role"`
	}
	k := keys()
	token := sign(t, "HS256", k.secret, gojwt.MapClaims{"role": "admin", "exp": time.Now().Add(-20 * time.Second).Unix()})
	v := newVerify(t, k.secret, jwt.Algorithms("HS256"), jwt.Leeway(time.Minute), jwt.ClaimsOf(func() jwt.Claims { return new(own) }))
	p, err := v(context.Background(), token)
	if c, ok := p.(*own); err != nil || !ok || c.Role != "admin" {
		t.Errorf("%#v, %v", p, err)
	}
	if _, err := newVerify(t, k.secret, jwt.Algorithms("HS256"), jwt.Leeway(time.Second))(context.Background(), token); err == nil {
		t.Error("no error beyond the leeway")
	}
}

// On connections, where the server handles and where the client does.
func TestAuth(t *testing.T) {
	k := keys()
	verify := newVerify(t, k.ed.Public(), jwt.Algorithms("EdDSA"), jwt.Issuer("us"))
	install := func(h arpc.Handler) {
		h.Use(router.Auth(verify))
		h.Handle("/who", func(ctx *arpc.Context) {
			c, _ := router.Principal[jwt.MapClaims](ctx)
			ctx.Write(c["sub"])
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, h := arpc.NewServer(), arpc.NewHandler()
	connected := make(chan *arpc.Client, 1)
	server.Handler.HandleConnected(func(c *arpc.Client) { connected <- c })
	install(server.Handler)
	install(h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() {
		server.Stop() //nolint:errcheck // Serve says more
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, h)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := client.CallWith(ctx, "/who", nil, nil); arpc.CodeOf(err) != arpc.CodeUnauthenticated || !arpc.IsRefused(err) {
		t.Errorf("without a token: %v", err) // the peer's HELLO has come with it
	}
	for side, c := range map[string]*arpc.Client{"server": client, "client": <-connected} {
		call := func(token string) (who string, err error) {
			err = c.CallWith(arpc.AddMetadata(ctx, "authorization", "Bearer "+token), "/who", nil, &who)
			return who, err
		}
		if who, err := call(sign(t, "EdDSA", k.ed, claims())); err != nil || who != "ann" {
			t.Errorf("%s: %q, %v", side, who, err)
		}
		for _, token := range []string{
			forge(t, map[string]any{"alg": "none"}, claims(), func(string) []byte { return nil }),
			forge(t, map[string]any{"alg": "HS256"}, claims(), hs256(k.ed.Public().(ed25519.PublicKey))),
		} {
			if _, err := call(token); arpc.CodeOf(err) != arpc.CodeUnauthenticated || !arpc.IsRefused(err) {
				t.Errorf("%s: a forged token: %v", side, err)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	k := keys()
	v := newVerify(f, k.secret, jwt.Algorithms("HS256"))
	f.Add(sign(f, "HS256", k.secret, claims()))
	f.Add(forge(f, map[string]any{"alg": "none"}, claims(), func(string) []byte { return nil }))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		p, err := v(context.Background(), token)
		if err != nil && arpc.CodeOf(err) != arpc.CodeUnauthenticated || err == nil && p == nil {
			t.Errorf("%v, %v", p, err)
		}
		if err == nil {
			text := token[:strings.LastIndexByte(token, '.')]
			if want := base64.RawURLEncoding.EncodeToString(hs256(k.secret)(text)); want != token[len(text)+1:] {
				t.Errorf("%q was accepted", token)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	k := keys()
	for _, bench := range []struct {
		alg         string
		sign, check any
	}{{"HS256", k.secret, k.secret}, {"RS256", k.rsa, &k.rsa.PublicKey}, {"ES256", k.p256, &k.p256.PublicKey}, {"EdDSA", k.ed, k.ed.Public()}} {
		b.Run(bench.alg, func(b *testing.B) {
			v := newVerify(b, bench.check, jwt.Algorithms(bench.alg), jwt.Issuer("us"), jwt.Audience("orders"))
			token := sign(b, bench.alg, bench.sign, claims())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v(context.Background(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
