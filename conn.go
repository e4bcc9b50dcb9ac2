package arpc

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/arpc-go/arpc/internal/core"
)

// connView is Client.Conn: the client's current connection as a net.Conn. The framework reads and writes the connection; the
// view gives the addresses and closes it.
type connView Client

var errViewOnly = errors.New("arpc: the connection is read and written by its Client")

func (v *connView) conn() *core.Conn { return (*Client)(v).link.Load().cn }

// Read fails: the framework reads.
func (v *connView) Read([]byte) (int, error) { return 0, errViewOnly }

// Write fails: the framework writes.
func (v *connView) Write([]byte) (int, error) { return 0, errViewOnly }

// Close closes the current connection; a client that dials connects again.
func (v *connView) Close() error {
	v.conn().Close(core.ErrClosed)
	return nil
}

// LocalAddr returns the current connection's local address.
func (v *connView) LocalAddr() net.Addr { return v.conn().LocalAddr() }

// RemoteAddr returns the current connection's peer.
func (v *connView) RemoteAddr() net.Addr { return v.conn().RemoteAddr() }

// SetDeadline fails: time limits are those of calls and of Limits.
func (v *connView) SetDeadline(time.Time) error { return errViewOnly }

// SetReadDeadline fails, see SetDeadline.
func (v *connView) SetReadDeadline(time.Time) error { return errViewOnly }

// SetWriteDeadline fails, see SetDeadline.
func (v *connView) SetWriteDeadline(time.Time) error { return errViewOnly }

// wrap is core.Config.Wrap.
func (m *Mux) wrap(nc net.Conn) io.Reader {
	if w := m.load().wrapReader; w != nil {
		return w(nc)
	}
	return nil
}

// beforeWrite is core.Config.BeforeWrite.
func beforeWrite(m *Mux) func(*core.Conn) error {
	return func(cn *core.Conn) error {
		h := m.load().beforeSend
		if h == nil {
			return nil
		}
		return h(cn.User.(*link).client.Conn)
	}
}
