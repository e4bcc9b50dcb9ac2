package metrics

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/arpc-go/arpc"
)

// other stands for methods and codes that are not counted apart.
const other = "_OTHER"

// numCodes is that of the codes counted apart: 0 for success, arpc's own, and one for all others.
const numCodes = arpc.CodeUnauthenticated + 2

// method has the histograms of a method, as finding them by their labels would cost a message more than all else.
type method struct {
	of    *methods
	name  string
	codes [numCodes]atomic.Pointer[prometheus.Observer]
}

// histogram returns that of a code, which it makes when it is first asked for.
func (m *method) histogram(code arpc.Code) prometheus.Observer {
	code = min(code, numCodes-1)
	if h := m.codes[code].Load(); h != nil {
		return *h
	}
	name := code.String()
	switch code {
	case 0:
		name = "ok"
	case numCodes - 1:
		name = other
	}
	h := m.of.took.WithLabelValues(m.name, m.of.kind, name)
	m.codes[code].Store(&h)
	return h
}

// methods are those of one side and kind. They are read without a lock, and copied to be added to.
type methods struct {
	took  *prometheus.HistogramVec
	kind  string
	limit int

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
	t.others.CompareAndSwap(nil, &method{of: t, name: other})
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
	m := &method{of: t, name: strings.ToValidUTF8(name, "\uFFFD")} // Prometheus takes no other
	next[name] = m
	t.known.Store(&next)
	return m
}
