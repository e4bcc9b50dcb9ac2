package zookeeper

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/arpc-go/arpc/log"
)

// The answer to the first packet of a connection begins with its length, the version of the protocol and the session timeout that the
// server grants in milliseconds, 32 bits each, and the 64 bits of the session, which are 0 when it has expired.
const (
	answerLen = 20
	minAnswer = 36 // without the length itself: that, and a password of 16 bytes with its length
	maxAnswer = 1 << 10
)

var errAnswer = errors.New("not the answer of a ZooKeeper server")

// parseAnswer returns the session timeout. The head of an answer that has not come as a whole has none, but may be wrong already.
func parseAnswer(head []byte) (granted time.Duration, err error) {
	if len(head) >= 4 {
		if n := binary.BigEndian.Uint32(head); n < minAnswer || n > maxAnswer {
			return 0, errAnswer
		}
	}
	if len(head) < answerLen {
		return 0, nil
	}
	granted = time.Duration(int32(binary.BigEndian.Uint32(head[8:]))) * time.Millisecond
	if session := binary.BigEndian.Uint64(head[12:]); session != 0 && (granted < minSession || granted > maxSession) {
		return 0, errAnswer
	}
	return granted, nil
}

// wire is a connection to one server. zk does not close it when the session has expired, and waits for the answer to its
// first packet for a multiple of the session timeout, or for ever; a wire does not. It tells what timeout was granted, which zk keeps to
// itself, and refuses one with which zk would panic.
type wire struct {
	net.Conn
	timer   *time.Timer
	granted func(time.Duration)

	head []byte // what came of the answer; read by one goroutine at a time
}

// newWire closes nc unless the server answers within patience, and calls granted with the session timeout of the answer.
func newWire(nc net.Conn, patience time.Duration, granted func(time.Duration)) *wire {
	return &wire{Conn: nc, granted: granted, timer: time.AfterFunc(patience, func() { nc.Close() })} //nolint:errcheck // it is useless
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if missing := answerLen - len(w.head); missing > 0 && n > 0 {
		w.head = append(w.head, b[:min(n, missing)]...)
		granted, wrong := parseAnswer(w.head)
		if wrong != nil {
			return 0, wrong
		}
		if len(w.head) == answerLen {
			w.timer.Stop()
			w.granted(granted)
		}
	}
	return n, err
}

func (w *wire) Close() error {
	w.timer.Stop()
	return w.Conn.Close()
}

// A dialer makes the connections of one session, one at a time.
type dialer struct {
	ctx     context.Context // ends with the session
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	granted func(time.Duration)
	// patience is how long a server may take to be reached, and then to answer.
	patience time.Duration

	mu  sync.Mutex
	cur *wire
}

// Dial is a zk.Dialer.
func (d *dialer) Dial(network, addr string, _ time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.patience)
	defer cancel()
	nc, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ctx.Err(); err != nil {
		nc.Close() //nolint:errcheck // it is useless
		return nil, err
	}
	if d.cur != nil {
		d.cur.Close() //nolint:errcheck // zk has forgotten it
	}
	d.cur = newWire(nc, d.patience, d.granted)
	return d.cur, nil
}

// hangUp closes the connection that there is; zk makes another.
func (d *dialer) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur != nil {
		d.cur.Close() //nolint:errcheck // it is useless
	}
}

// ring is the zk.HostProvider that goes round the servers from a random one on. That of zk looks names up once, and fails when it cannot.
type ring struct {
	mu      sync.Mutex
	servers []string
	next    int
	tried   int
}

func (r *ring) Init(servers []string) error {
	r.servers = slices.Clone(servers)
	r.next = rand.IntN(len(servers))
	return nil
}

func (r *ring) Len() int { return len(r.servers) }

// Next returns the next server, and whether all were tried without success, upon which zk waits a second.
func (r *ring) Next() (server string, again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	server = r.servers[r.next]
	r.next = (r.next + 1) % len(r.servers)
	again = r.tried >= len(r.servers)
	if again {
		r.tried = 0
	}
	r.tried++
	return server, again
}

func (r *ring) Connected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tried = 0
}

// logger takes what zk says to the debug level.
type logger struct{}

func (logger) Printf(format string, args ...any) { log.Debug("micro/zookeeper: "+format, args...) }
