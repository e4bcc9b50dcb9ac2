package poller

// Events receives the readiness of one descriptor. Its methods run on the goroutine of the descriptor's loop, never
// at the same time as each other or as anything else of that loop, and never after Detach.
type Events interface {
	// Readable says that bytes, an end or an error may be waiting. It is an edge: it isn't repeated for what is already
	// there, and may come when nothing is. The owner reads until EAGAIN, an end or an error, or remembers that it stopped
	// early and goes on by itself. A read that returned less than asked for may count as EAGAIN, because HangUp follows if
	// there was an end behind it.
	Readable()

	// Writable is called once after Arm, when the socket takes output again or has failed.
	Writable()

	// HangUp says that the peer shut down its writing half or that the socket failed. What is still buffered can be read, up
	// to the end or the error, and the owner must do so now or when it resumes: no Readable follows. It usually comes just
	// after a Readable that already met the end. It may come again when a half closed socket fails later.
	HangUp()
}

// Task is work for a loop, see [Loop.Post].
type Task interface{ RunTask() }
