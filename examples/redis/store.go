package main

import (
	"bytes"
	"math"
	"strconv"

	"github.com/arpc-go/arpc/extension/event"
	"github.com/tidwall/redcon"
)

// store is what the clients share. It has no lock, since all events belong to one loop.
type store struct{ values map[string][]byte }

func newStore() *store { return &store{map[string][]byte{}} }

// A handler runs a command, which has a number of arguments, its name included: exactly arity, or -arity or more.
type handler struct {
	arity int
	do    func(s *store, out []byte, args [][]byte) ([]byte, event.Action)
}

var (
	ping = handler{-1, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		switch len(args) {
		case 1:
			return redcon.AppendString(out, "PONG"), event.None
		case 2:
			return redcon.AppendBulk(out, args[1]), event.None
		}
		return wrongArity(out, "ping"), event.None
	}}
	echo = handler{2, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		return redcon.AppendBulk(out, args[1]), event.None
	}}
	get = handler{2, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		if v, ok := s.values[string(args[1])]; ok {
			return redcon.AppendBulk(out, v), event.None
		}
		return redcon.AppendNull(out), event.None
	}}
	set = handler{-3, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		if len(args) > 3 { // options
			return redcon.AppendError(out, "ERR syntax error"), event.None
		}
		s.set(args[1], args[2])
		return redcon.AppendOK(out), event.None
	}}
	del = handler{-2, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		n := len(s.values)
		for _, key := range args[1:] {
			delete(s.values, string(key))
		}
		return redcon.AppendInt(out, int64(n-len(s.values))), event.None
	}}
	incr = handler{2, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		var n int64
		if v, ok := s.values[string(args[1])]; ok {
			var err error
			if n, err = strconv.ParseInt(string(v), 10, 64); err != nil || strconv.FormatInt(n, 10) != string(v) {
				return redcon.AppendError(out, "ERR value is not an integer or out of range"), event.None
			}
		}
		if n == math.MaxInt64 {
			return redcon.AppendError(out, "ERR increment or decrement would overflow"), event.None
		}
		var digits [20]byte
		s.set(args[1], strconv.AppendInt(digits[:0], n+1, 10))
		return redcon.AppendInt(out, n+1), event.None
	}}
	quit = handler{-1, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		return redcon.AppendOK(out), event.Close
	}}
	shutdown = handler{-1, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		return out, event.Shutdown
	}}
	// redis-cli asks what commands there are, to complete what is typed.
	command = handler{-1, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		return redcon.AppendArray(out, 0), event.None
	}}
	config = handler{-2, func(s *store, out []byte, args [][]byte) ([]byte, event.Action) {
		if !bytes.EqualFold(args[1], []byte("get")) {
			return redcon.AppendError(out, "ERR unknown subcommand '"+string(args[1])+"'. Try CONFIG HELP."), event.None
		}
		if len(args) < 3 {
			return wrongArity(out, "config|get"), event.None
		}
		var found []byte
		n := 0
		for _, name := range args[2:] {
			if value, ok := settings[string(bytes.ToLower(name))]; ok {
				found = redcon.AppendBulk(redcon.AppendBulk(found, name), []byte(value))
				n += 2
			}
		}
		return append(redcon.AppendArray(out, n), found...), event.None
	}}
)

// lookup finds a command by its name in lower case. It is a switch as that is quicker than a map.
func lookup(name string) (h handler, ok bool) {
	switch name {
	case "ping":
		return ping, true
	case "echo":
		return echo, true
	case "get":
		return get, true
	case "set":
		return set, true
	case "del":
		return del, true
	case "incr":
		return incr, true
	case "quit":
		return quit, true
	case "shutdown":
		return shutdown, true
	case "command":
		return command, true
	case "config":
		return config, true
	}
	return handler{}, false
}

// settings are what redis-benchmark asks for.
var settings = map[string]string{"save": "", "appendonly": "no"}

// set copies value, into the memory of an earlier one if that is large enough and not much too large.
func (s *store) set(key, value []byte) {
	if old, ok := s.values[string(key)]; ok && cap(old) >= len(value) && cap(old) <= 2*len(value)+64 {
		copy(old[:cap(old)], value)
		if len(old) != len(value) {
			s.values[string(key)] = old[:len(value)]
		}
		return
	}
	s.values[string(key)] = bytes.Clone(value)
}

// longestName is the length of the longest name of a command.
const longestName = len("shutdown")

// do runs a command and appends its answer.
func (s *store) do(out []byte, args [][]byte) ([]byte, event.Action) {
	var lower [longestName]byte
	name := args[0]
	if len(name) > longestName {
		return unknown(out, args), event.None
	}
	for i, b := range name {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		lower[i] = b
	}
	c, ok := lookup(string(lower[:len(name)]))
	switch {
	case !ok:
		return unknown(out, args), event.None
	case c.arity > 0 && len(args) != c.arity, len(args) < -c.arity:
		return wrongArity(out, string(lower[:len(name)])), event.None
	}
	return c.do(s, out, args)
}

func wrongArity(out []byte, name string) []byte {
	return redcon.AppendError(out, "ERR wrong number of arguments for '"+name+"' command")
}

// unknown tells which command, and as many of its arguments as fit into what Redis tells.
func unknown(out []byte, args [][]byte) []byte {
	const most = 128
	clip := func(p []byte, n int) string { return string(p[:min(len(p), max(n, 0))]) }
	text := ""
	for _, a := range args[1:] {
		if len(text) >= most {
			break
		}
		text += "'" + clip(a, most-len(text)) + "' "
	}
	return redcon.AppendError(out, "ERR unknown command '"+clip(args[0], most)+"', with args beginning with: "+text)
}
