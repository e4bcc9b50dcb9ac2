package otelarpc

import (
	"maps"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/arpc-go/arpc"
)

// system is rpc.system.name. It stands for the name of the span where that of the method is unknown.
const system = "arpc"

// other stands for methods and codes that are not counted apart.
const other = "_OTHER"

// kindKey is the attribute that tells calls, notifications and streams apart.
const kindKey = attribute.Key("arpc.kind")

// method is what does not change from one message of a method to the next: made once, so that messages cost no allocation.
type method struct {
	span       string
	attributes []attribute.KeyValue
	other      bool
	records    [numCodes]atomic.Pointer[[]metric.RecordOption] // by code
}

// methods are those of one direction and kind. They are read without a lock, and copied to be added to.
type methods struct {
	kind   arpc.CallKind
	limit  int
	known  atomic.Pointer[map[string]*method]
	others atomic.Pointer[method]
	mu     sync.Mutex // held to write
}

// get returns the method of a name.
func (t *methods) get(name string, unknown bool) *method {
	if !unknown {
		if known := t.known.Load(); known != nil {
			if m := (*known)[name]; m != nil {
				return m
			}
		}
		if m := t.add(name); m != nil {
			return m
		}
	}
	if m := t.others.Load(); m != nil {
		return m
	}
	t.others.CompareAndSwap(nil, newMethod(t.kind, other, true))
	return t.others.Load()
}

// add adds a method, or returns nil if there are too many.
func (t *methods) add(name string) *method {
	if known := t.known.Load(); known != nil && len(*known) >= t.limit {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	next := map[string]*method{}
	if known := t.known.Load(); known != nil {
		if m := (*known)[name]; m != nil {
			return m
		}
		next = maps.Clone(*known)
	}
	if len(next) >= t.limit {
		return nil
	}
	m := newMethod(t.kind, valid(name), false)
	next[name] = m
	t.known.Store(&next)
	return m
}

func newMethod(kind arpc.CallKind, name string, others bool) *method {
	m := &method{span: name, other: others}
	if others {
		m.span = system
	}
	m.attributes = []attribute.KeyValue{
		semconv.RPCSystemNameKey.String(system), semconv.RPCMethod(name), kindKey.String(kind.String()),
	}
	return m
}

// record returns the options of a measurement.
func (m *method) record(s side, code arpc.Code) []metric.RecordOption {
	p := &m.records[min(code, numCodes-1)]
	if opts := p.Load(); opts != nil {
		return *opts
	}
	attrs := append(m.attributes[:len(m.attributes):len(m.attributes)], outcome(s, code)...)
	opts := []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(attrs...))}
	p.Store(&opts)
	return opts
}

// numCodes is that of the codes counted apart: 0 for success, arpc's own, and one for all others.
const numCodes = arpc.CodeUnauthenticated + 2

// codeName returns the value of rpc.response.status_code.
func codeName(code arpc.Code) string {
	switch {
	case code == 0:
		return "ok"
	case code >= numCodes-1:
		return other
	}
	return code.String()
}

// outcome returns the attributes that say how a call has ended.
func outcome(s side, code arpc.Code) []attribute.KeyValue {
	name := codeName(code)
	if !failed(s, code) {
		return []attribute.KeyValue{semconv.RPCResponseStatusCode(name)}
	}
	return []attribute.KeyValue{semconv.RPCResponseStatusCode(name), semconv.ErrorTypeKey.String(name)}
}

// failed reports whether a code is an error of this side: for the caller all are, for the one who answers only those that do not
// mean that the caller is at fault. It is what the conventions say of gRPC, whose codes these are.
func failed(s side, code arpc.Code) bool {
	if s == client {
		return code != 0
	}
	switch code {
	case arpc.CodeUnknown, arpc.CodeDeadlineExceeded, arpc.CodeUnimplemented, arpc.CodeInternal, arpc.CodeUnavailable, arpc.CodeDataLoss:
		return true
	}
	return code >= numCodes-1
}
