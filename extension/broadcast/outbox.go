package broadcast

import (
	"errors"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/work"
	"github.com/arpc-go/arpc/log"
)

// What may wait in an outbox; who sends waits at that for the processor, never for members.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 1 << 20
	// small is the number of members up to which who sends writes to them, if nobody else does.
	small = 32
)

// errBehind is for who sends while OnRefused does not return.
var errBehind = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "too many messages to the room wait for OnRefused to return"}

// An outbox is what waits to be given to the members of a room. One task at a time takes all of it and gives it to one member after the
// other: what came while it was busy is one write for each. So a burst to many members costs about one write for each of them, and
// takes no more memory than for one.
type outbox struct {
	room Room

	mu      sync.Mutex
	queue   []delivery
	bytes   int
	space   *sync.Cond // to append to queue; nil until somebody waits
	running bool
	calling bool // the task is in OnRefused, and may send

	batch []delivery // the task's
}

// delivery is one message on its way to the members of a room.
type delivery struct {
	seats   []*seat
	message *arpc.Message   // for all, or nil:
	each    []*arpc.Message // one for each of seats
	except  []*arpc.Client
}

func (d *delivery) of(i int) *arpc.Message {
	if d.message != nil {
		return d.message
	}
	return d.each[i]
}

func (d *delivery) size() int { return len(d.of(0).Buffer) }

// put hands a delivery to the task.
func (o *outbox) put(d delivery) error {
	o.mu.Lock()
	for o.full() && !o.calling {
		if o.space == nil {
			o.space = sync.NewCond(&o.mu)
		}
		o.space.Wait()
	}
	if o.full() {
		o.mu.Unlock()
		return errBehind
	}
	o.queue = append(o.queue, d)
	o.bytes += d.size()
	start := !o.running
	o.running = true
	o.mu.Unlock()
	switch {
	case !start:
	case len(d.seats) > small:
		work.Go(o)
	case o.next(): // one round only: others may send more meanwhile
		work.Go(o)
	}
	return nil
}

func (o *outbox) full() bool { return len(o.queue) >= maxWaiting || o.bytes >= maxWaitingBytes }

// RunTask implements work.Task.
func (o *outbox) RunTask() {
	for o.next() {
	}
}

// next delivers what waits. It reports whether there is more.
func (o *outbox) next() bool {
	o.mu.Lock()
	o.batch, o.queue, o.bytes = o.queue, o.batch[:0], 0
	if o.space != nil {
		o.space.Broadcast()
	}
	o.mu.Unlock()
	for ds := o.batch; len(ds) > 0; {
		n := 1
		for n < len(ds) && len(ds[n].seats) == len(ds[0].seats) && &ds[n].seats[0] == &ds[0].seats[0] {
			n++
		}
		o.deliver(ds[:n])
		ds = ds[n:]
	}
	clear(o.batch)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running = len(o.queue) > 0
	return o.running
}

// deliver gives messages to the same members. A panic, of a coder or a hook, costs what it interrupts and nothing else.
func (o *outbox) deliver(ds []delivery) {
	h := o.room.hub
	sent := 0
	defer func() {
		h.sent.Add(int64(sent))
		if p := recover(); p != nil {
			o.called(false)
			log.Error("broadcast: panic while sending to %v %q: %v\n%s", o.room.key.kind, o.room.key.name, p, debug.Stack())
		}
	}()
	for i, s := range ds[0].seats {
		c, ours := s.member.client, false
		for k := range ds {
			d := &ds[k]
			if len(d.except) > 0 && slices.Contains(d.except, c) {
				continue
			}
			flush, err := c.PushLater(d.of(i))
			if ours && errors.Is(err, arpc.ErrClientOverstock) {
				c.Flush() // there may be room then
				flush, err = c.PushLater(d.of(i))
				ours = false
			}
			if err != nil {
				o.refused(s.member, err)
				continue
			}
			ours = ours || flush
			sent++
		}
		if ours {
			c.Flush()
		}
	}
}

func (o *outbox) refused(m *member, err error) {
	h := o.room.hub
	h.refused.Add(1)
	if isStopped(err) {
		h.end(m) // its end is on its way here; nobody needs to run into it again
	}
	if f := h.config.refused; f != nil {
		o.called(true)
		f(o.room, m.client, err)
		o.called(false)
	}
}

// called notes whether OnRefused runs.
func (o *outbox) called(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calling = on
	if on && o.space != nil {
		o.space.Broadcast()
	}
}
