package codec

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Named is a Codec that peers know by a name, of 1 to 64 bytes without commas.
type Named interface {
	Codec
	Name() string
}

var (
	registering sync.Mutex
	registered  atomic.Pointer[map[string]Named]
)

func init() {
	Register(JSONCodec{})
	Register(Protobuf{})
}

// Register makes a codec known to the peers of connections that are made later: calls may choose it, see arpc.UseCodec. JSON
// and Protobuf are registered already; a codec of the same name is replaced. It panics if the name is not valid.
func Register(c Named) {
	name := c.Name()
	if name == "" || len(name) > 64 || strings.ContainsAny(name, ",:") {
		panic("codec: invalid name of a codec: " + name)
	}
	registering.Lock()
	defer registering.Unlock()
	all := map[string]Named{}
	if old := registered.Load(); old != nil {
		all = maps.Clone(*old)
	}
	all[name] = c
	registered.Store(&all)
}

// Lookup returns the registered codec of a name, nil if there is none.
func Lookup(name string) Codec {
	if c, ok := (*registered.Load())[name]; ok {
		return c
	}
	return nil
}

// Names returns the names of the registered codecs, sorted.
func Names() []string { return slices.Sorted(maps.Keys(*registered.Load())) }
