package etcd

import (
	"context"
	"testing"

	"github.com/arpc-go/arpc/extension/micro"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// FuzzApply applies what others may have put: nothing but valid nodes is known, each under its own name, and a deletion removes it.
func FuzzApply(f *testing.F) {
	n := node("one")
	v, err := n.MarshalValue()
	must(f, err)
	f.Add(n.Path("/getty"), v)
	f.Add(node("two").Path("/getty"), v)
	f.Add(n.Dir("/getty"), v)
	f.Add("/getty/", []byte(nil))
	f.Add(n.Path("/getty"), []byte(`{"Attr":{"Service":"s","Role":1},"Nodes":[{"ID":"x"}]}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		r := &Registry{config: Config{}.withDefaults(), ctx: context.Background()}
		f := newFollower(r)
		defer f.cancel()
		f.set(map[string]map[string]micro.Node{})
		kv := &mvccpb.KeyValue{Key: []byte(key), Value: value}
		f.apply([]*clientv3.Event{{Type: clientv3.EventTypePut, Kv: kv}})
		known := 0
		for service, nodes := range f.nodes {
			for k, n := range nodes {
				known++
				at, ok := micro.ParsePath("/getty", key)
				if !ok || k != n.Key() || k != at.Key() || service != n.Service || n.Check() != nil {
					t.Errorf("%q: %q %v", key, k, n)
				}
			}
		}
		if known > 1 {
			t.Errorf("%d nodes of a key", known)
		}
		f.apply([]*clientv3.Event{{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key)}}})
		if len(f.nodes) > 0 {
			t.Errorf("%q is not deleted: %v", key, f.nodes)
		}
	})
}
