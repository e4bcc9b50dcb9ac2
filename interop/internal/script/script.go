// Package script is what both implementations are put through: the routes
// that either end serves and the checks that either end makes, written once
// against the little that their APIs have in common.
package script

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Timeout bounds every call and every wait.
const Timeout = 30 * time.Second

// Caller is an end of a connection.
type Caller interface {
	Call(method string, req, rsp any) error
	// CallAsync calls done once, with a function that decodes the answer or
	// gives the error.
	CallAsync(method string, req any, done func(bind func(v any) error)) error
	Notify(method string, data any) error
	NewStream(method string) Stream
}

// Context is what a handler gets.
type Context interface {
	Bind(v any) error
	Write(v any) error
	Error(v any) error
	Peer() Caller
}

// Point is a value for the codec.
type Point struct {
	X, Y int
	Name string
}

// Routes registers what an end serves, through handle. broadcast sends a
// notify to all clients; it is nil on an end that is a client.
func Routes(handle func(method string, async bool, h func(Context)), broadcast func(method string, v any)) {
	var mu sync.Mutex
	var noted []string

	handle("/echo", true, func(c Context) {
		var body []byte
		if err := c.Bind(&body); err != nil {
			c.Error(err)
			return
		}
		c.Write(bytes.Clone(body))
	})
	handle("/point", true, func(c Context) {
		var p Point
		if err := c.Bind(&p); err != nil {
			c.Error(err)
			return
		}
		c.Write(&Point{p.X + 1, p.Y - 1, p.Name + "!"})
	})
	handle("/nil", true, func(c Context) { c.Write(nil) })
	handle("/fail", true, func(c Context) {
		var text string
		c.Bind(&text)
		c.Error("failed: " + text)
	})
	handle("/failobject", true, func(c Context) { c.Error(map[string]int{"code": 7}) })
	// The two that must keep their order.
	handle("/note", false, func(c Context) {
		var text string
		if err := c.Bind(&text); err != nil {
			text = err.Error()
		}
		mu.Lock()
		noted = append(noted, text)
		mu.Unlock()
	})
	handle("/notes", false, func(c Context) {
		mu.Lock()
		list := slices.Clone(noted)
		noted = nil
		mu.Unlock()
		c.Write(strings.Join(list, ","))
	})
	// The rest makes this end the caller: the answer tells what came of it.
	handle("/back/call", true, func(c Context) {
		var body, answer []byte
		if err := c.Bind(&body); err != nil {
			c.Error(err)
			return
		}
		if err := c.Peer().Call("/echo", body, &answer); err != nil {
			c.Error(err)
			return
		}
		c.Write(answer)
	})
	handle("/back/fail", true, func(c Context) {
		c.Write(errorText(c.Peer().Call("/fail", "there", nil)))
	})
	handle("/back/unknown", true, func(c Context) {
		c.Write(errorText(c.Peer().Call("/no/such/method", nil, nil)))
	})
	handle("/back/async", true, func(c Context) {
		answers := make(chan string, 1)
		err := c.Peer().CallAsync("/echo", "async", func(bind func(any) error) {
			var text string
			if err := bind(&text); err != nil {
				text = errorText(err)
			}
			answers <- text
		})
		if err != nil {
			c.Error(err)
			return
		}
		c.Write(<-answers)
	})
	handle("/back/notify", true, func(c Context) {
		for _, text := range []string{"n1", "n2", "n3"} {
			if err := c.Peer().Notify("/note", text); err != nil {
				c.Error(err)
				return
			}
		}
		var list string
		if err := c.Peer().Call("/notes", nil, &list); err != nil {
			c.Error(err)
			return
		}
		c.Write(list)
	})
	if broadcast != nil {
		handle("/broadcast", false, func(c Context) {
			broadcast("/note", "broadcast")
			c.Write(nil)
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// Check makes every kind of call from c to the other end and returns what was
// not as it should be.
func Check(c Caller) error {
	var failures []error
	expect := func(what string, got, want any, err error) {
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", what, err))
		} else if got != want {
			failures = append(failures, fmt.Errorf("%s: %v, want %v", what, abbreviate(got), abbreviate(want)))
		}
	}
	fails := func(what string, err error, text string) {
		if err == nil || err.Error() != text {
			failures = append(failures, fmt.Errorf("%s: error %v, want %q", what, err, text))
		}
	}

	for _, size := range []int{0, 1, 2, 64, 1000, 4095, 4096, 4097, 70_000, 1 << 20} {
		want := Payload(nil, uint64(size), size)
		var got []byte
		err := c.Call("/echo", want, &got)
		expect(fmt.Sprintf("echo of %d bytes", size), string(got), string(want), err)
	}
	var text string
	err := c.Call("/echo", "text", &text)
	expect("echo of a string", text, "text", err)
	for _, name := range []string{"", "p", strings.Repeat("long", 50_000)} {
		var p Point
		err := c.Call("/point", &Point{1, 2, name}, &p)
		expect("struct", p, Point{2, 1, name + "!"}, err)
	}
	text = "not empty"
	err = c.Call("/nil", nil, &text)
	expect("empty request and answer", text, "", err)
	expect("answer ignored", nil, nil, c.Call("/echo", "x", nil))

	fails("error text", c.Call("/fail", "here", &text), "failed: here")
	fails("error value", c.Call("/failobject", nil, &text), `{"code":7}`)
	fails("unknown method", c.Call("/no/such/method", "x", &text), "method not found")
	fails("longest unknown method", c.Call("/"+strings.Repeat("m", 126), "x", &text), "method not found")

	for method, want := range map[string]string{"/echo": "async", "/fail": "failed: async", "/no/such/method": "method not found"} {
		answers := make(chan string, 2)
		err := c.CallAsync(method, "async", func(bind func(any) error) {
			var text string
			if err := bind(&text); err != nil {
				text = err.Error()
			}
			answers <- text
		})
		text := ""
		if err == nil {
			select {
			case text = <-answers:
			case <-time.After(Timeout):
				err = errors.New("no callback")
			}
		}
		expect("asynchronous "+method, text, want, err)
	}

	notes := func(what, want string) {
		var list string
		err := c.Call("/notes", nil, &list)
		expect(what, list, want, err)
	}
	notes("nothing noted yet", "")
	var want []string
	for i := range 200 {
		note := fmt.Sprint("note ", i)
		want = append(want, note)
		expect("notify", nil, nil, c.Notify("/note", note))
	}
	expect("notify of an unknown method", nil, nil, c.Notify("/no/such/method", "x"))
	notes("notifies in order", strings.Join(want, ","))

	var body []byte
	payload := Payload(nil, 99, 100_000)
	err = c.Call("/back/call", payload, &body)
	expect("call from the other end", string(body), string(payload), err)
	for method, want := range map[string]string{
		"/back/fail":    "failed: there",
		"/back/unknown": "method not found",
		"/back/async":   "async",
		"/back/notify":  "n1,n2,n3",
	} {
		err := c.Call(method, nil, &text)
		expect(method, text, want, err)
	}
	expect("broadcast", nil, nil, c.Call("/broadcast", nil, nil))
	// It is in our own notes now, which the other end asks for.
	err = c.Call("/back/notify", nil, &text)
	expect("broadcast arrived before what came after", text, "broadcast,n1,n2,n3", err)
	return errors.Join(failures...)
}

func abbreviate(v any) string {
	s := fmt.Sprintf("%#v", v)
	if len(s) > 200 {
		return fmt.Sprintf("%s... (%d bytes)", s[:200], len(s))
	}
	return s
}

// Storm makes calls on each connection from callers goroutines, calls each,
// and compares every answer.
func Storm(conns []Caller, callers, calls int) error {
	results := make(chan error, len(conns)*callers)
	for n, conn := range conns {
		for k := range callers {
			go func() { results <- burst(conn, uint64(n*callers+k), calls) }()
		}
	}
	var failures []error
	for range cap(results) {
		if err := <-results; err != nil {
			failures = append(failures, err)
		}
	}
	if len(failures) > 10 {
		failures = append(failures[:10], fmt.Errorf("and %d more", len(failures)-10))
	}
	return errors.Join(failures...)
}

func burst(conn Caller, caller uint64, calls int) error {
	var req, rsp []byte
	for i := range calls {
		id := caller<<32 | uint64(i)
		req = Payload(req, id, 8+int(id*7919%120))
		if err := conn.Call("/echo", req, &rsp); err != nil {
			return fmt.Errorf("caller %d, call %d: %w", caller, i, err)
		}
		if !bytes.Equal(req, rsp) {
			return fmt.Errorf("caller %d, call %d: the answer is another's: %x, want %x", caller, i, rsp, req)
		}
	}
	return nil
}

// Payload returns size bytes that only the number gives, in buf if that is
// large enough.
func Payload(buf []byte, number uint64, size int) []byte {
	buf = slices.Grow(buf[:0], size)[:size]
	x := number*0x9e3779b97f4a7c15 + 1
	for i := range buf {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		buf[i] = byte(x)
	}
	if size >= 8 {
		binary.LittleEndian.PutUint64(buf, number)
	}
	return buf
}

// Transform is a message coder's work: the payload is masked, one byte is
// appended and bit 3 of the reserved byte is set. It returns new memory.
func Transform(frame []byte) []byte {
	out := append(bytes.Clone(frame), 0xee)
	mask(out[:len(frame)])
	out[4] |= 1 << 3
	binary.LittleEndian.PutUint32(out, uint32(len(out)-16))
	return out
}

// Restore undoes Transform. A frame without the bit is damaged.
func Restore(frame []byte) ([]byte, error) {
	if frame[4]&(1<<3) == 0 || frame[len(frame)-1] != 0xee {
		return nil, errors.New("not transformed")
	}
	out := bytes.Clone(frame[:len(frame)-1])
	mask(out)
	out[4] &^= 1 << 3
	binary.LittleEndian.PutUint32(out, uint32(len(out)-16))
	return out, nil
}

func mask(frame []byte) {
	for i := 16 + int(frame[7]); i < len(frame); i++ {
		frame[i] ^= 0x5a
	}
}

// PongConn reports the pongs that come in on a connection with nothing else
// on it.
type PongConn struct {
	net.Conn
	pongs chan struct{}
	in    []byte
}

// Watch returns conn with its pongs watched.
func Watch(conn net.Conn) *PongConn {
	return &PongConn{Conn: conn, pongs: make(chan struct{}, 8)}
}

// Read implements net.Conn.
func (c *PongConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.in = append(c.in, b[:n]...)
	for len(c.in) >= 16 {
		if [16]byte(c.in) == [16]byte{5: 5} {
			c.pongs <- struct{}{}
		}
		c.in = c.in[16:]
	}
	return n, err
}

// CheckPing sends two pings, each of which must bring one pong.
func (c *PongConn) CheckPing(ping func()) error {
	for i := range 2 {
		ping()
		select {
		case <-c.pongs:
		case <-time.After(Timeout):
			return fmt.Errorf("ping %d brought no pong", i+1)
		}
	}
	return nil
}
