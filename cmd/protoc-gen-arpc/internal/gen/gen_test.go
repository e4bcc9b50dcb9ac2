package gen

import (
	"testing"

	"github.com/arpc-go/arpc"
)

// TestMaxMethodLen: the rest of the generator is tested in the module ../../regenerate, which has a compiler of .proto files.
func TestMaxMethodLen(t *testing.T) {
	if maxMethodLen != arpc.MaxMethodLen {
		t.Errorf("the generator allows methods of %d bytes, arpc of %d", maxMethodLen, arpc.MaxMethodLen)
	}
}
