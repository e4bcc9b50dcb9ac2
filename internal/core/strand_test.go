package core

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// While a handler waits with the strand let go others run, in order, one at a time; it goes on before the ones behind it.
func TestLetGo(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		answers := make(chan string, 10)
		app.onRun = func(s *state, f []byte, turn *Turn) {
			what := string(f[headLen:])
			if what == "waits" {
				if err := s.away(turn, func() { <-answers }); err != nil {
					t.Error(err)
				}
			}
			if what == "answers" {
				answers <- ""
				eventually(t, "the waiting handler wants the strand back", func() bool { return s.c.attention.Load() > 0 })
			}
			if what != string(f[headLen:]) {
				t.Error("the frame changed while its handler waited")
			}
			s.send(Answer, f)
		}
		srv := serve(t, a, Config{}, app)
		for range 5 {
			c, _ := srv.connect()
			var stream [][]byte
			for _, w := range []string{"first", "waits", "second", "answers", "last"} {
				stream = append(stream, makeFrame(kindOrdered, []byte(w)))
			}
			c.send(stream...)
			for _, w := range []string{"first", "second", "answers", "waits", "last"} {
				c.expect(kindOrdered, []byte(w))
			}
			c.Close()
		}
	})
}

// Handlers wait for each other, down to the limit.
func TestNested(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		const depth = 20
		for _, limit := range []int{depth, 5} {
			app := newApp(t)
			var refused atomic.Int32
			below := make([]chan struct{}, depth+2) // closed when the handler of a level is done
			for i := range below {
				below[i] = make(chan struct{})
			}
			app.onRun = func(s *state, f []byte, turn *Turn) {
				n := int(f[headLen])
				defer close(below[n])
				next := makeFrame(kindPush, []byte{byte(n + 1)})
				if n == depth {
					return
				}
				err := s.away(turn, func() {
					s.send(Now, next)
					recv(t, below[n+1], "end of the next level")
				})
				if err == ErrNested {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			}
			srv := serve(t, a, Config{Nested: limit}, app)
			c, s := srv.connect()
			c.send(makeFrame(kindOrdered, []byte{0}))
			for range limit {
				_, b, err := c.read()
				must(t, err)
				c.send(makeFrame(kindOrdered, b))
			}
			recv(t, below[0], "end of the first handler")
			if n := refused.Load(); n != 0 && limit == depth || n != 1 && limit != depth {
				t.Errorf("%d refused with a limit of %d", n, limit)
			}
			c.Close()
			recv(t, s.closed, "Close")
		}
	})
}

// What was answered does not wait for a handler that blocks, whoever ran the handlers before.
func TestAnswersDoNotWait(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		for _, after := range []string{"nothing", "Opened", "a handler that waited", "a slow one"} {
			t.Run("after "+after, func(t *testing.T) {
				app := newApp(t)
				begin, finish := make(chan struct{}), make(chan struct{})
				cfg := Config{}
				if after == "Opened" {
					cfg.Opened = func(c *Conn, _ *Turn) {
						s := c.User.(*state)
						eventually(t, "both frames", func() bool { return s.frames.Load() == 2 })
					}
				}
				app.onRun = func(s *state, f []byte, turn *Turn) {
					switch string(f[headLen:]) {
					case "block":
						<-finish
					case "wait":
						s.away(turn, func() { <-begin })
						return
					}
					s.send(Answer, f)
				}
				srv := serve(t, a, cfg, app)
				release := sync.OnceFunc(func() {
					close(begin)
					close(finish)
				})
				defer release()
				c, s := srv.connect()
				kind := byte(kindOrdered)
				switch after {
				case "a handler that waited":
					c.send(makeFrame(kindOrdered, []byte("wait")))
					eventually(t, "waiting", func() bool {
						s.c.Lock()
						defer s.c.Unlock()
						return len(s.c.look().away) == 1 && !s.c.has(flagWatched)
					})
				case "a slow one":
					kind = kindSlow
				}
				c.send(makeFrame(kind, []byte("quick")), makeFrame(kindOrdered, []byte("block")))
				c.expect(kind, []byte("quick"))
				release()
				c.expect(kindOrdered, []byte("block"))
				c.Close()
			})
		}
	})
}

// A handler that blocks keeps nothing from being read and handled inline, and nobody else from sending.
func TestBlockedHandler(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		finish := make(chan struct{})
		app.onRun = func(s *state, f []byte, _ *Turn) {
			<-finish
			s.send(Answer, f)
		}
		srv := serve(t, a, Config{}, app)
		c, s := srv.connect()
		c.send(makeFrame(kindOrdered, []byte("block")))
		for i := range 20 {
			c.echo(kindInline, fmt.Sprint(i))
			c.echo(kindAsync, fmt.Sprint(i))
		}
		must(t, s.send(Now, makeFrame(kindPush, []byte("push"))))
		c.expect(kindPush, []byte("push"))
		close(finish)
		c.expect(kindOrdered, []byte("block"))
		c.Close()
	})
}

// Close waits for handlers, also for one that waits with the strand let go, and for work that is held or owed.
func TestCloseWaitsForHandlers(t *testing.T) {
	for _, how := range []string{"runs", "away", "held"} {
		t.Run(how, func(t *testing.T) {
			eachAtOnce(t, nil, func(t *testing.T, a adapter) {
				app := newApp(t)
				running, finish := make(chan struct{}), make(chan struct{})
				var returned atomic.Bool
				app.onFrame = func(s *state, in *Input, f []byte) error {
					if how != "held" {
						return s.byKind(in, f)
					}
					s.c.Lock()
					s.c.Hold()
					s.c.Unlock()
					go func() {
						defer s.c.Release()
						close(running)
						<-finish
						returned.Store(true)
					}()
					return nil
				}
				app.onRun = func(s *state, f []byte, turn *Turn) {
					if how == "away" {
						s.away(turn, func() {
							close(running)
							<-finish
						})
					} else {
						close(running)
						<-finish
					}
					returned.Store(true)
				}
				app.onClose = func(*state, error) {
					if !returned.Load() {
						t.Error("Close before the handler has returned")
					}
				}
				srv := serve(t, a, Config{}, app)
				c, s := srv.connect()
				c.send(makeFrame(kindOrdered, nil))
				recv(t, running, "handler")
				if a.half {
					c.closeWrite() // an orderly end: what is being handled is still answered
				} else {
					c.Close()
				}
				recv(t, s.down, "Down")
				eventually(t, "end of the reader", func() bool { return s.has(flagReaderGone) })
				if s.has(flagFinished) {
					t.Error("finished while a handler is at work")
				}
				close(finish)
				recv(t, s.closed, "Close")
				c.Close()
			})
		})
	}
}

// A connection on which a handler waits with the strand let go is busy.
func TestBusy(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		finish := make(chan struct{})
		app.onRun = func(s *state, f []byte, turn *Turn) {
			if string(f[headLen:]) == "away" {
				s.away(turn, func() { <-finish })
			} else {
				<-finish
			}
			s.send(Answer, f)
		}
		srv := serve(t, a, Config{}, app)
		for _, how := range []string{"run", "away"} {
			finish = make(chan struct{})
			c, s := srv.connect()
			if s.c.Busy() {
				t.Error("busy at the start")
			}
			c.send(makeFrame(kindOrdered, []byte(how)))
			eventually(t, "handler", func() bool {
				s.c.Lock()
				defer s.c.Unlock()
				return s.c.has(flagRunning) || len(s.c.look().away) == 1
			})
			if !s.c.Busy() {
				t.Errorf("%s: not busy", how)
			}
			close(finish)
			c.expect(kindOrdered, []byte(how))
			eventually(t, "not busy", func() bool { return !s.c.Busy() })
			c.Close()
			recv(t, s.closed, "Close")
		}
	})
}

// What waits with the strand let go ends with the connection, whether that ends in an orderly way or not.
func TestAwayAtEnd(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		for _, end := range []string{"peer", "Close", "Abort"} {
			app := newApp(t)
			app.forced.Store(true)
			var handlers sync.WaitGroup
			app.onRun = func(s *state, f []byte, turn *Turn) {
				handlers.Add(1)
				defer handlers.Done()
				s.away(turn, func() { recv(t, s.down, "Down") })
			}
			srv := serve(t, a, Config{CloseFlush: time.Second}, app)
			c, s := srv.connect()
			f := makeFrame(kindOrdered, nil)
			c.send(f, f, f, f)
			eventually(t, "four handlers wait", func() bool {
				s.c.Lock()
				defer s.c.Unlock()
				return len(s.c.look().away) == 4
			})
			switch end {
			case "peer":
				c.Close()
			case "Close":
				s.c.Close(nil)
				go io.Copy(io.Discard, c)
			case "Abort":
				s.c.Abort(nil)
			}
			recv(t, s.down, "Down")
			handlers.Wait()
			c.Close()
			recv(t, s.closed, "Close")
		}
	})
}

// Opened runs before ordered frames, may block, and may use what is read meanwhile.
func TestOpened(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		var done atomic.Bool
		cfg := Config{Opened: func(c *Conn, _ *Turn) {
			s := c.User.(*state)
			must(t, s.send(Now, makeFrame(kindPush, []byte("opened"))))
			eventually(t, "two frames", func() bool { return s.frames.Load() >= 2 })
			done.Store(true)
		}}
		app.onRun = func(s *state, f []byte, _ *Turn) {
			if !done.Load() {
				t.Error("an ordered frame runs before Opened has returned")
			}
			s.send(Answer, f)
		}
		srv := serve(t, a, cfg, app)
		for range 5 {
			done.Store(false)
			c, s := srv.connect()
			c.expect(kindPush, []byte("opened"))
			c.echo(kindInline, "inline while Opened runs")
			c.echo(kindOrdered, "ordered")
			c.Close()
			recv(t, s.closed, "Close")
		}
		cfg.WantOpened = func() bool { return false }
		cfg.Opened = func(*Conn, *Turn) { t.Error("Opened although it is not wanted") }
		srv = serve(t, a, cfg, newApp(t))
		c, _ := srv.connect()
		c.echo(kindOrdered, "x")
		c.Close()
	})
}

// Opened may give the strand away for good, or for a while, and then need not have returned for ordered frames to run.
func TestOpenedYields(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		for _, how := range []string{"Yield", "LetGo"} {
			finish := make(chan struct{})
			var returned sync.WaitGroup
			returned.Add(1)
			cfg := Config{Opened: func(c *Conn, turn *Turn) {
				defer returned.Done()
				if how == "Yield" {
					c.Lock()
					c.Yield(turn)
					c.Yield(turn) // has nothing to give any more
					c.Unlock()
					<-finish
				} else if away, err := c.LetGo(turn); !away || err != nil {
					t.Errorf("LetGo: %v, %v", away, err)
				} else {
					<-finish
					c.TakeBack(turn)
				}
			}}
			srv := serve(t, a, cfg, newApp(t))
			c, s := srv.connect()
			for range 5 {
				c.echo(kindOrdered, "while Opened runs")
			}
			close(finish)
			returned.Wait()
			c.echo(kindOrdered, "afterwards")
			c.Close()
			recv(t, s.closed, "Close")
		}
	})
}
