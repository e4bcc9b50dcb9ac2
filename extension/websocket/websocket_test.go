package websocket

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone)
	leak.Main(m)
}

// onAdapters runs f with a server on each adapter; the options go to the server.
func onAdapters(t *testing.T, f func(t *testing.T, adapter arpc.ServerOption)) {
	t.Run("std", func(t *testing.T) { f(t, arpc.StdConns(-1)) })
	t.Run("poll", func(t *testing.T) { f(t, arpc.StdConns(0)) })
}

func echo(c *arpc.Context) { c.Write(c.Body()) }

// serve starts a server of its own port and returns its ws URL.
func serve(t testing.TB, setup func(arpc.Handler), opts []arpc.ServerOption, wsOpts ...Option) string {
	s := arpc.NewServer(append([]arpc.ServerOption{arpc.NewHandler()}, opts...)...)
	s.Handler.Handle("/echo", echo)
	if setup != nil {
		setup(s.Handler)
	}
	ln, err := Listen("127.0.0.1:0", wsOpts...)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() { s.Stop(); <-served })
	return "ws://" + ln.Addr().String()
}

func dial(t testing.TB, dialer func() (net.Conn, error), opts ...arpc.ClientOption) *arpc.Client {
	c, err := arpc.NewClient(dialer, append([]arpc.ClientOption{arpc.NewHandler()}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

func TestCalls(t *testing.T) {
	for name, wsOpts := range map[string][]Option{"plain": nil, "compressed": {Compression(100)}} {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/v%d", name, version), func(t *testing.T) {
				onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
					url := serve(t, func(h arpc.Handler) {
						h.Handle("/back", func(c *arpc.Context) {
							var r []byte
							if err := c.Client.CallWith(c, "/echo", c.Body(), &r); err != nil {
								c.Error(err)
								return
							}
							c.Write(r)
						})
					}, []arpc.ServerOption{adapter}, wsOpts...)
					c := dial(t, Dialer(url, wsOpts...), arpc.Protocol(version))
					c.Handler.Handle("/echo", echo)
					for _, n := range []int{0, 1, 125, 126, 127, 1000, 65_500, 65_536, 1 << 20, 3<<20 + 1} {
						body := bytes.Repeat([]byte("0123456789abcde"), n/15+1)[:n]
						for _, route := range []string{"/echo", "/back"} {
							var r []byte
							if err := c.Call(route, body, &r, patience); err != nil || !bytes.Equal(r, body) {
								t.Fatalf("%s of %d bytes: %d bytes, %v", route, n, len(r), err)
							}
						}
					}
					var wg sync.WaitGroup
					for i := range 50 {
						wg.Go(func() {
							for j := range 100 {
								want := fmt.Sprintf("%d of %d", j, i)
								var r string
								if err := c.Call("/echo", want, &r, patience); err != nil || r != want {
									t.Errorf("%q, %v", r, err)
									return
								}
							}
						})
					}
					wg.Wait()
				})
			})
		}
	}
}

func TestHandlerBesideOthers(t *testing.T) {
	s := arpc.NewServer(arpc.NewHandler())
	s.Handler.Handle("/echo", echo)
	mux := http.NewServeMux()
	mux.Handle("/arpc", NewHandler(s))
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	web := httptest.NewServer(mux)
	t.Cleanup(web.Close)
	t.Cleanup(func() { s.Stop() })
	c := dial(t, Dialer("ws"+strings.TrimPrefix(web.URL, "http")+"/arpc"))
	var r string
	if err := c.Call("/echo", "x", &r, patience); err != nil || r != "x" {
		t.Errorf("%q, %v", r, err)
	}
	rsp, err := http.Get(web.URL + "/hello")
	if err != nil {
		t.Fatal(err)
	}
	rsp.Body.Close()
	s.Stop()
	if rsp, err = http.Get(web.URL + "/arpc"); err != nil || rsp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("after the end: %v, %v", rsp, err)
	} else {
		rsp.Body.Close()
	}
}

func TestOrigins(t *testing.T) {
	for _, tt := range []struct {
		name, origin string
		opts         []Option
		allowed      bool
	}{
		{"none", "", nil, true},
		{"same host", "http://{host}", nil, true},
		{"foreign", "https://evil.example", nil, false},
		{"foreign port", "http://127.0.0.1:1", nil, false},
		{"malformed", "%zz", nil, false},
		{"null", "null", nil, false},
		{"listed", "https://app.example", []Option{Origins("https://app.example")}, true},
		{"not listed", "https://app.example.evil", []Option{Origins("https://app.example")}, false},
		{"any", "https://evil.example", []Option{AnyOrigin()}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := serve(t, nil, nil, tt.opts...)
			h := http.Header{}
			if tt.origin != "" {
				h.Set("Origin", strings.ReplaceAll(tt.origin, "{host}", strings.TrimPrefix(url, "ws://")))
			}
			nc, err := Dialer(url, Header(h))()
			if (err == nil) != tt.allowed {
				t.Errorf("%v", err)
			}
			if err == nil {
				nc.Close()
			}
		})
	}
}

func TestPathAndTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, func(h arpc.Handler) {
			h.Handle("/secure", func(c *arpc.Context) { c.Write(fmt.Sprint(c.Peer().TLS != nil)) })
		}, []arpc.ServerOption{adapter}, Path("/ws"), Subprotocols("arpc"),
			TLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
		url = "wss" + strings.TrimPrefix(url, "ws")
		client := TLS(&tls.Config{RootCAs: roots})
		if _, err := Dialer(url+"/other", client)(); err == nil {
			t.Error("another path was answered")
		}
		if _, err := Dialer(url + "/ws")(); err == nil {
			t.Error("an unknown certificate was trusted")
		}
		c := dial(t, Dialer(url+"/ws", client, Subprotocols("other", "arpc")))
		var r string
		if err := c.Call("/secure", nil, &r, patience); err != nil || r != "true" {
			t.Errorf("%q, %v", r, err)
		}
	})
}

// Streams, broadcasts and the end of a server work as over TCP.
func TestLife(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		s := arpc.NewServer(arpc.NewHandler(), adapter)
		s.Handler.HandleStream("/upper", func(st *arpc.Stream) {
			for m, err := range st.All() {
				if err != nil || st.Send(bytes.ToUpper(m)) != nil {
					return
				}
			}
		})
		ln, err := Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		h := arpc.NewHandler()
		news := make(chan int, 10)
		h.Handle("/news", func(c *arpc.Context) { news <- len(c.Body()) })
		c := dial(t, Dialer("ws://"+ln.Addr().String()), h)
		st := c.NewStream("/upper")
		for _, m := range []string{"a", strings.Repeat("b", 300_000), ""} {
			if err := st.Send(m); err != nil {
				t.Fatal(err)
			}
			var r string
			if err := st.Recv(&r); err != nil || r != strings.ToUpper(m) {
				t.Fatalf("%d bytes, %v", len(r), err)
			}
		}
		st.CloseSend()
		if err := st.Recv(nil); err != io.EOF {
			t.Errorf("%v", err)
		}
		for _, n := range []int{10, 100_000} {
			s.Broadcast("/news", make([]byte, n))
			if got := <-news; got != n {
				t.Errorf("%d of %d bytes", got, n)
			}
		}
		s.Stop()
		if err := <-served; err != arpc.ErrServerStopped {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for c.CheckState() == nil && ctx.Err() == nil {
			c.CallWith(ctx, "/x", nil, nil)
		}
		if err := c.CheckState(); err == nil || !strings.Contains(err.Error(), "server stopped") && !strings.Contains(err.Error(), "refused") {
			t.Errorf("the end is called %v", err)
		}
	})
}
