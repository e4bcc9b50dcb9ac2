package main

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/examples/typed-web/thermostat"
)

// Degrees Celsius.
const (
	coldest  = 5
	warmest  = 30
	sensible = 23 // above it the one who wants it is asked
	outside  = 8
)

const (
	maxBody  = 4 << 10 // bytes of a message
	patience = time.Minute
)

var errStopping = &arpc.Error{Code: arpc.CodeUnavailable, Message: "the server stops"}

// house offers thermostat.House to pages, and asks them for their thermostat.Resident.
type house struct {
	thermostat.UnimplementedHouse
	server *arpc.Server
	life   context.Context // watches and questions end with it

	mu      sync.Mutex
	rooms   []*room
	version int           // counts changes
	changed chan struct{} // closed with the next change
}

type room struct {
	*thermostat.Room
	version int // of the house, with the room's last change
}

func newHouse(life context.Context) *house {
	h := &house{server: arpc.NewServer(arpc.WithCodec(codec.Protobuf{})), life: life, changed: make(chan struct{})}
	for _, r := range []*thermostat.Room{
		{Name: "Kitchen", Temperature: 19.4, Target: 20},
		{Name: "Living room", Temperature: 20.8, Target: 21.5},
		{Name: "Bedroom", Temperature: 18.2, Target: 17},
	} {
		h.rooms = append(h.rooms, &room{Room: r})
	}
	h.server.Handler.SetMaxBodyLen(maxBody)
	thermostat.RegisterHouse(h.server.Handler, h)
	return h
}

// live lets time pass.
func (h *house) live() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-h.life.Done():
			return
		case <-ticker.C:
			h.step()
		}
	}
}

// step is what happens in a moment.
func (h *house) step() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.rooms {
		before := proto.Clone(r.Room)
		if r.Temperature < r.Target-0.1 {
			r.Heating = true
		} else if r.Temperature >= r.Target+0.1 {
			r.Heating = false
		}
		next := r.Temperature - 0.004*(r.Temperature-outside)
		if r.Heating {
			next = r.Temperature + 0.15
		}
		r.Temperature = math.Round(next*100) / 100
		if !proto.Equal(before, r.Room) {
			h.change(r)
		}
	}
}

// change tells who watches of a change. The lock is held.
func (h *house) change(r *room) {
	h.version++
	r.version = h.version
	close(h.changed)
	h.changed = make(chan struct{})
}

// since returns the rooms that have changed since a version of the house, its present version, and what is closed when that
// ends.
func (h *house) since(version int) (rooms []*thermostat.Room, now int, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.rooms {
		if r.version > version {
			rooms = append(rooms, proto.CloneOf(r.Room))
		}
	}
	return rooms, h.version, h.changed
}

// Watch implements thermostat.HouseHandler. One who reads slowly gets the rooms less often, but always as they are.
func (h *house) Watch(_ *thermostat.WatchRequest, s arpc.TypedStream[thermostat.Room, thermostat.WatchRequest]) error {
	for version := -1; ; {
		rooms, now, changed := h.since(version)
		for _, r := range rooms {
			if err := s.Send(r); err != nil {
				return err
			}
		}
		version = now
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		case <-h.life.Done():
			return errStopping
		}
	}
}

// SetTarget implements thermostat.HouseHandler.
func (h *house) SetTarget(ctx *arpc.Context, req *thermostat.SetTargetRequest) (*thermostat.Room, error) {
	if !(req.Target >= coldest && req.Target <= warmest) { // not a number is neither
		return nil, &arpc.Error{Code: arpc.CodeOutOfRange, Message: fmt.Sprintf("a room has %d to %d °C", coldest, warmest)}
	}
	room := h.room(req.Room)
	if room == nil {
		return nil, &arpc.Error{Code: arpc.CodeNotFound, Message: fmt.Sprintf("there is no room %q", req.Room)}
	}
	if req.Target > sensible {
		if err := h.confirm(ctx, fmt.Sprintf("%.4g °C in the %s? Each degree more takes about 6 %% more energy.", req.Target, req.Room)); err != nil {
			return nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	room.Target = req.Target
	room.Heating = room.Temperature < room.Target
	h.change(room)
	return proto.CloneOf(room.Room), nil
}

func (h *house) room(name string) *room {
	for _, r := range h.rooms { // there are always the same
		if r.Name == name {
			return r
		}
	}
	return nil
}

// confirm asks the page that has called. Its call ends when the question does, and the question when the call does.
func (h *house) confirm(ctx *arpc.Context, question string) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer context.AfterFunc(h.life, cancel)()
	answer, err := thermostat.NewResidentClient(ctx.Client).Confirm(limited, &thermostat.Question{Text: question})
	if h.life.Err() != nil {
		return errStopping
	}
	if err != nil {
		return fmt.Errorf("asking: %w", err)
	}
	if !answer.Yes {
		return &arpc.Error{Code: arpc.CodeAborted, Message: "nothing was changed"}
	}
	return nil
}
