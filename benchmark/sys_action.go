package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strconv"

	"github.com/arpc-go/arpc/extension/action"
	"github.com/arpc-go/arpc/log"
)

// The action protocol is held idle over TCP, where 10,000 connections are to add 10 MB at most, and over WebSocket.

func init() {
	idleSystems = append(idleSystems,
		&idleSystem{
			name: "action", about: "extension/action with its default settings",
			serve: func() (string, error) { return serveAction((*action.Instance).ListenTCP) },
			dial: func(addr string) (net.Conn, error) {
				conn, err := dialLoopback(addr)
				return &actionConn{Conn: conn, prefix: true}, err
			},
		},
		&idleSystem{
			name: "action-ws", about: "extension/action over WebSocket",
			serve: func() (string, error) { return serveAction((*action.Instance).ListenWebsocket) },
			dial: func(addr string) (net.Conn, error) {
				conn, err := dialWebSocket(addr)
				return &actionConn{Conn: conn}, err
			},
		})
}

const actionEcho = 1

func serveAction(listen func(*action.Instance, string) (net.Addr, error)) (string, error) {
	log.SetLevel(log.LevelNone)
	instance := action.New()
	addr, err := listen(instance, "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	instance.Router().Route(actionEcho, func(ctx *action.Context) (any, error) { return json.RawMessage(ctx.Packet().Body), nil })
	go instance.Run(nil) //nolint:errcheck // it ends with the process
	return addr.String(), nil
}

// actionConn sends what is written as the body of a packet each, and gives it back when the same packet has come back.
type actionConn struct {
	net.Conn
	prefix bool
	sent   []byte // the packet that is awaited
	rest   []byte // of what was written, not read yet
}

func (c *actionConn) Write(p []byte) (int, error) {
	body := strconv.AppendQuoteToASCII(nil, string(bytes.Map(func(r rune) rune { return 'a' + r&15 }, p)))
	packet := append([]byte{0, 0, 0, byte(8 + len(body)), 0, actionEcho, 0, 1}, body...)
	if !c.prefix {
		packet = packet[4:]
	}
	c.sent, c.rest = packet, bytes.Clone(p)
	_, err := c.Conn.Write(packet)
	return len(p), err
}

func (c *actionConn) Read(p []byte) (int, error) {
	if c.sent != nil {
		got := make([]byte, len(c.sent))
		if _, err := io.ReadFull(c.Conn, got); err != nil {
			return 0, err
		}
		if !bytes.Equal(got, c.sent) {
			return 0, errors.New("another packet came back than was sent")
		}
		c.sent = nil
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
