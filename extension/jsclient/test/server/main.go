// Command server is the Go end of the tests of the TypeScript client. It prints its address, and ends with its standard input.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/gateway"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/websocket"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address to listen on")
	auth := flag.Bool("auth", false, "demand a token that begins with good")
	body := flag.Int("body", 0, "longest body that is accepted")
	window := flag.Int("window", 0, "window of a stream")
	password := flag.String("password", "", "password of those who publish and subscribe")
	web := flag.Bool("http", false, "answer binary calls over HTTP as well, and print that address first")
	flag.Parse()
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is what matters
		os.Exit(0)
	}()
	s := newServer(*auth, *password, arpc.Limits{StreamWindow: *window})
	if *body > 0 {
		s.Handler.SetMaxBodyLen(*body)
	}
	if *web {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ln.Addr())
		go http.Serve(ln, gateway.New(s.Server).Binary()) //nolint:errcheck,gosec // it ends with the process
	}
	ln, err := websocket.Listen(*addr, websocket.AnyOrigin())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ln.Addr())
	if err := s.Serve(ln); err != nil && !errors.Is(err, arpc.ErrServerStopped) {
		log.Fatal(err)
	}
	select {} // what drains ends the process
}

func newServer(auth bool, password string, limits arpc.Limits) *pubsub.Server {
	s := topics(password, arpc.NewHandler(), limits)
	h := s.Handler
	if auth {
		h.HandleAuth(func(_ *arpc.Context, token []byte) (any, error) {
			if !strings.HasPrefix(string(token), "good") {
				return nil, &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "bad token"}
			}
			return string(token), nil
		})
	}
	calls(h)
	callbacks(s.Server)
	streams(h)
	return s
}

// calls registers what answers calls of a page.
func calls(h arpc.Handler) {
	echo := func(c *arpc.Context) { reply(c, append([]byte(nil), c.Body()...)) }
	h.Handle("/echo", echo)
	h.Handle("/echo/日本語/🦊", echo)
	arpc.NewMethod[any, any]("/json").Handle(h, func(_ *arpc.Context, v *any) (*any, error) { return v, nil })
	arpc.NewMethod[string, string]("/text").Handle(h, func(_ *arpc.Context, v *string) (*string, error) { return v, nil })
	h.Handle("/nil", func(c *arpc.Context) { reply(c, nil) })
	h.Handle("/whoami", func(c *arpc.Context) { reply(c, fmt.Sprint(c.Peer().Principal)) })
	h.Handle("/error", func(c *arpc.Context) {
		reply(c, &arpc.Error{Code: arpc.CodeNotFound, Message: "nö 🦊", Details: []arpc.Detail{
			{Name: "object", Value: map[string]any{"id": 7}}, {Name: "text", Value: "why"}, {Name: "bytes", Value: []byte{0, 255}},
		}})
	})
	h.Handle("/code", func(c *arpc.Context) {
		var code arpc.Code
		if err := c.Bind(&code); err != nil {
			reply(c, err)
			return
		}
		reply(c, &arpc.Error{Code: code, Message: code.String()})
	})
	h.Handle("/error/text", func(c *arpc.Context) { c.Error("bad") }) //nolint:errcheck // the test sees it
	h.Handle("/error/metadata", func(c *arpc.Context) {
		if err := c.SetMetadata("why", "so"); err != nil {
			log.Print(err)
		}
		reply(c, &arpc.Error{Code: arpc.CodeAborted, Message: "no"})
	})
	h.Handle("/error/value", func(c *arpc.Context) { c.Error(map[string]int{"code": 7}) }) //nolint:errcheck // the test sees it
	h.Handle("/panic", func(*arpc.Context) { panic("on purpose") })
	h.Handle("/left", func(c *arpc.Context) {
		t, ok := c.Deadline()
		if !ok {
			reply(c, "none")
			return
		}
		reply(c, time.Until(t).Milliseconds())
	})
	h.Handle("/metadata", func(c *arpc.Context) {
		for k, v := range c.Metadata() {
			if err := c.SetMetadata("re-"+k, v); err != nil {
				reply(c, err)
				return
			}
		}
		reply(c, c.Metadata())
	})

	// A handler that runs until it is stopped, and what tells why it was.
	causes := make(chan string, 100)
	h.Handle("/wait", func(c *arpc.Context) {
		c.Client.Notify("/waiting", nil, time.Second) //nolint:errcheck // the test waits for it
		<-c.Done()
		causes <- context.Cause(c).Error()
		reply(c, context.Cause(c))
	}, true)
	h.Handle("/cause", func(c *arpc.Context) { reply(c, <-causes) }, true)

	notes := make(chan []byte, 10000)
	h.Handle("/note", func(c *arpc.Context) { notes <- append([]byte(nil), c.Body()...) })
	h.Handle("/noted", func(c *arpc.Context) { reply(c, <-notes) }, true)
}

// callbacks registers what makes the server call a page.
func callbacks(s *arpc.Server) {
	h := s.Handler
	type order struct {
		Route    string
		Value    json.RawMessage
		Metadata arpc.Metadata
		Timeout  int // milliseconds
		Cancel   bool
		Count    int
	}
	type outcome struct {
		Value    string
		Code     arpc.Code
		Message  string
		Remote   bool
		Details  map[string]string
		Metadata arpc.Metadata
	}
	running := make(chan struct{}, 100)
	h.Handle("/running", func(*arpc.Context) { running <- struct{}{} })
	arpc.NewMethod[order, outcome]("/callme", arpc.Async).Handle(h, func(c *arpc.Context, o *order) (*outcome, error) {
		ctx, cancel := context.WithCancelCause(c)
		defer cancel(nil)
		if o.Timeout > 0 {
			var stop context.CancelFunc
			ctx, stop = context.WithTimeout(ctx, time.Duration(o.Timeout)*time.Millisecond)
			defer stop()
		}
		if o.Cancel {
			go func() {
				<-running
				cancel(errors.New("the server has changed its mind"))
			}()
		}
		ctx = arpc.WithMetadata(ctx, o.Metadata)
		var out outcome
		ctx = arpc.WithResponseMetadata(ctx, &out.Metadata)
		err := c.Client.CallWith(ctx, o.Route, []byte(o.Value), &out.Value)
		var e *arpc.Error
		if errors.As(err, &e) {
			out.Code, out.Message, out.Remote, out.Details = e.Code, e.Message, e.Remote, map[string]string{}
			for _, d := range e.Details {
				out.Details[d.Name] = string(d.Value.([]byte))
			}
		}
		return &out, nil
	})
	arpc.NewMethod[order, string]("/notifyme", arpc.Async).Handle(h, func(c *arpc.Context, o *order) (*string, error) {
		for i := range o.Count {
			if err := c.Client.Notify(o.Route, fmt.Sprint(i), time.Second); err != nil {
				return nil, err
			}
		}
		return new(string), nil
	})
	h.Handle("/broadcast", func(c *arpc.Context) {
		s.Broadcast("/all", string(c.Body()))
		reply(c, nil)
	})
	h.Handle("/drain", func(c *arpc.Context) {
		reply(c, nil)
		go func() {
			s.Shutdown(context.Background()) //nolint:errcheck // the test sees it
			os.Exit(0)
		}()
	})
	h.Handle("/kick", func(c *arpc.Context) { c.Client.Stop() }, true)
}

// streams registers what has to do with streams.
func streams(h arpc.Handler) {
	h.HandleStream("/s/echo", func(s *arpc.Stream) {
		for b, err := range s.All() {
			if err != nil || s.Send(b) != nil {
				return
			}
		}
	})
	// Sends as many messages as asked for, of a size, each with its number at the beginning.
	h.HandleStream("/s/source", func(s *arpc.Stream) {
		var o struct{ Count, Size int }
		if err := s.Recv(&o); err != nil {
			return
		}
		for i := range o.Count {
			if s.Send(numbered(i, o.Size)) != nil {
				return
			}
		}
	})
	// Takes a message each time that it is told to by /s/take, and answers with what it got in the end.
	take, sent := make(chan struct{}, 100000), make(chan string, 10)
	h.Handle("/s/take", func(c *arpc.Context) {
		var n int
		c.Bind(&n) //nolint:errcheck // 0 is nothing
		for range n {
			take <- struct{}{}
		}
		reply(c, nil)
	})
	h.HandleStream("/s/slow", func(s *arpc.Stream) {
		count, size := 0, 0
		for {
			<-take
			var b []byte
			err := s.Recv(&b)
			if err != nil {
				s.Send(fmt.Sprintf("%d messages, %d bytes", count, size)) //nolint:errcheck // the test sees it
				sent <- err.Error()
				return
			}
			count++
			size += len(b)
		}
	})
	h.HandleStream("/s/fail", func(s *arpc.Stream) {
		s.Send("one") //nolint:errcheck // the test sees it
		s.Reset(&arpc.Error{Code: arpc.CodeDataLoss, Message: "lost it"})
	})
	h.HandleStream("/s/metadata", func(s *arpc.Stream) {
		_, ok := s.Context().Deadline()
		s.SetMetadata("answer", "yes") //nolint:errcheck // the test sees it
		b, _ := json.Marshal(map[string]any{"metadata": s.Metadata(), "deadline": ok})
		s.Send(b) //nolint:errcheck // the test sees it
	})
	ended := make(chan string, 100)
	h.HandleStream("/s/until", func(s *arpc.Stream) {
		s.Send("ready") //nolint:errcheck // the test sees it
		<-s.Context().Done()
		ended <- context.Cause(s.Context()).Error()
	})
	h.Handle("/s/ended", func(c *arpc.Context) { reply(c, <-ended) }, true)

	// Opens a stream to the page, sends messages, and answers with what the page sent.
	type order struct {
		Route       string
		Count, Size int
	}
	arpc.NewMethod[order, []string]("/s/open", arpc.Async).Handle(h, func(c *arpc.Context, o *order) (*[]string, error) {
		s, err := c.Client.OpenStream(arpc.WithMetadata(c, arpc.Metadata{"from": "go"}), o.Route)
		if err != nil {
			return nil, err
		}
		go func() {
			for i := range o.Count {
				if s.Send(numbered(i, o.Size)) != nil {
					return
				}
			}
			s.CloseSend() //nolint:errcheck // the test sees it
		}()
		got := []string{}
		for b, err := range s.All() {
			if err != nil {
				return nil, err
			}
			got = append(got, string(b))
		}
		return &got, nil
	})
}

// numbered is a message of a size, at least that of its number.
func numbered(i, size int) []byte {
	b := fmt.Appendf(nil, "%d ", i)
	for len(b) < size {
		b = append(b, byte('a'+len(b)%26))
	}
	return b
}

func reply(c *arpc.Context, v any) {
	if err := c.Write(v); err != nil {
		log.Printf("answer of %s: %v", c.Message.Method(), err)
	}
}
