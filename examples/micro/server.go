package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const service = "where"

// where answers with the name of the node. It may be carried out twice, so a call is made again when its node is killed.
var where = arpc.NewMethod[string, string]("/where", arpc.Idempotent, arpc.Async)

// The variables that make this program a server.
const (
	nameVariable = "ARPC_MICRO_NODE"
	etcdVariable = "ARPC_MICRO_ETCD"
)

// beServer serves and does not return, if this process was started by startServer.
func beServer() {
	name := os.Getenv(nameVariable)
	if name == "" {
		return
	}
	if err := serve(name, os.Getenv(etcdVariable)); err != nil {
		fmt.Fprintf(os.Stderr, "server %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// connect opens the registry.
func connect(addr string) (*etcd.Registry, error) {
	return etcd.New(etcd.Config{Client: clientv3.Config{Endpoints: []string{addr}}, TTL: 2 * time.Second})
}

// serve is the server: it publishes itself, and withdraws and drains when its standard input ends.
func serve(name, etcdAddr string) (err error) {
	signal.Ignore(os.Interrupt) // Ctrl-C goes to all processes; who has started this one decides
	registry, err := connect(etcdAddr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := arpc.NewServer()
	where.Handle(s.Handler, func(*arpc.Context, *string) (*string, error) { return &name, nil })
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	node := micro.Node{Service: service, ID: name, Addr: listener.Addr().String()}
	published, err := micro.Publish(ctx, registry, node, 0)
	if err != nil {
		return errors.Join(err, s.Stop())
	}
	fmt.Println(node.Addr)
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // it ends

	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = micro.Shutdown(ctx, s, published)
	<-served
	return err
}

// A server is a process of this program that serves.
type server struct {
	name  string
	addr  string
	cmd   *exec.Cmd
	stdin io.Closer
}

// startServer starts one, and returns when it is published.
func startServer(name, etcdAddr string) (*server, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), nameVariable+"="+name, etcdVariable+"="+etcdAddr)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // ends with this process at the latest
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{name: name, cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		s.kill()
		return nil, fmt.Errorf("server %s does not start", name)
	}
	s.addr = strings.TrimSpace(line)
	return s, nil
}

// kill ends the process at once, as kill -9 does.
func (s *server) kill() {
	s.cmd.Process.Kill() //nolint:errcheck // it may have ended
	s.cmd.Wait()         //nolint:errcheck // it was killed
}

// drain has it withdraw and answer what is in flight, and waits for its end.
func (s *server) drain() error {
	s.stdin.Close() //nolint:errcheck // Wait tells
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("server %s: %w", s.name, err)
	}
	return nil
}
