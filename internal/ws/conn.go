package ws

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"

	"github.com/arpc-go/arpc/internal/core"
)

// Conn is a connection after its handshake, for a core Group, which takes it apart: nobody else reads or writes it.
type Conn struct {
	net.Conn
	stage *Stage
	rest  []byte
}

var errTaken = errors.New("websocket: the connection is read and written by arpc")

// Read fails.
func (c *Conn) Read([]byte) (int, error) { return 0, errTaken }

// Write fails.
func (c *Conn) Write([]byte) (int, error) { return 0, errTaken }

// Unwrap implements core.Staged.
func (c *Conn) Unwrap() (net.Conn, core.Stage, []byte) { return c.Conn, c.stage, c.rest }

var deflateOffer = wsflate.Parameters{ServerNoContextTakeover: true, ClientNoContextTakeover: true}

// Upgrade answers a handshake. cfg applies to all connections; deflate offers compression. On an error the response has been
// written.
func Upgrade(w http.ResponseWriter, r *http.Request, cfg *Config, deflate bool, protocols []string) (*Conn, error) {
	u := ws.HTTPUpgrader{}
	if len(protocols) > 0 {
		u.Protocol = func(p string) bool {
			for _, ours := range protocols {
				if p == ours {
					return true
				}
			}
			return false
		}
	}
	ext := wsflate.Extension{Parameters: deflateOffer}
	if deflate {
		u.Negotiate = ext.Negotiate
	}
	nc, rw, _, err := u.Upgrade(r, w)
	if err != nil {
		if nc != nil {
			nc.Close() //nolint:errcheck // the handshake has failed
		}
		return nil, err
	}
	c := &Conn{Conn: nc}
	if n := rw.Reader.Buffered(); n > 0 {
		c.rest = make([]byte, n)
		io.ReadFull(rw.Reader, c.rest) //nolint:errcheck // it is there
	}
	own := cfg
	if _, ok := ext.Accepted(); ok {
		packed := *cfg
		packed.Deflate = true
		own = &packed
	}
	c.stage = New(own, true)
	return c, nil
}

// Dial dials and does the handshake.
func Dial(ctx context.Context, d *ws.Dialer, url string, cfg *Config, deflate bool) (*Conn, error) {
	if deflate {
		own := *d
		own.Extensions = []httphead.Option{deflateOffer.Option()}
		d = &own
	}
	nc, br, hs, err := d.Dial(ctx, url)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: nc}
	if br != nil {
		c.rest = make([]byte, br.Buffered())
		io.ReadFull(br, c.rest) //nolint:errcheck // it is there
		ws.PutReader(br)
	}
	own := cfg
	for _, e := range hs.Extensions {
		if string(e.Name) == wsflate.ExtensionName {
			packed := *cfg
			packed.Deflate = true
			own = &packed
		}
	}
	c.stage = New(own, false)
	return c, nil
}
