// Package jwt checks JSON Web Tokens for router.Auth, with
// github.com/golang-jwt/jwt/v5.
//
//	verify, err := jwt.New(publicKey, jwt.Algorithms("RS256"), jwt.Issuer("https://id.example.com"), jwt.Audience("orders"))
//	if err != nil {
//		return err
//	}
//	handler.Use(router.Auth(verify))
//
// In the handler, router.Principal[jwt.MapClaims](ctx) returns the claims.
//
// The algorithm is never the token's choice: New wants a list of those that
// are accepted, "none" is not among those that it takes, and each must fit the
// kind and the strength of the key.
//
// Concurrency: a Verify may be used by any number of goroutines. Ownership: it
// keeps the key, which must not be changed. Limits: nothing is cached; a token
// is as long as the metadata of a message may be, see arpc.Limits.
package jwt
