package buf

import "testing"

func TestGetCapacity(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 1025, 4096, 65536, MaxPooled - 1, MaxPooled, MaxPooled + 1, 3 * MaxPooled} {
		b := Get(n)
		if cap(b.B) < n || len(b.B) != 0 {
			t.Fatalf("Get(%d): len %d cap %d", n, len(b.B), cap(b.B))
		}
		if n <= MaxPooled && cap(b.B) > 2*max(n, 512) {
			t.Fatalf("Get(%d) wastes memory: cap %d", n, cap(b.B))
		}
		b.Free()
	}
}

func TestFreeGivesBackOnce(t *testing.T) {
	b := Get(100)
	b.Retain()
	if !b.Shared() {
		t.Fatal("two references are not shared")
	}
	b.Free()
	if b.Shared() {
		t.Fatal("one reference is shared")
	}
	b.B = append(b.B, "kept"...)
	if string(b.B) != "kept" {
		t.Fatal("a held buffer lost its bytes")
	}
	b.Free()
	defer func() {
		if recover() == nil {
			t.Fatal("a third Free of two references went unnoticed")
		}
	}()
	b.Free()
}

func BenchmarkGetFree(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Get(4096).Free()
	}
}
