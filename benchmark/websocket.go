package main

import (
	"io"
	"net"
	"net/url"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/websocket"
	"github.com/arpc-go/arpc/log"
	"github.com/gobwas/ws"
)

// wsName is ours over WebSocket, of the load and of the idle systems.
const wsName = "arpc-go-ws"

var webSocketSystem = &system{
	name: wsName, about: "this project over WebSocket", module: arpcGoModule, baseline: defaultName,
	serve: func() (string, error) { return serveWebSocket() },
	dial: func(addr string) (any, error) {
		log.SetLevel(log.LevelNone)
		c, err := arpc.NewClient(websocket.Dialer("ws://" + addr + "/"))
		return arpcGoClient{c}, err
	},
}

func serveWebSocket() (string, error) {
	log.SetLevel(log.LevelNone)
	ln, err := websocket.Listen("127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := arpc.NewServer()
	server.Handler.Handle(routeEcho, answerArpcGo)
	go server.Serve(ln)
	return ln.Addr().String(), nil
}

// webSocketConn is the connection of an idle client: what is written is a message each, what is read are their contents.
type webSocketConn struct {
	net.Conn
	left int64 // of the message that is being read
}

func dialWebSocket(addr string) (net.Conn, error) {
	conn, err := dialLoopback(addr)
	if err != nil {
		return nil, err
	}
	if _, _, err := (ws.Dialer{}).Upgrade(conn, &url.URL{Scheme: "ws", Host: addr, Path: "/"}); err != nil {
		conn.Close()
		return nil, err
	}
	return &webSocketConn{Conn: conn}, nil
}

func (c *webSocketConn) Write(p []byte) (int, error) {
	return len(p), ws.WriteFrame(c.Conn, ws.MaskFrame(ws.NewBinaryFrame(p)))
}

func (c *webSocketConn) Read(p []byte) (int, error) {
	for c.left == 0 {
		h, err := ws.ReadHeader(c.Conn)
		if err != nil {
			return 0, err
		}
		if h.OpCode != ws.OpBinary {
			return 0, io.ErrUnexpectedEOF
		}
		c.left = h.Length
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}
