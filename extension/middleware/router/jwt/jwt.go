package jwt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/arpc-go/arpc"
)

// Of package github.com/golang-jwt/jwt/v5, so that users need not import it.
type (
	// Claims are the claims of a token.
	Claims = jwt.Claims
	// MapClaims are claims by their names.
	MapClaims = jwt.MapClaims
	// RegisteredClaims are those that RFC 7519 names, to be embedded in others.
	RegisteredClaims = jwt.RegisteredClaims
	// Token is a token that was decoded; in a Keyfunc, one that was not verified.
	Token = jwt.Token
	// Keyfunc returns the key for a token, by the "kid" in its header for
	// instance.
	Keyfunc = jwt.Keyfunc
)

// A Verify is what router.Auth takes. The principal is the token's claims.
type Verify = func(ctx context.Context, token string) (principal any, err error)

// An Option says what New accepts.
type Option func(*config)

type config struct {
	algorithms []string
	claims     func() Claims
	parser     []jwt.ParserOption
}

// Algorithms names the algorithms that are accepted: HS256, HS384, HS512,
// RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA. It
// is required. Those of secrets (HS) do not go together with those of public
// keys.
func Algorithms(names ...string) Option {
	return func(c *config) { c.algorithms = append(c.algorithms, names...) }
}

// Issuer is what the claim "iss" must be; default anything.
func Issuer(iss string) Option {
	return func(c *config) { c.parser = append(c.parser, jwt.WithIssuer(iss)) }
}

// Audience is what the claim "aud" must have one of; default anything.
func Audience(aud ...string) Option {
	return func(c *config) { c.parser = append(c.parser, jwt.WithAudience(aud...)) }
}

// Leeway is how far the clocks of issuer and verifier may differ where "exp",
// "nbf" and "iat" are compared with the time; default 0.
func Leeway(d time.Duration) Option {
	return func(c *config) { c.parser = append(c.parser, jwt.WithLeeway(d)) }
}

// ClaimsOf makes the principal a value that f returns, a new pointer each
// time, into which the claims are decoded; default are MapClaims.
func ClaimsOf(f func() Claims) Option { return func(c *config) { c.claims = f } }

// Answers to tokens that are not accepted. They say no more than the owner of
// the token needs.
var (
	errInvalid = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "the token is not valid"}
	errExpired = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "the token has expired"}
	errEarly   = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "the token is not valid yet"}
)

// New returns a function that verifies tokens. key is an *rsa.PublicKey of at
// least 2048 bits, an *ecdsa.PublicKey, an ed25519.PublicKey, a []byte that is
// a secret of at least the length of the hash, or a Keyfunc that returns one of
// these.
//
// A token must have a claim "exp" and be within it and "nbf"; its issuer and
// audience must be as the options say. Others are answered with
// CodeUnauthenticated. So are those with extensions that must be understood
// ("crit"), as none is. When a Keyfunc fails with an *arpc.Error or an
// arpc.Code, such as CodeUnavailable, that is the answer.
//
// Errors: no algorithm, one that is unknown or "none", a mix of secrets and
// public keys, and a key that does not fit an algorithm.
func New(key any, opts ...Option) (Verify, error) {
	c := config{claims: func() Claims { return MapClaims{} }}
	for _, o := range opts {
		o(&c)
	}
	if err := checkAlgorithms(c.algorithms); err != nil {
		return nil, err
	}
	keyfunc, ok := key.(Keyfunc)
	if !ok {
		if f, isFunc := key.(func(*Token) (any, error)); isFunc {
			keyfunc, ok = f, true
		}
	}
	if ok {
		if keyfunc == nil {
			return nil, errors.New("jwt: the Keyfunc is nil")
		}
	} else {
		for _, alg := range c.algorithms {
			if err := fits(alg, key); err != nil {
				return nil, err
			}
		}
		keyfunc = func(*Token) (any, error) { return key, nil }
	}
	parser := jwt.NewParser(append(c.parser, jwt.WithValidMethods(c.algorithms), jwt.WithExpirationRequired(),
		jwt.WithStrictDecoding())...)
	checked := func(t *Token) (any, error) {
		if _, ok := t.Header["crit"]; ok {
			return nil, errInvalid
		}
		key, err := keyfunc(t)
		if err != nil {
			return nil, err
		}
		if set, ok := key.(jwt.VerificationKeySet); ok {
			for _, k := range set.Keys {
				if err := fits(t.Method.Alg(), k); err != nil {
					return nil, err
				}
			}
			return key, nil
		}
		return key, fits(t.Method.Alg(), key)
	}
	return func(_ context.Context, token string) (any, error) {
		t, err := parser.ParseWithClaims(token, c.claims(), checked)
		if err != nil {
			return nil, refusal(err)
		}
		return t.Claims, nil
	}, nil
}

// refusal is what the peer is told.
func refusal(err error) error {
	var e *arpc.Error
	var code arpc.Code
	switch {
	case errors.As(err, &e): // of the Keyfunc
		return e
	case errors.As(err, &code):
		return code
	case errors.Is(err, jwt.ErrTokenExpired):
		return errExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return errEarly
	}
	return errInvalid
}

// secretLen has the algorithms of secrets, and the least length of these in
// bytes (RFC 7518, section 3.2).
var secretLen = map[string]int{"HS256": 32, "HS384": 48, "HS512": 64}

// curveBits has the algorithms of ECDSA, and the curve of each.
var curveBits = map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}

var rsaAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}

// minRSA is the least length of an RSA key in bits (RFC 7518, section 3.3).
const minRSA = 2048

func checkAlgorithms(names []string) error {
	if len(names) == 0 {
		return errors.New("jwt: no algorithm is accepted, see Algorithms")
	}
	secrets := 0
	for _, name := range names {
		switch {
		case secretLen[name] > 0:
			secrets++
		case curveBits[name] > 0, slices.Contains(rsaAlgorithms, name), name == "EdDSA":
		default:
			return fmt.Errorf("jwt: algorithm %q is not among those that can be accepted", name)
		}
	}
	if secrets > 0 && secrets < len(names) {
		return errors.New("jwt: the algorithms of secrets and those of public keys must not be mixed")
	}
	return nil
}

// fits reports whether a key is one for an algorithm, and strong enough.
func fits(alg string, key any) error {
	switch key := key.(type) {
	case []byte:
		if n := secretLen[alg]; n > 0 && len(key) >= n && !bytes.HasPrefix(bytes.TrimSpace(key), []byte("-----BEGIN")) {
			return nil // what looks like a public key is not a secret
		}
	case *rsa.PublicKey:
		if slices.Contains(rsaAlgorithms, alg) && key != nil && key.N != nil && key.N.BitLen() >= minRSA {
			return nil
		}
	case *ecdsa.PublicKey:
		if key != nil && key.Curve != nil && key.Params().BitSize == curveBits[alg] {
			return nil
		}
	case ed25519.PublicKey:
		if alg == "EdDSA" && len(key) == ed25519.PublicKeySize {
			return nil
		}
	}
	return fmt.Errorf("jwt: the key, a %T, is not one for %s or is too weak", key, alg)
}
