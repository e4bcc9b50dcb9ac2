package main

import (
	"errors"
	"net"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

var natsSystem = &system{
	name: "nats", about: "request and reply through a NATS server; the responder lives in the server's process",
	module: "github.com/nats-io/nats-server/v2", baseline: "arpc",
	serve: serveNATS, dial: dialNATS,
}

const natsSubject = "echo"

// startNATS runs a server until the process ends.
func startNATS() (*server.Server, error) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
	})
	if err != nil {
		return nil, err
	}
	go s.Start()
	if !s.ReadyForConnections(callTimeout) {
		return nil, errors.New("the NATS server did not start")
	}
	return s, nil
}

func serveNATS() (string, error) {
	s, err := startNATS()
	if err != nil {
		return "", err
	}
	conn, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		return "", err
	}
	if _, err := conn.Subscribe(natsSubject, func(m *nats.Msg) { m.Respond(m.Data) }); err != nil {
		return "", err
	}
	if err := conn.Flush(); err != nil {
		return "", err
	}
	return s.Addr().String(), nil
}

// natsDialer gives the client our way to connect.
type natsDialer struct{}

func (natsDialer) Dial(_, addr string) (net.Conn, error) { return dialLoopback(addr) }

type natsClient struct {
	*nats.Conn
}

func dialNATS(addr string) (any, error) {
	conn, err := nats.Connect("nats://"+addr, nats.SetCustomDialer(natsDialer{}))
	if err != nil {
		return nil, err
	}
	return natsClient{conn}, nil
}

func (c natsClient) call(_ string, req []byte, rsp *[]byte) error {
	m, err := c.Request(natsSubject, req, callTimeout)
	if err != nil {
		return err
	}
	*rsp = m.Data
	return nil
}
