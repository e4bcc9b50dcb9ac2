package script

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"time"
)

// Stream is an end of a stream.
type Stream interface {
	Send(v any) error
	SendAndClose(v any) error
	CloseSend() error
	Recv(v any) error
}

// How much the checks send: messages that are small and many, and large ones.
const (
	manyMessages  = 10_000
	largeMessages = 8
	largeSize     = 1 << 20
)

// StreamRoutes registers the streams that an end serves, through handle. Each handler receives until the end of input and
// ends its own output, as the published arpc frees a stream only then.
func StreamRoutes(handle func(method string, h func(Stream))) {
	handle("/stream/echo", func(s Stream) {
		for {
			var b []byte
			if s.Recv(&b) != nil || s.Send(b) != nil {
				s.CloseSend()
				return
			}
		}
	})
	// The request is a number of messages and their size, as text.
	handle("/stream/source", func(s Stream) {
		var req string
		var n, size int
		if s.Recv(&req) == nil {
			fmt.Sscan(req, &n, &size)
		}
		drain(s)
		for i := range n {
			if s.Send(Payload(nil, uint64(i), size)) != nil {
				break
			}
		}
		s.CloseSend()
	})
	handle("/stream/sink", func(s Stream) {
		var t tally
		for {
			var b []byte
			if s.Recv(&b) != nil {
				s.SendAndClose(t.String())
				return
			}
			t.add(b)
		}
	})
	// It speaks first, and goes on listening when it has said everything.
	handle("/stream/greet", func(s Stream) {
		s.Send("hello")
		s.SendAndClose("that is all")
		drain(s)
	})
	handle("/stream/point", func(s Stream) {
		for {
			var p Point
			if s.Recv(&p) != nil {
				s.CloseSend()
				return
			}
			s.Send(&Point{p.X + 1, p.Y - 1, p.Name + "!"})
		}
	})
}

// drain receives until the end of input and says how many messages came.
func drain(s Stream) (n int) {
	var b []byte
	for s.Recv(&b) == nil {
		n++
	}
	return n
}

// tally tells apart two sequences of messages.
type tally struct {
	n, bytes int
	sum      uint32
}

func (t *tally) add(b []byte) {
	t.n++
	t.bytes += len(b)
	t.sum = crc32.Update(t.sum, crc32.IEEETable, append(b, 0))
}

func (t *tally) String() string {
	return fmt.Sprintf("%d messages, %d bytes, %08x", t.n, t.bytes, t.sum)
}

// tallyOf is that of messages of Payload.
func tallyOf(n, size int) string {
	var t tally
	for i := range n {
		t.add(Payload(nil, uint64(i), size))
	}
	return t.String()
}

// StreamChecks are the kinds of stream that either end opens to the other.
var StreamChecks = []struct {
	Name  string
	Flood bool // one end sends as fast as it can
	Check func(Caller) error
}{
	{"lockstep", false, func(c Caller) error {
		s := c.NewStream("/stream/echo")
		for i, size := range []int{1, 2, 64, 1000, 4096, 70_000, largeSize} {
			if err := echoed(s, Payload(nil, uint64(i), size)); err != nil {
				return err
			}
		}
		return errors.Join(s.CloseSend(), ended(s))
	}},
	{"text and structs", false, func(c Caller) error {
		s := c.NewStream("/stream/echo")
		var text string
		if err := errors.Join(s.Send("text"), s.Recv(&text)); err != nil || text != "text" {
			return fmt.Errorf("%q: %w", text, err)
		}
		if err := errors.Join(s.CloseSend(), ended(s)); err != nil {
			return err
		}
		s = c.NewStream("/stream/point")
		for i := range 10 {
			var p Point
			if err := errors.Join(s.Send(&Point{i, i, "p"}), s.Recv(&p)); err != nil || p != (Point{i + 1, i - 1, "p!"}) {
				return fmt.Errorf("%v: %w", p, err)
			}
		}
		return errors.Join(s.CloseSend(), ended(s))
	}},
	{"SendAndClose", false, func(c Caller) error {
		s := c.NewStream("/stream/echo")
		if err := s.SendAndClose("only"); err != nil {
			return err
		}
		var text string
		if err := s.Recv(&text); err != nil || text != "only" {
			return fmt.Errorf("%q: %w", text, err)
		}
		if s.Send("more") == nil {
			return errors.New("send after SendAndClose succeeded")
		}
		return ended(s)
	}},
	{"other end closes first", false, func(c Caller) error {
		s := c.NewStream("/stream/greet")
		if err := s.Send("begin"); err != nil {
			return err
		}
		for _, want := range []string{"hello", "that is all"} {
			var text string
			if err := s.Recv(&text); err != nil || text != want {
				return fmt.Errorf("%q instead of %q: %w", text, want, err)
			}
		}
		if err := ended(s); err != nil {
			return err
		}
		for range 3 { // the other direction is open still
			if err := s.Send("more"); err != nil {
				return fmt.Errorf("after the other end closed: %w", err)
			}
		}
		return s.CloseSend()
	}},
	{"nothing but an end", false, func(c Caller) error {
		s := c.NewStream("/stream/sink")
		return errors.Join(s.CloseSend(), answered(s, tallyOf(0, 0)))
	}},
	{"many to the other end", true, func(c Caller) error { return sunk(c, manyMessages, 8) }},
	{"large to the other end", true, func(c Caller) error { return sunk(c, largeMessages, largeSize) }},
	{"many from the other end", true, func(c Caller) error { return sourced(c, manyMessages, 8) }},
	{"large from the other end", true, func(c Caller) error { return sourced(c, largeMessages, largeSize) }},
	{"many both ways", true, func(c Caller) error {
		s := c.NewStream("/stream/echo")
		sent := make(chan error, 1)
		go func() {
			for i := range manyMessages {
				if err := s.Send(Payload(nil, uint64(i), 8)); err != nil {
					sent <- err
					return
				}
			}
			sent <- s.CloseSend()
		}()
		err := received(s, manyMessages, 8)
		return errors.Join(err, <-sent)
	}},
	{"beside each other and calls", false, func(c Caller) error {
		const streams = 50
		results := make(chan error, 2*streams)
		for i := range streams {
			go func() {
				s := c.NewStream("/stream/echo")
				for k := range 20 {
					if err := echoed(s, Payload(nil, uint64(i*1000+k), 8+i*k)); err != nil {
						results <- fmt.Errorf("stream %d: %w", i, err)
						return
					}
				}
				results <- errors.Join(s.CloseSend(), ended(s))
			}()
			go func() { results <- burst(c, uint64(i), 20) }()
		}
		var failures []error
		for range cap(results) {
			failures = append(failures, <-results)
		}
		return errors.Join(failures...)
	}},
}

// CheckStream makes one of the checks within Timeout: a published Recv cannot be given up.
func CheckStream(c Caller, check func(Caller) error) error {
	result := make(chan error, 1)
	go func() { result <- check(c) }()
	timer := time.NewTimer(Timeout)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return errors.New("not over in time")
	}
}

// StreamBack registers the route with which the other end makes this one do a stream check.
func StreamBack(handle func(method string, async bool, h func(Context))) {
	handle("/back/stream", true, func(c Context) {
		var text string
		c.Bind(&text)
		i, err := strconv.Atoi(text)
		if err == nil {
			err = CheckStream(c.Peer(), StreamChecks[i].Check)
		}
		if err != nil {
			c.Write(strings.TrimSpace(err.Error()))
			return
		}
		c.Write("well")
	})
}

// CheckBack makes the other end do a stream check.
func CheckBack(c Caller, i int) error {
	var text string
	if err := c.Call("/back/stream", strconv.Itoa(i), &text); err != nil {
		return err
	}
	if text != "well" {
		return errors.New(text)
	}
	return nil
}

func echoed(s Stream, want []byte) error {
	if err := s.Send(want); err != nil {
		return fmt.Errorf("send of %d bytes: %w", len(want), err)
	}
	var got []byte
	if err := s.Recv(&got); err != nil {
		return fmt.Errorf("recv of %d bytes: %w", len(want), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back as %d others", len(want), len(got))
	}
	return nil
}

// ended checks that a stream has no more messages.
func ended(s Stream) error {
	var b []byte
	if err := s.Recv(&b); err != io.EOF {
		return fmt.Errorf("recv at the end: %d bytes, %w", len(b), err)
	}
	return nil
}

func answered(s Stream, want string) error {
	var text string
	if err := s.Recv(&text); err != nil || text != want {
		return fmt.Errorf("%q instead of %q: %w", text, want, err)
	}
	return ended(s)
}

func sunk(c Caller, n, size int) error {
	s := c.NewStream("/stream/sink")
	for i := range n {
		if err := s.Send(Payload(nil, uint64(i), size)); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
	}
	return errors.Join(s.CloseSend(), answered(s, tallyOf(n, size)))
}

func sourced(c Caller, n, size int) error {
	s := c.NewStream("/stream/source")
	if err := s.SendAndClose(fmt.Sprint(n, size)); err != nil {
		return err
	}
	return received(s, n, size)
}

// received checks that the messages of Payload come, and then the end.
func received(s Stream, n, size int) error {
	for i := range n {
		var b []byte
		if err := s.Recv(&b); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if !bytes.Equal(b, Payload(nil, uint64(i), size)) {
			return fmt.Errorf("message %d is another", i)
		}
	}
	return ended(s)
}
