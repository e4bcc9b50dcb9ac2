// Package session gives connections over TCP, UDP and WebSocket one form: a Session, whose packages a codec of the user's reads
// and writes, and an EventListener that is told what happens to it. Names and behaviour are those of qsocket, today getty.
//
//	server := session.NewTCPServer(session.WithLocalAddress("127.0.0.1:8090"))
//	err := server.RunEventLoop(func(s session.Session) error {
//		s.SetPkgHandler(codec)       // Read and Write
//		s.SetEventListener(listener) // OnOpen, OnMessage, OnCron, OnError, OnClose
//		return nil
//	})
//	defer server.Close()
//
// # Concurrency
//
// The callbacks of one session never overlap, and come in the order: newSession, OnOpen, any OnMessage and OnCron, OnError at most
// once, when it ends with an error, OnClose. With UDP, OnError may come at any time, for datagrams that could not be sent. With a
// TaskPool, OnMessage runs beside the others, and beside itself; OnClose waits for its end. Callbacks may block: that
// delays the others of that session only, and after a while its peer. Reader.Read runs where OnMessage does, on the
// goroutine of the session's strand; Writer.Write runs on the goroutine that calls WritePkg. All methods may be called from any
// goroutine. A panic in a callback ends the session with an error; with UDP, one that a datagram causes only drops that.
//
// # Ownership of buffers
//
// The bytes given to Reader.Read are valid until OnMessage has returned for the package made of them; with a TaskPool, until
// Read returns. Bytes that are written are the caller's again when the call returns.
//
// # Limits
//
// A package is at most MaxMsgLen long, and an incomplete one takes no more memory than that. Output above 1 MiB makes WritePkg
// wait for its timeout, and the peer is not read meanwhile. What came and was not yet handled is at most 4 MiB; then the peer is
// not read.
package session
