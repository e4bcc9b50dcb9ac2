//go:build unix

package core

import "syscall"

// rawIO says whether sockets can be read and written without waiting.
const rawIO = true

var errWouldBlock error = syscall.EAGAIN

func sysRead(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		return n, nil
	}
}

// sysWrite writes what the socket takes at once; that this is less than p is not an error.
func sysWrite(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), p)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return 0, nil
		}
		return 0, err
	}
}
