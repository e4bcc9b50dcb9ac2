//go:build !windows

package arpc

import "syscall"

// errRefused is how dialling a unix socket fails that nobody listens on.
const errRefused = syscall.ECONNREFUSED
