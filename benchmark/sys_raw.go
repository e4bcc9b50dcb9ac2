package main

import (
	"bytes"
	"net"
	"time"
)

// raw is what the machine's TCP can do for this pattern of load, not a system
// anybody would use: each end of a connection is one goroutine that takes what
// one read returns and writes what that caused with one write.
var rawSystem = &system{
	name: "raw", about: "plain TCP, the limit: a window of frames per connection, one goroutine at each end", baseline: "arpc",
	async: true,
	serve: serveRaw, dial: dialRaw,
}

// rawHeader is as long as arpc's, so that the bytes per call are about equal.
const rawHeader = 16

func serveRaw() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go echoRaw(conn, 256<<10)
		}
	}()
	return addr, nil
}

// echoRaw writes what it reads until the connection ends.
func echoRaw(conn net.Conn, buffer int) {
	defer conn.Close()
	buf := make([]byte, buffer)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

type rawClient struct {
	net.Conn
}

func dialRaw(addr string) (any, error) {
	conn, err := dialLoopback(addr)
	return rawClient{conn}, err
}

// runWindow: answers come in order, so the lanes take turns.
func (c rawClient) runWindow(l *load, g *groupLoad, lanes []lane) {
	var (
		window = uint64(len(lanes))
		size   = rawHeader + l.sc.size
		frame  = newPayload(size, lanes[0].id)
		begins = make([]time.Time, window) // when each lane's frame was issued, if it is timed
		out    = make([]byte, 0, size*len(lanes))
		in     = make([]byte, size*len(lanes))
		filled int    // bytes of in
		issued uint64 // frames so far; frame n belongs to lane n modulo window
		taken  uint64 // answers so far
	)
	defer func() {
		for range lanes {
			l.endLane()
		}
	}()
	for {
		out = out[:0]
		for !l.stopping.Load() && issued-taken < window {
			i := issued % window
			begins[i] = l.begin(issued/window + 1)
			stampPayload(frame, lanes[0].id, issued)
			out = append(out, frame...)
			issued++
		}
		if issued == taken {
			return
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				l.judge(&lanes[0], err, false)
				return
			}
		}
		n, err := c.Read(in[filled:])
		if err != nil {
			l.judge(&lanes[0], err, false)
			return
		}
		filled += n
		done := 0
		for ; filled-done >= size; done += size {
			ln := &lanes[taken%window]
			l.end(ln, begins[taken%window])
			stampPayload(frame, lanes[0].id, taken)
			if !l.judge(ln, nil, bytes.Equal(frame, in[done:done+size])) {
				return
			}
			taken++
		}
		filled = copy(in, in[done:filled])
	}
}
