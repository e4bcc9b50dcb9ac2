//go:build !unix

package core

import "errors"

// rawIO says whether sockets can be read and written without waiting.
const rawIO = false

var errWouldBlock = errors.New("would block")

func sysRead(uintptr, []byte) (int, error)  { return 0, errWouldBlock }
func sysWrite(uintptr, []byte) (int, error) { return 0, nil }
