//go:build !linux

package core

import "testing"

// keepAliveOf is for the poll adapter, which this system does not have.
func keepAliveOf(testing.TB, *Conn) (on bool, idle int) { return false, 0 }
