package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/arpc-go/arpc"
)

// The limits.
const (
	maxName    = 32 // characters of a person's and of a room's name
	maxText    = 2000
	maxHistory = 50 // messages of a room
	maxRooms   = 100
	maxBody    = 16 << 10 // bytes of a call
)

// What pages call.
var (
	// Join enters a room, and leaves the one before.
	Join = arpc.NewMethod[JoinRequest, JoinResponse]("/join")
	// Say sends a message to the room.
	Say = arpc.NewMethod[SayRequest, SayResponse]("/say")
)

// WhoAmI is called by the server: a page knows who its user is.
var WhoAmI = arpc.NewMethod[struct{}, WhoAmIResponse]("/whoami")

// What the server pushes.
const (
	routeMessage = "/message" // a Message, to those in the room
	routeMembers = "/members" // a Members, to those in the room
	routeRooms   = "/rooms"   // []string, to all
)

type (
	JoinRequest struct {
		Room string `json:"room"`
	}
	JoinResponse struct {
		You     string    `json:"you"` // the name, which another one may have had already
		Room    string    `json:"room"`
		Rooms   []string  `json:"rooms"`
		Members []string  `json:"members"`
		History []Message `json:"history"`
	}
	SayRequest struct {
		Text string `json:"text"`
	}
	SayResponse struct {
		ID int `json:"id"`
	}
	WhoAmIResponse struct {
		Name string `json:"name"`
	}
	Message struct {
		Room string `json:"room"`
		ID   int    `json:"id"` // counts the messages of the room
		From string `json:"from"`
		Text string `json:"text"`
		At   int64  `json:"at"` // milliseconds since 1970
	}
	Members struct {
		Room  string   `json:"room"`
		Names []string `json:"names"`
	}
)

// chat is the state. What is pushed is pushed with the lock held, which keeps it in order; a push never waits.
type chat struct {
	server  *arpc.Server
	mu      sync.Mutex
	rooms   map[string]*room
	members map[*arpc.Client]*member
}

type room struct {
	name    string
	count   int
	history []Message
	members []*member
}

type member struct {
	name string
	room *room
}

func newChat() *chat {
	c := &chat{server: arpc.NewServer(arpc.NewHandler()), rooms: map[string]*room{}, members: map[*arpc.Client]*member{}}
	h := c.server.Handler
	h.SetMaxBodyLen(maxBody)
	Join.Handle(h, c.join)
	Say.Handle(h, c.say)
	h.HandleDisconnected(c.leave)
	// A page that reads too slowly would miss something. It connects again, and gets the last messages.
	h.HandleOverstock(func(client *arpc.Client) { go client.Stop() })
	return c
}

func (c *chat) join(ctx *arpc.Context, req *JoinRequest) (*JoinResponse, error) {
	roomName, err := clean("room", req.Room, maxName)
	if err != nil {
		return nil, err
	}
	name, err := nameOf(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Client.CheckState() != nil {
		return nil, arpc.ErrClientStopped // leave has run, or will find nothing
	}
	r := c.rooms[roomName]
	if r == nil {
		if r, err = c.newRoom(roomName); err != nil {
			return nil, err
		}
	}
	c.remove(ctx.Client)
	m := &member{r.free(name), r}
	r.members = append(r.members, m)
	c.members[ctx.Client] = m
	c.pushMembers(r)
	return &JoinResponse{You: m.name, Room: r.name, Rooms: c.roomNames(), Members: r.names(), History: slices.Clone(r.history)}, nil
}

// nameOf calls the page to learn the name, once per connection.
func nameOf(ctx *arpc.Context) (string, error) {
	if name, ok := ctx.Client.Get("name"); ok {
		return name.(string), nil
	}
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	res, err := WhoAmI.Call(limited, ctx.Client, &struct{}{})
	if err != nil {
		return "", &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: "the page does not say who it is: " + err.Error()}
	}
	name, err := clean("name", res.Name, maxName)
	if err != nil {
		return "", err
	}
	ctx.Client.Set("name", name)
	return name, nil
}

func (c *chat) say(ctx *arpc.Context, req *SayRequest) (*SayResponse, error) {
	text, err := clean("message", req.Text, maxText)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.members[ctx.Client]
	if m == nil {
		return nil, &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: "join a room first"}
	}
	r := m.room
	r.count++
	msg := Message{r.name, r.count, m.name, text, time.Now().UnixMilli()}
	if r.history = append(r.history, msg); len(r.history) > maxHistory {
		r.history = slices.Delete(r.history, 0, 1)
	}
	c.push(r, routeMessage, &msg)
	return &SayResponse{msg.ID}, nil
}

// leave runs when a page is gone.
func (c *chat) leave(client *arpc.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(client)
}

func (c *chat) remove(client *arpc.Client) {
	m := c.members[client]
	if m == nil {
		return
	}
	delete(c.members, client)
	r := m.room
	r.members = slices.DeleteFunc(r.members, func(other *member) bool { return other == m })
	c.pushMembers(r)
}

// newRoom makes a room, in the place of an empty one if there are too many.
func (c *chat) newRoom(name string) (*room, error) {
	if len(c.rooms) >= maxRooms {
		var empty *room
		for _, r := range c.rooms {
			if len(r.members) == 0 {
				empty = r
				break
			}
		}
		if empty == nil {
			return nil, &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "there are too many rooms"}
		}
		delete(c.rooms, empty.name)
	}
	r := &room{name: name}
	c.rooms[name] = r
	c.server.Broadcast(routeRooms, c.roomNames())
	return r, nil
}

// push notifies all in a room; the message is encoded once.
func (c *chat) push(r *room, route string, v any) {
	c.server.BroadcastWithFilter(route, v, func(client *arpc.Client) bool {
		m := c.members[client]
		return m != nil && m.room == r
	})
}

func (c *chat) pushMembers(r *room) { c.push(r, routeMembers, &Members{r.name, r.names()}) }

func (c *chat) roomNames() []string {
	names := []string{}
	for name := range c.rooms {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (r *room) names() []string {
	names := []string{}
	for _, m := range r.members {
		names = append(names, m.name)
	}
	slices.Sort(names)
	return names
}

// free is the name, with a number if it is taken.
func (r *room) free(name string) string {
	taken := r.names()
	for i, unique := 2, name; ; i++ {
		if !slices.Contains(taken, unique) {
			return unique
		}
		unique = fmt.Sprintf("%s %d", name, i)
	}
}

// clean removes what is not for reading, such as marks that reverse the direction of text.
func clean(what, s string, limit int) (string, error) {
	const joiner = '\u200d' // in emoji
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError || r == joiner || r == '\n' && limit == maxText {
			return r
		}
		return -1
	}, s))
	if n := utf8.RuneCountInString(s); n == 0 || n > limit {
		return "", &arpc.Error{Code: arpc.CodeInvalidArgument, Message: fmt.Sprintf("a %s has 1 to %d characters", what, limit)}
	}
	return s, nil
}
