package packet

// SetStdConns is how many sessions may have a goroutine each, before Start: -1 all, 0 none.
func (s *Server) SetStdConns(n int) { s.std = n }
