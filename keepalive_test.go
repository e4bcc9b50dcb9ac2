package arpc

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"testing"
	"time"
)

// quietLimit is a limit on silence that a test can wait for.
const quietLimit = time.Second

const idleText = "nothing received within the idle limit"

// farewellIdle is what a peer of version 2 is told that is closed for its silence.
var farewellIdle = hex.EncodeToString(goAwayBytes(true, idleText))

// quietEnds runs a test with each kind of live end that has the limit, against a peer that speaks bytes, in either version.
// It is told when the peer may have been heard last, at the earliest.
func quietEnds(t *testing.T, f func(t *testing.T, c *Client, p *rawPeer, v2 bool, since time.Time)) {
	for _, v2 := range []bool{false, true} {
		name := map[bool]string{false: "version 1", true: "version 2"}[v2]
		t.Run(name+" client", func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			if v2 {
				c, p := acceptGreeted(t, fullHello(), Limits{Idle: quietLimit})
				f(t, c, p, v2, start)
				return
			}
			ln := listenRaw(t)
			c := dialClient(t, ln.addr(), Protocol(1), Limits{Idle: quietLimit})
			f(t, c, ln.accept(), v2, start)
		})
		for _, a := range adapters {
			t.Run(name+" server "+a.name, func(t *testing.T) {
				t.Parallel()
				start := time.Now()
				s := startServer(t, a.opt, Limits{Idle: quietLimit})
				var p *rawPeer
				if v2 {
					p = dialGreeted(t, s.addr, fullHello())
				} else {
					p = dialRaw(t, s.addr)
				}
				f(t, s.waitClients(t, 1)[0], p, v2, start)
			})
		}
	}
}

// A peer that is silent but lives is pinged, and kept for as long as it answers.
func TestSilentPeerIsKept(t *testing.T) {
	quietEnds(t, func(t *testing.T, c *Client, p *rawPeer, _ bool, start time.Time) {
		m, ended, r := pendingCall(t, c, p)
		pings := 0
		for time.Since(start) < 3*quietLimit {
			if m := p.frame(); !bytes.Equal(m.Buffer, pingFrame) {
				t.Fatalf("%x", m.Buffer)
			}
			pings++
			p.send(pongFrame)
		}
		must(t, c.CheckState())
		p.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "late"))
		if err := recv(t, ended, "end of the call"); err != nil || *r != "late" {
			t.Errorf("%q, %v", *r, err)
		}
		// One for each silence of half the limit, which is measured coarsely.
		if d := time.Since(start); pings < 2 || pings > int(d/(quietLimit/3)) {
			t.Errorf("%d pings within %v", pings, d)
		}
	})
}

// A peer that answers no ping is closed after the limit, with the reason: everything in flight ends by it, and a peer of
// version 2 is told (V2-GO-3).
func TestDeadPeerIsClosed(t *testing.T) {
	quietEnds(t, func(t *testing.T, c *Client, p *rawPeer, v2 bool, start time.Time) {
		_, ended, _ := pendingCall(t, c, p)
		st, err := c.OpenStream(patient(t), "/stream")
		must(t, err)
		must(t, st.Send("x"))
		if m := p.frame(); m.Cmd()&cmdMask != CmdStream {
			t.Fatalf("%x", m.Buffer)
		}
		wantLost(t, "the call", recv(t, ended, "end of the call"), idleText)
		if d := time.Since(start); d < quietLimit/2 {
			t.Errorf("closed after %v already", d)
		}
		wantLost(t, "the stream", st.Recv(new(string)), idleText)
		wantLost(t, "the stream's context", context.Cause(st.Context()), idleText)
		if c.dial == nil {
			wantLost(t, "a call afterwards", c.Call("/x", nil, nil, patience), idleText)
		}
		want := hex.EncodeToString(pingFrame)
		if v2 {
			want += farewellIdle
		}
		if rest := hex.EncodeToString(p.end()); rest != want {
			t.Errorf("the peer got %s, want %s", rest, want)
		}
	})
}

// Whatever comes is a sign of life: pings of the peer's, which need nothing of ours but pongs.
func TestPeersOwnPingsKeepIt(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		t.Parallel()
		s := startServer(t, adapter, Limits{Idle: quietLimit})
		p := dialRaw(t, s.addr)
		c := s.waitClients(t, 1)[0]
		for start := time.Now(); time.Since(start) < 3*quietLimit; {
			p.send(pingFrame)
			time.Sleep(quietLimit / 10) // the peer's own interval
		}
		must(t, c.CheckState())
	})
}

// Both ends of one connection have the limit, and nothing to say to each other for a while.
func TestBothEndsKeepEachOther(t *testing.T) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, a.opt, Limits{Idle: quietLimit})
			entered, release := make(chan struct{}, 1), make(chan struct{})
			s.Handler.Handle("/hold", func(c *Context) { entered <- struct{}{}; <-release; c.Write("held") })
			h := NewHandler()
			h.HandleDisconnected(func(*Client) { t.Error("disconnected") })
			c, err := NewClient(dialer(s.addr), h, Limits{Idle: quietLimit})
			must(t, err)
			ended := make(chan error, 1)
			go func() { ended <- c.Call("/hold", nil, nil, patience) }()
			recv(t, entered, "request")
			<-time.After(3 * quietLimit)
			close(release)
			if err := recv(t, ended, "end of the call"); err != nil {
				t.Errorf("%v", err)
			}
			h.HandleDisconnected(nil)
			c.Stop()
		})
	}
}

// A client's connection that drains has its own pings: what is in flight there lasts longer than the limit.
func TestKeptWhileGoingAway(t *testing.T) {
	t.Run("connected again", func(t *testing.T) {
		t.Parallel()
		a := newAwayClient(t, Limits{Idle: quietLimit})
		m, ended, r := pendingCall(t, a.Client, a.p)
		a.p.send(goAwayBytes(false, "away"))
		p := a.accept()
		go answerPings(p)
		must(t, a.WaitReady(patient(t)))
		keptFor(t, a.p, 2*quietLimit)
		a.p.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "late"))
		if err := recv(t, ended, "end of the call"); err != nil || *r != "late" {
			t.Errorf("%q, %v", *r, err)
		}
	})
	t.Run("not connected", func(t *testing.T) {
		t.Parallel()
		ln := listenRaw(t)
		first := make(chan struct{}, 1)
		first <- struct{}{}
		made := make(chan *Client, 1)
		go func() {
			c, err := NewClient(func() (net.Conn, error) {
				select {
				case <-first:
					return dialer(ln.addr())()
				default:
					return nil, errGate
				}
			}, NewHandler(), Limits{Idle: quietLimit}, Backoff(time.Hour, time.Hour))
			if err != nil {
				t.Error(err)
			}
			made <- c
		}()
		p := ln.accept()
		p.frame()
		p.send(helloFrame(CmdPong, fullHello()))
		c := recv(t, made, "client")
		t.Cleanup(c.Stop)
		m, ended, r := pendingCall(t, c, p)
		p.send(goAwayBytes(false, "away"))
		keptFor(t, p, 2*quietLimit)
		p.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "late"))
		if err := recv(t, ended, "end of the call"); err != nil || *r != "late" {
			t.Errorf("%q, %v", *r, err)
		}
	})
	t.Run("a server's", func(t *testing.T) {
		t.Parallel()
		s := startServer(t, Limits{Idle: quietLimit})
		p := dialGreeted(t, s.addr, fullHello())
		m, ended, r := pendingCall(t, s.waitClients(t, 1)[0], p)
		p.send(goAwayBytes(false, "away"))
		keptFor(t, p, 2*quietLimit)
		p.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "late"))
		if err := recv(t, ended, "end of the call"); err != nil || *r != "late" {
			t.Errorf("%q, %v", *r, err)
		}
	})
}

// answerPings answers pings until the connection ends.
func answerPings(p *rawPeer) {
	for {
		m, err := readFrame(p.Conn)
		if err != nil {
			return
		}
		if m.Cmd() == CmdPing {
			p.Conn.Write(pongFrame) //nolint:errcheck // the end of reading says so too
		}
	}
}

// keptFor answers pings for a time.
func keptFor(t *testing.T, p *rawPeer, d time.Duration) {
	t.Helper()
	for start := time.Now(); time.Since(start) < d; {
		m, err := readFrame(p.Conn)
		if err != nil {
			t.Fatalf("the connection ended after %v: %v", time.Since(start), err)
		}
		if m.Cmd() != CmdPing {
			t.Fatalf("%x", m.Buffer)
		}
		p.send(pongFrame)
	}
}

// A peer that has yet to authenticate itself is pinged too, and a dead one is closed for the earlier of both limits.
func TestLockedPeerIsPinged(t *testing.T) {
	t.Parallel()
	s := startServer(t, Limits{Idle: quietLimit, Handshake: time.Hour})
	s.Handler.HandleAuth(authBy)
	p := dialGreeted(t, s.addr, fullHello())
	keptFor(t, p, 2*quietLimit)
	if rest := hex.EncodeToString(p.end()); rest != hex.EncodeToString(pingFrame)+farewellIdle {
		t.Errorf("the peer got %s", rest)
	}
}

// V1-PING-4: pings do not pass the coders.
func TestPingBesideCoders(t *testing.T) {
	h := NewHandler()
	h.UseCoder(appender{})
	ln := listenRaw(t)
	c := dialClient(t, ln.addr(), h, Protocol(1))
	p := ln.accept()
	c.Ping()
	p.wants("ping", goldenPing)
}

// bubbleKeepalive has pings of Client.Keepalive to a dead peer, at their times, until the limit on silence; see
// TestPipeInBubble.
func bubbleKeepalive(t *testing.T) {
	here, there := net.Pipe()
	pings := make(chan time.Time, 100)
	go func() {
		for {
			m, err := readFrame(there)
			if err != nil {
				close(pings)
				return
			}
			if m.Cmd() == CmdPing {
				pings <- time.Now()
			}
		}
	}()
	dialled := false
	c, err := NewClient(func() (net.Conn, error) {
		if dialled {
			return nil, errGate
		}
		dialled = true
		return here, nil
	}, NewHandler(), Protocol(1), Limits{Idle: time.Hour}, Backoff(24*time.Hour, 24*time.Hour))
	must(t, err)
	c.Keepalive(10 * time.Minute)
	start := time.Now()
	n := 0
	for at := range pings {
		n++
		if d := at.Sub(start); d%(10*time.Minute) != 0 && (d < 30*time.Minute || d > 31*time.Minute) {
			t.Errorf("a ping after %v", d)
		}
	}
	if d := time.Since(start); d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("closed after %v", d)
	}
	if n < 5 || n > 7 {
		t.Errorf("%d pings", n)
	}
	wantLost(t, "CheckState", c.CheckState())
	c.Stop()
	there.Close()
	time.Sleep(time.Minute) // for what ends in the background
}
