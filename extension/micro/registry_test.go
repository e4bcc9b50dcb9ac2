package micro_test

import (
	"slices"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
)

func TestMemory(t *testing.T) {
	memory := micro.NewMemory()
	registrytest.Run(t, registrytest.Store{
		Open: func(string) (micro.Registry, error) { return memory.Open(), nil },
		TTL:  100e6,
	})
}

func TestStatic(t *testing.T) {
	node := func(id string) micro.Node { return micro.Node{Service: "s", ID: id, Addr: "127.0.0.1:1"} }
	s, err := micro.NewStatic(node("a"), node("b"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	view := registrytest.Follow(t, s.Open(), "s")
	view.Is(t, patience, node("a"), node("b"))
	if err := s.Replace("s", node("b"), node("c")); err != nil {
		t.Fatal(err)
	}
	view.Is(t, patience, node("b"), node("c"))
	for range 100 { // a watcher that is slow or quick is not told that what stays is gone
		if err := s.Replace("s", node("b"), node("c")); err != nil {
			t.Fatal(err)
		}
	}
	if kinds := view.Kinds(); slices.Contains(kinds, micro.Delete) {
		t.Errorf("%v", kinds)
	}
	for _, bad := range []micro.Node{{Service: "s", ID: "x"}, {Service: "other", ID: "x", Addr: "y"}} {
		if err := s.Replace("s", bad); arpc.CodeOf(err) != arpc.CodeInvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
		if _, err := micro.NewStatic(micro.Node{}); arpc.CodeOf(err) != arpc.CodeInvalidArgument {
			t.Error(err)
		}
	}
	view.Is(t, patience, node("b"), node("c"))

	// What another one has registered since is that one's.
	other, moved := s.Open(), micro.Node{Service: "s", ID: "b", Addr: "127.0.0.1:2"}
	if err := other.Register(t.Context(), moved, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Deregister(t.Context(), node("b")); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace("s", node("a")); err != nil {
		t.Fatal(err)
	}
	view.Is(t, patience, node("a"), moved)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	view.Is(t, patience, node("a"))
}
