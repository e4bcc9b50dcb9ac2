package gateway

import (
	"bytes"
	"encoding/binary"
	"net/http"

	"github.com/arpc-go/arpc"
)

const (
	frameExtra = arpc.HeadLen + arpc.MaxMethodLen // bytes of a frame besides its payload

	frameType = "application/octet-stream"
)

// Binary returns a handler of arpc's binary HTTP calls, the callHttp of arpc.js: whatever the path, the body of a POST is
// a frame of version 1 of the protocol, a request or a notification, and the body of the answer is the response's frame. How a
// call has failed is said in that frame, with status 200.
func (g *Gateway) Binary() http.Handler { return http.HandlerFunc(g.serveBinary) }

func (g *Gateway) serveBinary(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !g.cors(w, r, false) {
		return
	}
	if r.Method != http.MethodPost {
		notAllowed(w, g.allowed(false))
		return
	}
	buf := bodies.Get().(*bytes.Buffer)
	defer free(buf)
	if status, err := g.read(w, r, buf, g.frameLimit()); err != nil {
		fail(w, status, err)
		return
	}
	m := &arpc.Message{Buffer: buf.Bytes()}
	if !isFrame(m) {
		fail(w, http.StatusBadRequest, invalid("the body is not the frame of a request or a notification"))
		return
	}
	ctx, cancel, status, err := g.context(r)
	if err != nil {
		fail(w, status, err)
		return
	}
	defer cancel()
	method := m.Method()
	payload := m.Buffer[arpc.HeadLen+m.MethodLen():]
	if m.Cmd() == arpc.CmdNotify {
		if g.exposed(method) {
			c, err := g.notes.get(ctx)
			if err == nil {
				err = local(c.client.NotifyWith(ctx, method, payload))
				g.notes.put(c, false)
			}
			if err != nil {
				fail(w, statusOf(err), err)
				return
			}
		}
		write(w, http.StatusOK, frameType, nil)
		return
	}
	var answer []byte
	var md arpc.Metadata
	err = arpc.ErrMethodNotFound
	if g.exposed(method) {
		answer, err = g.call(arpc.WithResponseMetadata(ctx, &md), []string{method}, payload)
	}
	g.putMetadata(w.Header(), r, md)
	if err != nil {
		answer = []byte(textOf(err))
	}
	write(w, http.StatusOK, frameType, responseFrame(m, answer, err != nil))
}

// isFrame reports whether the message is exactly one frame that a client may send here.
func isFrame(m *arpc.Message) bool {
	return m.Len() > arpc.HeadLen && m.BodyLen() == m.Len()-arpc.HeadLen &&
		(m.Buffer[5] == arpc.CmdRequest || m.Buffer[5] == arpc.CmdNotify) &&
		m.MethodLen() > 0 && m.MethodLen() <= arpc.MaxMethodLen && m.MethodLen() <= m.BodyLen()
}

// responseFrame answers a request frame.
func responseFrame(req *arpc.Message, payload []byte, failed bool) []byte {
	n := req.MethodLen()
	b := make([]byte, 0, arpc.HeadLen+n+len(payload))
	b = binary.LittleEndian.AppendUint32(b, uint32(n+len(payload)))
	b = append(b, 0, arpc.CmdResponse, 0, byte(n))
	b = append(b, req.Buffer[8:arpc.HeadLen+n]...) // sequence number and method
	b = append(b, payload...)
	m := &arpc.Message{Buffer: b}
	m.SetAsync(req.IsAsync())
	m.SetError(failed)
	return b
}
