// Package chat is what the server and the clients of the chat agree upon.
package chat

// The actions.
const (
	Login   = 1   // LoginRequest, answered with a LoginReply
	Say     = 2   // a Line, answered with a SayReply
	Deliver = 101 // a Line, pushed by the server
)

// LoginRequest asks for a name.
type LoginRequest struct{ Name string }

// LoginReply says who is there, or why not: the wire has no errors.
type LoginReply struct {
	Names []string
	Error string
}

// A Line is what somebody says to another, or to all if To is empty.
type Line struct{ From, To, Text string }

// SayReply says how many have been sent the line.
type SayReply struct{ Receivers int }
