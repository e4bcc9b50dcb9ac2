package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/gateway"
)

type HelloRequest struct {
	Name string `json:"name"`
}

type HelloResponse struct {
	Text string `json:"text"`
}

var Hello = arpc.NewMethod[HelloRequest, HelloResponse]("/hello")

// The handlers of an arpc server, called over HTTP:
//
//	curl -d '{"name":"x"}' http://localhost:8080/hello
func Example() {
	server := arpc.NewServer(arpc.NewHandler())
	Hello.Handle(server.Handler, func(ctx *arpc.Context, req *HelloRequest) (*HelloResponse, error) {
		if req.Name == "" {
			return nil, &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "who are you?"}
		}
		return &HelloResponse{"hello " + req.Name}, nil
	})
	g := gateway.New(server)
	web := httptest.NewServer(g) // in a program: http.ListenAndServe(":8080", g)

	for _, body := range []string{`{"name":"x"}`, `{}`} {
		res, err := http.Post(web.URL+"/hello", "application/json", strings.NewReader(body))
		if err != nil {
			fmt.Println(err)
			return
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		fmt.Println(res.StatusCode, string(b))
	}

	web.Close()
	g.Close()
	server.Stop()
	// Output:
	// 200 {"text":"hello x"}
	// 400 {"code":"invalid_argument","message":"who are you?"}
}
