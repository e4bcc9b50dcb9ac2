package main

import (
	"net"

	"github.com/lesismal/arpc"
	"github.com/lesismal/arpc/log"
)

// The published arpc, whose API and wire format ours speaks.

const arpcModule = "github.com/lesismal/arpc"

var arpcSystems = []*system{
	{
		name: "arpc", about: "the published arpc with its default settings", module: arpcModule, baseline: "arpc",
		async: true, routes: true,
		serve: func() (string, error) { return serveArpc(arpcDefaults, answerArpc) },
		dial:  func(addr string) (any, error) { return dialArpc(arpcDefaults, addr) },
	},
	{
		name: "arpc-tuned", about: "the published arpc at its best: handlers in the reader, batched sends, pooled messages", module: arpcModule, baseline: "arpc",
		async: true, routes: true,
		serve: func() (string, error) { return serveArpc(tuneArpc, answerArpc) },
		dial:  func(addr string) (any, error) { return dialArpc(tuneArpc, addr) },
	},
	{
		name: "arpc-json", about: "the published arpc, a struct as JSON (its default codec)", module: arpcModule, baseline: "arpc-json",
		json:  true,
		serve: func() (string, error) { return serveArpc(arpcDefaults, answerArpcNote) },
		dial: func(addr string) (any, error) {
			c, err := dialArpc(arpcDefaults, addr)
			return arpcNotes{c}, err
		},
	},
}

func arpcDefaults(arpc.Handler) {}

// tuneArpc is the best configuration found. TCP_NODELAY stays off, as is its
// default: with this batching it is faster so.
func tuneArpc(h arpc.Handler) {
	h.SetAsyncResponse(false)
	h.SetSendBufferSize(64 << 10)
	h.SetRecvBufferSize(64 << 10)
	h.EnablePool(true)
}

func answerArpc(ctx *arpc.Context) { ctx.Write(ctx.Body()) }

func answerArpcNote(ctx *arpc.Context) {
	var n note
	if err := ctx.Bind(&n); err != nil {
		ctx.Error(err)
		return
	}
	ctx.Write(&n)
}

func serveArpc(configure func(arpc.Handler), answer func(*arpc.Context)) (string, error) {
	log.SetLevel(log.LevelNone)
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	server := arpc.NewServer()
	configure(server.Handler)
	server.Handler.Handle(routeEcho, answer)
	server.Handler.Handle(routeInline, answer)
	server.Handler.Handle(routeAsync, answer)
	server.Handler.Handle(routeBurn, func(ctx *arpc.Context) {
		burn()
		answer(ctx)
	})
	go server.Serve(ln)
	return addr, nil
}

type arpcClient struct {
	*arpc.Client
}

func dialArpc(configure func(arpc.Handler), addr string) (arpcClient, error) {
	log.SetLevel(log.LevelNone)
	handler := arpc.NewHandler()
	configure(handler)
	c, err := arpc.NewClient(func() (net.Conn, error) { return dialLoopback(addr) }, handler)
	return arpcClient{c}, err
}

func (c arpcClient) call(route string, req []byte, rsp *[]byte) error {
	return c.Call(route, req, rsp, callTimeout)
}

func (c arpcClient) newAsync(route string, done func([]byte, error)) func([]byte) error {
	answered := func(ctx *arpc.Context, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(ctx.Body(), nil)
	}
	return func(req []byte) error {
		return c.CallAsync(route, req, answered, callTimeout)
	}
}

type arpcNotes struct {
	arpcClient
}

func (c arpcNotes) callNote(route string, req, rsp *note) error {
	return c.Call(route, req, rsp, callTimeout)
}
