// Package poller reports when stream sockets can be read or written, with a fixed number of goroutines for any number of
// sockets. It is the only package that imports nbio, and nbio does the waiting; what nbio does wrongly beyond that
// (reading, writing, closing, dialling, accepting) is not asked of it. Every behaviour of nbio relied on here, and every
// one avoided, is pinned by a test named TestPin..., so that a changed nbio is noticed.
//
// A [Poller] has loops. A [Loop] is one goroutine that runs tasks and the [Events] of the descriptors attached to it. The
// owner of a socket, internal/core, does all reading, writing and closing.
//
//	           Attach                HangUp (peer shut down, or failure)
//	(unknown) ────────▶ attached ──────────────────────▶ let go
//	    ▲                  │                                │
//	    └──────────────────┴─────────── Detach ─────────────┘
//	attached: Readable, Writable after Arm        let go: Writable after Arm, HangUp if the socket then fails
//
// # Concurrency
//
// Callbacks and tasks of one loop run on its goroutine, one after another, and must not block: everything on that loop
// waits. They are not protected by recover; a panic ends the process. Attach and Detach are called on the loop goroutine
// only, in any task or callback; once Post has returned false the loop is over, and Detach may be called anywhere. Post, Arm, Stop and the accessors may be called from anywhere; Arm and Detach of one
// registration are ordered by its owner, for example by the owner's lock. The package takes its own locks last and calls
// nobody while it holds one, so the owner may hold its lock in every call.
//
// # Ownership
//
// Attach takes a descriptor number and gives back another one for the same socket, closing the first: nbio insists on
// a duplicate, and a second number for a socket in an epoll is unsafe, as below. The owner owns the returned number, before,
// during and after the registration. To be rid of it: Detach, then [CloseFD], in this order. Detach takes the number out of
// nbio's table; a close before it would let the next owner of the number receive, or lose, this one's events.
//
// An epoll entry lives until the last duplicate of the open socket is closed, and goes on reporting under the
// number that was registered. Therefore, for an attached socket: no duplicates (File, dup, SCM_RIGHTS), no Attach a
// second time after Detach, no system call on the number still in progress when it is closed, and no close while a child
// process is between fork and exec, which is what CloseFD sees to.
//
// A [Reg] belongs to the owner's memory and to this package between Attach and Detach: don't copy or clear it meanwhile.
// After Detach it may be attached again for another descriptor.
//
// # Limits
//
// Linux only; elsewhere [Supported] is false and New fails. Descriptor numbers must stay below the open files limit
// (RLIMIT_NOFILE, soft) found when the first Poller is made, and at most 2,097,152; Attach fails with EMFILE above. Each loop
// keeps a table of 8 bytes for each number up to that limit, which the garbage collector reads: 160 kB at 20,000, 8 MB at
// 1,048,576. A registration costs about 260 bytes. Each loop uses four descriptors, of which the two made by nbio are
// inherited by child processes; they hold no socket open there.
package poller
