package arpc

import "golang.org/x/sys/windows"

// errRefused is how dialling a unix socket fails that nobody listens on.
const errRefused = windows.WSAECONNREFUSED
