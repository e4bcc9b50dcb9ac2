package ws

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// Codes that IANA has registered are valid, those above 4999 are not.
func TestCloseCodesOfIANA(t *testing.T) {
	for _, valid := range []int{1012, 1013, 1014} {
		if o := decodeIn(t, New(config(nil), true), unhex(t, fmt.Sprintf("8882M%04x", valid)), byBytes); !errors.Is(o.err, io.EOF) {
			t.Errorf("%d: %v", valid, o.err)
		}
	}
	for _, invalid := range []int{5000, 65535} {
		if o := decodeIn(t, New(config(nil), true), unhex(t, fmt.Sprintf("8882M%04x", invalid)), byBytes); status(t, o.err) != 1002 {
			t.Errorf("%d: %v", invalid, o.err)
		}
	}
}
