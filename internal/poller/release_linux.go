package poller

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// findEpoll returns the number of nbio's epoll, -1 if it cannot be found. nbio does not tell, but the kernel does: the
// entries of each epoll are listed in /proc (proc(5), fdinfo), and only one has the loop's eventfd among them.
func (l *Loop) findEpoll() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	for _, e := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || target != "anon_inode:[eventpoll]" {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err != nil {
			continue
		}
		for line := range bytes.Lines(info) {
			var fd int
			if n, _ := fmt.Sscanf(string(line), "tfd: %d", &fd); n == 1 && fd == l.wake {
				if number, err := strconv.Atoi(e.Name()); err == nil {
					return number
				}
			}
		}
	}
	return -1
}

// Release is Detach for a socket that will go on under another number: it also takes the entry of this number out of the
// kernel's table, where it would otherwise stay for as long as the socket lives. It reports false, and does nothing, where that
// is impossible. It must be called on the loop's goroutine, and the owner must close the number afterwards.
func (r *Reg) Release() bool {
	l := r.loop
	if l == nil || l.epoll < 0 || unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, int(r.fd), nil) != nil {
		return false
	}
	r.Detach()
	return true
}
