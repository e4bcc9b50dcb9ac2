package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/lesismal/nbio"
	"github.com/lxzan/gws"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// Names of fan-out systems that bars are about.
const (
	fanOutPubSub    = "arpc-go-pubsub"
	fanOutBroadcast = "arpc-go-broadcast"
	fanOutNATS      = "nats"
	fanOutGWS       = "gws"
)

var fanOutSystems = []*fanOutSystem{
	{
		name: fanOutPubSub, about: "this project's pub/sub, a topic without history; publications are notifications", module: arpcGoModule,
		serve: serveFanOutPubSub, subscribe: subscribePubSub, begin: nothing, publish: publishPubSub,
		before: frameHeader + len("ps.event") + 18,
	},
	{
		name: fanOutBroadcast, about: "this project's rooms: a notification's handler sends to a room", module: arpcGoModule,
		serve: serveFanOutRoom, subscribe: joinRoom, begin: nothing,
		publish: func(b, payload []byte) []byte { return appendNotify(b, routePublish, payload) },
		before:  frameHeader + len(routeNews),
	},
	{
		name: fanOutNATS, about: "core NATS, its server alone in the process", module: "github.com/nats-io/nats-server/v2",
		serve: serveFanOutNATS, subscribe: subscribeNATS, begin: connectNATS,
		publish: func(b, payload []byte) []byte {
			return append(append(fmt.Appendf(b, "PUB t %d\r\n", len(payload)), payload...), "\r\n"...)
		},
		before: len(fmt.Sprintf("MSG t 1 %d\r\n", fanOutPayload)), after: len("\r\n"), skip: "PING\r\n",
	},
	{
		name: fanOutGWS, about: "gws, a Broadcaster to all WebSocket connections", module: "github.com/lxzan/gws",
		serve: serveFanOutGWS, subscribe: func(rw io.ReadWriter) error { return upgrade(rw, "/sub") },
		begin:   func(rw io.ReadWriter) error { return upgrade(rw, "/pub") },
		publish: publishGWS, before: wsHead,
	},
	{
		name: "nbio", about: "plain nbio: a loop that writes each message to each connection", module: "github.com/lesismal/nbio",
		serve: serveFanOutNBIO, subscribe: func(rw io.ReadWriter) error { return exchange(rw, []byte{'s'}, "ok") },
		begin:   func(rw io.ReadWriter) error { return exchange(rw, []byte{'p'}, "ok") },
		publish: func(b, payload []byte) []byte { return append(b, payload...) },
	},
}

func nothing(io.ReadWriter) error { return nil }

// exchange writes a request and reads an answer of the length of want.
func exchange(rw io.ReadWriter, request []byte, want string) error {
	if _, err := rw.Write(request); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(rw, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("got %q, not %q", got, want)
	}
	return nil
}

// readFrame reads one frame of arpc and returns it.
func readFrame(r io.Reader) ([]byte, error) {
	head := make([]byte, frameHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	frame := append(head, make([]byte, binary.LittleEndian.Uint32(head))...)
	_, err := io.ReadFull(r, frame[frameHeader:])
	return frame, err
}

// appendNotify appends a notification of arpc.
func appendNotify(b []byte, method string, bodies ...[]byte) []byte {
	n := len(method)
	for _, body := range bodies {
		n += len(body)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, 0, frameNotify, 0, byte(len(method)))
	b = append(binary.LittleEndian.AppendUint64(b, 0), method...)
	for _, body := range bodies {
		b = append(b, body...)
	}
	return b
}

const (
	frameNotify  = 3
	topic        = "t"
	routePublish = "/publish"
	routeNews    = "/news"
	routeJoin    = "/join"
)

func serveFanOutPubSub() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	go pubsub.NewServer().Serve(ln)
	return addr, nil
}

// subscribePubSub reads two frames: the answer and the start.
func subscribePubSub(rw io.ReadWriter) error {
	if _, err := rw.Write(requestFrame(1, "ps.sub", []byte(`{"topic":"`+topic+`","token":1}`))); err != nil {
		return err
	}
	for range 2 {
		if _, err := readFrame(rw); err != nil {
			return err
		}
	}
	return nil
}

func publishPubSub(b, payload []byte) []byte {
	return appendNotify(b, "ps.pub", []byte{0, byte(len(topic)), 0}, []byte(topic), payload)
}

func serveFanOutRoom() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	hub := broadcast.NewHub()
	s := arpc.NewServer()
	s.Handler.Handle(routeJoin, func(ctx *arpc.Context) { ctx.Write(hub.Room(topic).Join(ctx.Client)) })
	s.Handler.Handle(routePublish, func(ctx *arpc.Context) { hub.Room(topic).Send(routeNews, ctx.Body()) })
	go s.Serve(ln)
	return addr, nil
}

func joinRoom(rw io.ReadWriter) error {
	if _, err := rw.Write(requestFrame(1, routeJoin, nil)); err != nil {
		return err
	}
	_, err := readFrame(rw)
	return err
}

func serveFanOutNATS() (string, error) {
	s, err := startNATS()
	if err != nil {
		return "", err
	}
	return s.Addr().String(), nil
}

// connectNATS reads the server's INFO, of unknown length, byte by byte.
func connectNATS(rw io.ReadWriter) error {
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := rw.Read(b); err != nil {
			return err
		}
	}
	return exchange(rw, []byte("CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n"), "PONG\r\n")
}

func subscribeNATS(rw io.ReadWriter) error {
	if err := connectNATS(rw); err != nil {
		return err
	}
	return exchange(rw, []byte("SUB "+topic+" 1\r\nPING\r\n"), "PONG\r\n")
}

// gwsFanOut is a server with gws.
type gwsFanOut struct {
	gws.BuiltinEventHandler
	mu   sync.Mutex
	subs []*gws.Conn
}

func (g *gwsFanOut) OnOpen(c *gws.Conn) {
	if sub, _ := c.Session().Load("sub"); sub == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.subs = append(g.subs, c)
}

func (g *gwsFanOut) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	b := gws.NewBroadcaster(gws.OpcodeBinary, bytes.Clone(m.Bytes()))
	defer b.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.subs {
		b.Broadcast(s)
	}
}

func serveFanOutGWS() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	s := gws.NewServer(new(gwsFanOut), &gws.ServerOption{Authorize: func(r *http.Request, session gws.SessionStorage) bool {
		if r.URL.Path == "/sub" {
			session.Store("sub", true)
		}
		return true
	}})
	go s.RunListener(ln)
	return addr, nil
}

// wsHead is the length of the header of an unmasked message of 128 bytes.
const wsHead = 4

func upgrade(rw io.ReadWriter, path string) error {
	req := "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
	if _, err := io.WriteString(rw, req); err != nil {
		return err
	}
	// The server says nothing more by itself, so nothing is lost in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(rw), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return errors.New(resp.Status)
	}
	return nil
}

// publishGWS masks with zeros, which changes nothing.
func publishGWS(b, payload []byte) []byte {
	return append(append(b, 0x82, 0xfe, byte(len(payload)>>8), byte(len(payload)), 0, 0, 0, 0), payload...)
}

// nbioFanOut is a server with plain nbio. Payloads need no frame, as all have one length.
type nbioFanOut struct {
	mu   sync.Mutex
	subs []*nbio.Conn
	rest []byte
}

func (s *nbioFanOut) data(c *nbio.Conn, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Session() == nil {
		c.SetSession(data[0])
		if data[0] == 's' {
			s.subs = append(s.subs, c)
		}
		c.Write([]byte("ok"))
		return
	}
	s.rest = append(s.rest, data...)
	b := s.rest
	for ; len(b) >= fanOutPayload; b = b[fanOutPayload:] {
		for _, sub := range s.subs {
			sub.Write(b[:fanOutPayload])
		}
	}
	s.rest = append(s.rest[:0], b...)
}

func serveFanOutNBIO() (string, error) { return startNBIO(new(nbioFanOut).data) }
