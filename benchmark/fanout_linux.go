package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// startPinned starts a worker that has one core of those that this process may use, and no second thread for goroutines.
func startPinned(ctx context.Context, role string, core int) (*worker, error) {
	// The affinity is a thread's, and a child inherits that of the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	if all.Count() < 2 {
		return nil, errors.New("client and server need a core each")
	}
	for i := 0; one.Count() == 0; i++ {
		if all.IsSet(i) {
			if core == 0 {
				one.Set(i)
			}
			core--
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, os.NewSyscallError("sched_setaffinity", err)
	}
	defer unix.SchedSetaffinity(0, &all) //nolint:errcheck // it was allowed before
	return startWorker(ctx, role, "GOMAXPROCS=1")
}

// fanOutClient is the publisher and all subscribers.
type fanOutClient struct {
	sys        *fanOutSystem
	size       int // of a delivery, in bytes
	flight     int
	publisher  int // descriptor
	subs       []fanOutSub
	poll       int
	count      []int // of each message in flight, how many subscribers have it
	published  uint64
	done       uint64 // messages that all subscribers have
	frames     []byte
	buf        []byte
	deliveries atomic.Uint64
	wrong      uint64
	stop       atomic.Bool
	ended      chan error
}

// fanOutSub is a subscriber.
type fanOutSub struct {
	fd   int
	next uint64 // the message whose delivery is under way
	have int    // bytes of it
}

func (c *fanOutClient) obey(o order) (reply, error) {
	switch o.Do {
	case doStart:
		return reply{}, c.start(o)
	case doMark:
		m, err := takeMark(nil)
		if err == nil {
			m.Calls = []uint64{c.deliveries.Load()}
		}
		select {
		case err = <-c.ended:
			c.ended <- err
		default:
		}
		return reply{Mark: m}, err
	case doStop:
		c.stop.Store(true)
		if err := <-c.ended; err != nil {
			return reply{}, err
		}
		return reply{Load: &loadResult{Mismatches: c.wrong}}, nil
	default:
		return reply{}, fmt.Errorf("a fan-out client cannot %q", o.Do)
	}
}

func (c *fanOutClient) start(o order) error {
	if c.sys = fanOutSystemByName(o.System); c.sys == nil {
		return fmt.Errorf("no fan-out system %q", o.System)
	}
	c.flight, c.size = o.Flight, c.sys.before+fanOutPayload+c.sys.after
	c.count, c.buf, c.ended = make([]int, o.Flight), make([]byte, 64<<10), make(chan error, 1)
	var err error
	if c.poll, err = syscall.EpollCreate1(0); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	c.subs = make([]fanOutSub, o.Conns)
	for i := range c.subs {
		s := &c.subs[i]
		if s.fd, err = dialDescriptor(o.Addr); err != nil {
			return err
		}
		if err = c.sys.subscribe(descriptor(s.fd)); err != nil {
			return fmt.Errorf("subscriber %d: %w", i, err)
		}
		if err = c.watch(s.fd, i); err != nil {
			return err
		}
	}
	if c.publisher, err = dialDescriptor(o.Addr); err != nil {
		return err
	}
	if err = c.sys.begin(descriptor(c.publisher)); err != nil {
		return fmt.Errorf("publisher: %w", err)
	}
	go func() { c.ended <- c.run() }()
	return nil
}

func (c *fanOutClient) watch(fd, i int) error {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("set nonblock", err)
	}
	return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(c.poll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}))
}

func (c *fanOutClient) run() error {
	events := make([]syscall.EpollEvent, 512)
	payload := make([]byte, fanOutPayload)
	for !c.stop.Load() {
		if room := c.flight - int(c.published-c.done); room > 0 {
			b := c.frames[:0]
			for range room {
				binary.LittleEndian.PutUint64(payload, c.published)
				b = c.sys.publish(b, payload)
				c.published++
			}
			c.frames = b
			if _, err := descriptor(c.publisher).Write(b); err != nil {
				return err
			}
		}
		n, err := syscall.EpollWait(c.poll, events, 0)
		if err != nil && err != syscall.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		if n <= 0 {
			runtime.Gosched()
			continue
		}
		for _, ev := range events[:n] {
			if err := c.read(&c.subs[ev.Fd]); err != nil {
				return err
			}
		}
	}
	return nil
}

// read takes what a subscriber has got, and counts it.
func (c *fanOutClient) read(s *fanOutSub) error {
	n, err := syscall.Read(s.fd, c.buf)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return nil
	case err != nil:
		return os.NewSyscallError("read", err)
	case n == 0:
		return errors.New("the server has closed the connection of a subscriber")
	}
	for b := c.buf[:n]; ; {
		if s.have == 0 && c.sys.skip != "" {
			b = bytes.TrimPrefix(b, []byte(c.sys.skip))
		}
		if at := c.sys.before - s.have; at >= 0 && at+8 <= len(b) {
			if binary.LittleEndian.Uint64(b[at:]) != s.next {
				c.wrong++
			}
		}
		need := c.size - s.have
		if len(b) < need {
			s.have += len(b)
			return nil
		}
		b, s.have = b[need:], 0
		c.deliveries.Add(1)
		k := &c.count[s.next%uint64(c.flight)]
		s.next++
		if *k++; *k == len(c.subs) {
			*k = 0
			c.done++
		}
	}
}

// A descriptor is a blocking socket that the runtime knows nothing of.
type descriptor int

func (d descriptor) Read(p []byte) (int, error) {
	n, err := syscall.Read(int(d), p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (d descriptor) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		m, err := syscall.Write(int(d), p[n:])
		if err != nil {
			return n, os.NewSyscallError("write", err)
		}
		n += m
	}
	return len(p), nil
}

func dialDescriptor(addr string) (int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 0, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	// Reset at the end of the process, see dialLoopback.
	if err = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}); err == nil {
		err = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	}
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: n, Addr: ip.As4()})
	}
	if err != nil {
		syscall.Close(fd)
		return 0, fmt.Errorf("dial %s: %w", addr, err)
	}
	return fd, nil
}
