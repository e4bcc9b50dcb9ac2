// Package core carries framed connections: accept, read, split, order, write, back-pressure, close and stop. It never
// knows what a frame means; that is an App's.
//
// # Life of a connection
//
//	          Open ok                 EOF, error, Abort, Close
//	(accepted) ------> open ------------------------------------> down ---------> closed
//	    | Open fails    frames go to App.Batch and App.Run,       App.Down once,   App.Close once,
//	    v               output is accepted                        output drains    descriptor closed
//	 refused
//
// An open connection that is detached (Conn.Detach) ends without Down and Close: its output drains, nothing is read any more,
// and its descriptor goes to somebody else. Should it fail before that, it goes down.
//
// After a clean end of input (the peer shut down its writing half) the ordered frames already received still run and
// what they answer is still sent; after Close only the output accepted before it is sent; after Abort or an error
// nothing is. Each of these is bounded by Config.CloseFlush.
//
// # Goroutines and tokens
//
// Three tokens exist per connection; each is held by at most one goroutine and none is a goroutine of its own:
//
//   - the reader takes bytes from the socket, splits them and calls App.Batch. Under the std adapter it is a goroutine
//     that may become the strand for the frames it just read; then the reading can be handed over to another goroutine.
//     Under the poll adapter it is the loop, which never runs ordered frames.
//   - the strand runs ordered frames and jobs (Conn.Post), one at a time, in the order of their arrival.
//   - the flusher writes. Writes never block: what a socket does not take is left to the poller or to a goroutine that
//     exists for that long only.
//
// # Lock order
//
// Conn.mu, then Group.mu, then the locks of packages work and poller and the watchdog's. No lock is held while code of
// an App runs or a system call is made, with two exceptions: arming the poller, and App code that asks for the lock by
// Conn.Lock.
//
// # Ownership of buffers
//
// A frame given to Batch or Run is valid until that call returns, unless the App retains the Input. Bytes reserved with
// Reserve belong to the connection once committed. A slice given to AppendShared must never change again.
//
// # Limits
//
// See Config: every queue, wait and table has one, and a policy at the limit.
package core
