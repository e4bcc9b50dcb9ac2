package poller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wait bounds every wait for something that must happen; it is never spent when all is well.
const wait = 20 * time.Second

func TestMain(m *testing.M) {
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil { // the runtime's own epoll is made on first use
		ln.Close()
	}
	before := openFiles()
	code := m.Run()
	if code == 0 {
		code = checkLeaks(before)
	}
	os.Exit(code)
}

// checkLeaks looks again and again until everything is gone, because nbio's last goroutine ends just after its Stop.
func checkLeaks(before map[string]string) int {
	for end := time.Now().Add(wait); ; runtime.Gosched() {
		var buf [1 << 20]byte
		stacks := string(buf[:runtime.Stack(buf[:], true)])
		left := ""
		for fd, what := range openFiles() {
			if before[fd] == "" {
				left += fd + " " + what + "\n"
			}
		}
		if !strings.Contains(stacks, "nbio") && strings.Count(stacks, "internal/poller.") <= 2 && left == "" {
			return 0
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "left behind:\n%s\n%s\n", left, stacks)
			return 1
		}
	}
}

// openFiles returns what is open, by number, without the directory that is read for it.
func openFiles() map[string]string {
	open := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if what, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open[e.Name()] = what
		}
	}
	return open
}

// goroutineID names the calling goroutine.
func goroutineID() string {
	var buf [64]byte
	return string(bytes.Fields(buf[:runtime.Stack(buf[:], false)])[1])
}

// recv waits for a value.
func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(wait):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// none fails the test if there is a value already.
func none[T any](t testing.TB, ch <-chan T, what string) {
	t.Helper()
	select {
	case v := <-ch:
		t.Fatalf("unexpected %s: %v", what, v)
	default:
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair returns a connected pair of TCP sockets: a non-blocking descriptor and a connection of package net.
func pair(t testing.TB) (fd int, peer *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	s, err := ln.Accept()
	must(t, err)
	defer s.Close()
	t.Cleanup(func() { c.Close() })
	return dup(t, s.(*net.TCPConn)), c.(*net.TCPConn)
}

func dup(t testing.TB, c *net.TCPConn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(n uintptr) {
		fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0)
	}))
	must(t, err)
	return fd
}

// reset makes c's close a reset.
func reset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	must(t, c.SetLinger(0))
	must(t, c.Close())
}

// await waits in poll(2) until fd has all the events.
func await(t testing.TB, fd int, events int16) {
	t.Helper()
	for end := time.Now().Add(wait); time.Now().Before(end); {
		p := []unix.PollFd{{Fd: int32(fd), Events: events}}
		_, err := unix.Poll(p, 1000)
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if p[0].Revents&events == events {
			return
		}
	}
	t.Fatalf("events %#x never came", events)
}

// isOpen tells whether the number is a descriptor.
func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// readAll reads what is there. It returns io.EOF at the end and nil at EAGAIN.
func readAll(fd int) (data []byte, err error) {
	var buf [16 << 10]byte
	for {
		n, err := unix.Read(fd, buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return data, nil
		case err != nil:
			return data, err
		case n == 0:
			return data, io.EOF
		default:
			data = append(data, buf[:n]...)
		}
	}
}

// pattern is n bytes that reveal a lost or doubled piece.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}
