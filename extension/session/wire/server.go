package wire

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/extension/session"
	"github.com/arpc-go/arpc/log"
)

// A Service has methods that are called. Those that are, are exported and have the form
//
//	func (rcvr) Method(arg T, reply *R) error // two-way
//	func (rcvr) Method(arg T) error           // one-way
type Service interface {
	Service() string
	Version() string
}

// ServerConfig configures a Server. The zero value of a field means its default.
type ServerConfig struct {
	// Addr is the address to listen on; default a free port.
	Addr string
	// MaxSessions is the number of sessions at a time; further ones are closed. Default 10,000.
	MaxSessions int
	// SessionTimeout closes a session from which nothing has come for so long; default 1 minute.
	SessionTimeout time.Duration
	// Workers is the number of methods that run at a time for one session; further ones wait. Default 64.
	Workers int
	// NewSession, if not nil, may change a new session further, such as with SetCompressType.
	NewSession session.NewSessionCallback
}

// A Server answers calls.
type Server struct {
	cfg      ServerConfig
	end      session.Server
	sessions atomic.Int64

	mu       sync.RWMutex
	services map[string]map[string]method
}

type method struct {
	f          reflect.Value
	arg, reply reflect.Type // without the pointer; reply is nil for one-way methods
	byPointer  bool         // it takes *arg
}

// NewServer returns a server that does not listen yet.
func NewServer(cfg ServerConfig) *Server {
	cfg.MaxSessions = cmp.Or(cfg.MaxSessions, 10_000)
	cfg.SessionTimeout = cmp.Or(cfg.SessionTimeout, time.Minute)
	cfg.Workers = cmp.Or(cfg.Workers, 64)
	return &Server{cfg: cfg, end: session.NewTCPServer(session.WithLocalAddress(cfg.Addr)), services: map[string]map[string]method{}}
}

var errorType = reflect.TypeFor[error]()

// Register makes the methods of a service callable; others of its methods are left out. It may be called at any time. The error says
// that there is none, or that the service's name is taken.
func (s *Server) Register(rcvr Service) error {
	v, methods := reflect.ValueOf(rcvr), map[string]method{}
	for i := range v.NumMethod() {
		f := v.Method(i)
		t := f.Type()
		if t.NumOut() != 1 || t.Out(0) != errorType || t.IsVariadic() || t.NumIn() < 1 || t.NumIn() > 2 {
			continue
		}
		m := method{f: f, arg: t.In(0), byPointer: t.In(0).Kind() == reflect.Pointer}
		if m.byPointer {
			m.arg = m.arg.Elem()
		}
		if t.NumIn() == 2 {
			if t.In(1).Kind() != reflect.Pointer {
				continue
			}
			m.reply = t.In(1).Elem()
		}
		methods[v.Type().Method(i).Name] = m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch name := rcvr.Service(); {
	case len(methods) == 0:
		return fmt.Errorf("service %q (%T) has no methods that can be called", name, rcvr)
	case s.services[name] != nil:
		return fmt.Errorf("service %q is registered already", name)
	default:
		s.services[name] = methods
		return nil
	}
}

// Start listens, and returns.
func (s *Server) Start() error {
	return s.end.RunEventLoop(prepare((*serverEvents)(s), s.cfg.SessionTimeout/4, func(ss session.Session) error {
		ss.SetTaskPool(session.NewTaskPool(s.cfg.Workers))
		return nil
	}, s.cfg.NewSession))
}

// prepare makes sessions those of this package.
func prepare(l session.EventListener, cron time.Duration, more ...session.NewSessionCallback) session.NewSessionCallback {
	return func(ss session.Session) (err error) {
		ss.SetPkgHandler(packets{})
		ss.SetEventListener(l)
		ss.SetMaxMsgLen(maxPacket)
		ss.SetCronPeriod(int(max(cron.Milliseconds(), 1)))
		for _, f := range more {
			if f != nil && err == nil {
				err = f(ss)
			}
		}
		return err
	}
}

// Addr returns the address that the server listens on, nil before Start.
func (s *Server) Addr() net.Addr { return s.end.Addr() }

// Stop closes the server and its sessions.
func (s *Server) Stop() { s.end.Close() }

type serverEvents Server

var errSessions = errors.New("too many sessions")

func (s *serverEvents) OnOpen(session.Session) error {
	if s.sessions.Add(1) > int64(s.cfg.MaxSessions) {
		s.sessions.Add(-1)
		return errSessions
	}
	return nil
}

func (s *serverEvents) OnClose(session.Session) { s.sessions.Add(-1) }

func (s *serverEvents) OnError(ss session.Session, err error) { log.Info("%s: %v", ss.Stat(), err) }

func (s *serverEvents) OnCron(ss session.Session) {
	if time.Since(ss.GetActive()) > s.cfg.SessionTimeout {
		ss.Close()
	}
}

// OnMessage runs on the session's pool.
func (s *serverEvents) OnMessage(ss session.Session, pkg any) {
	k := pkg.(*packet)
	if k.command == cmdPing {
		k.command, k.header = cmdPong, nil
		send(ss, k)
		return
	}
	if k.command != cmdCall {
		return
	}
	var req request
	m, in, err := (*Server)(s).lookup(k, &req)
	k.value = nil
	if err == nil && req.CallType == twoWay {
		if err = invoke(m, in); err == nil {
			k.value, err = codecs[k.codec].Marshal(in[1].Interface())
		}
		if len(k.value) > maxPart {
			err = fmt.Errorf("answer of %d bytes: %w", len(k.value), ErrTooLarge)
		}
	}
	if req.CallType != oneWay {
		k.answer(err)
		send(ss, k)
	}
	if err == nil && req.CallType != twoWay { // who made such a call does not wait for its end
		if err = invoke(m, in); err != nil {
			log.Info("%s: %s.%s: %v", ss.Stat(), req.Service, req.Method, err)
		}
	}
}

func send(ss session.Session, k *packet) {
	if _, _, err := ss.WritePkg(k, 0); err != nil && !ss.IsClosed() {
		log.Info("%s: answer lost: %v", ss.Stat(), err)
		ss.Close() // whoever waits for it need not wait longer
	}
}

// answer makes a call its answer.
func (k *packet) answer(err error) {
	var rsp response
	k.command, k.code = cmdAnswer, 0
	if err != nil {
		k.code, k.value = codeFail, nil
		text := err.Error() // it may become longer when it is encoded
		rsp.Error = strings.ToValidUTF8(text[:min(len(text), maxPart/8)], "")
	}
	if codecs[k.codec] == nil {
		k.codec = JSON // which all understand
	}
	k.header, _ = k.codec.encode(&rsp) // it is text: there is no error
}

// lookup finds the method of a call and makes its arguments.
func (s *Server) lookup(k *packet, req *request) (m method, in []reflect.Value, err error) {
	decoder := codecs[k.codec]
	if decoder == nil {
		return m, nil, fmt.Errorf("%w: %d", ErrCodec, k.codec)
	}
	if err = k.codec.decode(k.header, req); err != nil {
		return m, nil, err
	}
	s.mu.RLock()
	m, ok := s.services[req.Service][req.Method]
	s.mu.RUnlock()
	switch {
	case !ok:
		return m, nil, fmt.Errorf("no method %s.%s", req.Service, req.Method)
	case req.CallType < oneWay || req.CallType > twoWayNoReply:
		return m, nil, fmt.Errorf("unknown type of call: %d", req.CallType)
	case req.CallType == twoWay && m.reply == nil:
		return m, nil, fmt.Errorf("%s.%s is one-way and has no reply", req.Service, req.Method)
	}
	arg := reflect.New(m.arg)
	if err = decoder.Unmarshal(k.value, arg.Interface()); err != nil {
		return m, nil, fmt.Errorf("argument of %s.%s: %w", req.Service, req.Method, err)
	}
	if !m.byPointer {
		arg = arg.Elem()
	}
	if in = append(in, arg); m.reply != nil {
		in = append(in, reflect.New(m.reply))
	}
	return m, in, nil
}

// invoke calls a method; a panic becomes an error.
func invoke(m method, in []reflect.Value) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("session/wire: panic in a method: %v\n%s", p, debug.Stack())
			err = errors.New("panic in the method")
		}
	}()
	err, _ = m.f.Call(in)[0].Interface().(error)
	return err
}
