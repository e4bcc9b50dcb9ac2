package main

import (
	"github.com/arpc-go/arpc/extension/event"
	"github.com/tidwall/redcon"
)

const (
	// maxQuery is the number of bytes of a command that is not complete.
	maxQuery = 1 << 20
	// maxReuse is the largest buffer for answers that is kept.
	maxReuse = 1 << 20
)

// A protocolError says what is wrong with the input.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

const (
	errTooLong   protocolError = "too big query"
	errMalformed protocolError = "malformed command"
)

// client is a connection.
type client struct {
	in      event.InputStream
	args    [][]byte
	parsing bool
}

// data answers the commands that packet completes. What is malformed is answered with an error and closes the connection.
func (c *client) data(s *store, out, packet []byte) (answers []byte, action event.Action) {
	defer func() {
		if c.parsing { // redcon 1.6.2 has tripped over a negative length
			recover() //nolint:errcheck // what it says is of no interest
			answers, action = refuse(out, errMalformed)
		}
	}()
	rest := c.in.Begin(packet)
	for len(rest) > 0 {
		c.parsing = true
		complete, args, kind, left, err := redcon.ReadNextCommand(rest, c.args[:0])
		c.parsing = false
		c.args = args
		switch {
		case kind == redcon.Tile38:
			return refuse(out, errMalformed)
		case err != nil:
			return refuse(out, err)
		case !complete && len(left) > maxQuery:
			return refuse(out, errTooLong)
		}
		rest = left
		if !complete {
			break
		}
		if len(args) == 0 {
			continue
		}
		if out, action = s.do(out, args); action != event.None {
			return out, action
		}
	}
	c.in.End(rest)
	return out, event.None
}

// refuse says what is wrong with the input.
func refuse(out []byte, err error) ([]byte, event.Action) {
	return redcon.AppendError(out, "ERR "+err.Error()), event.Close
}
