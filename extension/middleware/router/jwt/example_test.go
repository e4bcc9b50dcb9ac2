package jwt_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
	"github.com/arpc-go/arpc/extension/middleware/router/jwt"
)

func Example() {
	public, private, err := ed25519.GenerateKey(nil) // the issuer's
	if err != nil {
		panic(err)
	}
	verify, err := jwt.New(public, jwt.Algorithms("EdDSA"), jwt.Audience("orders"))
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer(arpc.NewHandler())
	server.Handler.Use(router.Auth(verify))
	server.Handler.Handle("/who", func(ctx *arpc.Context) {
		claims, _ := router.Principal[jwt.MapClaims](ctx)
		ctx.Write(claims["sub"])
	})
	listener, dial := arpc.Pipe()
	go server.Serve(listener)
	defer server.Stop()
	client, err := arpc.NewClient(dial, arpc.NewHandler())
	if err != nil {
		panic(err)
	}
	defer client.Stop()

	claims := jwt.MapClaims{"sub": "ann", "aud": "orders", "exp": time.Now().Add(time.Minute).Unix()}
	token, err := gojwt.NewWithClaims(gojwt.SigningMethodEdDSA, claims).SignedString(private)
	if err != nil {
		panic(err)
	}
	var who string
	ctx := arpc.AddMetadata(context.Background(), "authorization", "Bearer "+token)
	fmt.Println(client.CallWith(ctx, "/who", nil, &who), who)

	forged, err := gojwt.NewWithClaims(gojwt.SigningMethodNone, claims).SignedString(gojwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		panic(err)
	}
	ctx = arpc.AddMetadata(context.Background(), "authorization", "Bearer "+forged)
	err = client.CallWith(ctx, "/who", nil, &who)
	fmt.Println(arpc.CodeOf(err), err)
	// Output:
	// <nil> ann
	// unauthenticated the token is not valid
}
