// Command oldserver serves the pages of the published arpc's examples as they are, and is the server of this module that they talk
// to. It prints its address, then every notification that it gets, and ends with its standard input, of which each line is a command.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/gateway"
	"github.com/arpc-go/arpc/extension/websocket"
)

// pages are the examples with a page, by the path that they are served under here.
var pages = map[string]string{
	"/webchat/": "examples/webchat/chat.html",
	"/httprpc/": "examples/httprpc/chat.html",
	"/hello/":   "examples/protocols/websocket/jsclient/hello.html",
}

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address to listen on")
	module := flag.String("module", "", "directory of the published module")
	script := flag.String("script", "", "file that the pages get as arpc.js")
	flag.Parse()

	s := arpc.NewServer(arpc.NewHandler())
	room := &room{users: map[*arpc.Client]uint64{}, next: 10000}
	room.routes(s.Handler)
	examples(s.Handler)
	answers(s.Handler)

	mux := http.NewServeMux()
	for path, file := range pages {
		mux.HandleFunc(path+"{$}", serveFile(filepath.Join(*module, filepath.FromSlash(file))))
		mux.HandleFunc(path+"arpc.js", serveFile(*script))
	}
	mux.HandleFunc("/favicon.ico", func(http.ResponseWriter, *http.Request) {})
	ws := websocket.NewHandler(s)
	mux.Handle("/ws", ws)
	mux.Handle("/ws/rpc", ws)
	mux.Handle("/http/rpc", gateway.New(s).Binary())
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ln.Addr())
	go func() { log.Fatal(http.Serve(ln, mux)) }() //nolint:gosec // it ends with the process

	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "drop": // all connections
			s.ForEach(func(c *arpc.Client) { c.Stop() })
		case "shutdown": // of the chat
			room.broadcast("/chat/server/shutdown", nil)
		default:
			log.Fatalf("unknown command %q", in.Text())
		}
	}
}

func serveFile(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		http.ServeFile(w, r, name)
	}
}

// A room has all connections, those of the other pages too, which log what they do not handle.
type room struct {
	mu    sync.Mutex
	users map[*arpc.Client]uint64
	next  uint64
}

type message struct {
	User      uint64 `json:"user"`
	Message   string `json:"message"`
	Timestamp int64  `json:"timestamp"`
}

func (r *room) routes(h arpc.Handler) {
	h.HandleConnected(func(c *arpc.Client) {
		r.mu.Lock()
		id := r.next
		r.next++
		r.users[c] = id
		r.mu.Unlock()
		notify(c, "/server/notify", "Welcome!") // that of hello.html
		notify(c, "/chat/server/userid", fmt.Sprint(id))
		r.broadcast("/chat/server/userenter", &message{User: id, Timestamp: time.Now().UnixNano()})
	})
	h.HandleDisconnected(func(c *arpc.Client) {
		r.mu.Lock()
		id := r.users[c]
		delete(r.users, c)
		r.mu.Unlock()
		r.broadcast("/chat/server/userleave", &message{User: id, Timestamp: time.Now().UnixNano()})
	})
	h.Handle("/chat/user/say", func(c *arpc.Context) {
		r.mu.Lock()
		m := &message{User: r.users[c.Client], Timestamp: time.Now().UnixNano()}
		r.mu.Unlock()
		if err := c.Bind(&m.Message); err != nil {
			log.Print(err)
			return
		}
		r.broadcast("/chat/server/broadcast", m)
	})
}

func (r *room) broadcast(method string, v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.users {
		notify(c, method, v)
	}
}

// notify sends a notification; a connection that has gone meanwhile does not matter.
func notify(c *arpc.Client, method string, v any) {
	if err := c.Notify(method, v, time.Second); err != nil && c.CheckState() == nil {
		log.Printf("%s: %v", method, err)
	}
}

// examples registers what the pages other than the chat use.
func examples(h arpc.Handler) {
	h.Handle("/call/echo", func(c *arpc.Context) {
		var s string
		if err := c.Bind(&s); err != nil {
			reply(c, err)
			return
		}
		reply(c, s)
	})
	for _, method := range []string{"/notify", "/ws/notify", "/http/notify"} {
		h.Handle(method, func(c *arpc.Context) { fmt.Println(c.Message.Method(), string(c.Body())) })
	}
	for _, method := range []string{"/ws/echo", "/http/echo"} {
		h.Handle(method, func(c *arpc.Context) { reply(c, c.Body()) })
	}
}

// answers registers what the tests make a page call.
func answers(h arpc.Handler) {
	h.Handle("/error/text", func(c *arpc.Context) { c.Error("bad") })                      //nolint:errcheck // the test sees it
	h.Handle("/error/value", func(c *arpc.Context) { c.Error(map[string]int{"code": 7}) }) //nolint:errcheck // the test sees it
	h.Handle("/wait", func(c *arpc.Context) { <-c.Done() }, true)
	// Sends as many notifications of /n as asked for, each with its number, and then answers.
	h.Handle("/notifyme", func(c *arpc.Context) {
		var n int
		if err := c.Bind(&n); err != nil {
			reply(c, err)
			return
		}
		for i := range n {
			notify(c.Client, "/n", fmt.Sprint(i))
		}
		reply(c, "done")
	})
	// Calls /ask of the page with what it got, and answers with what came back; the time is for pages that cannot answer.
	h.Handle("/askme", func(c *arpc.Context) {
		var rsp string
		if err := c.Client.Call("/ask", c.Body(), &rsp, time.Second); err != nil {
			reply(c, err)
			return
		}
		reply(c, strings.ToUpper(rsp))
	}, true)
}

func reply(c *arpc.Context, v any) {
	if err := c.Write(v); err != nil {
		log.Printf("answer of %s: %v", c.Message.Method(), err)
	}
}
