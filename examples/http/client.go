package main

import (
	"bufio"
	"bytes"
	"net/http"
	"strconv"
	"strings"

	"github.com/arpc-go/arpc/extension/event"
)

const (
	// maxHead and maxBody are the largest parts of a request, in bytes.
	maxHead = 8 << 10
	maxBody = 1 << 20
	// maxReuse is the largest buffer for answers that is kept.
	maxReuse = 1 << 20
)

// client is a connection.
type client struct {
	in   event.InputStream
	need int // the length of the request that has begun, once known
}

// data answers the requests that packet completes. What is no request is answered with an error and closes the connection.
func (c *client) data(date string, out, packet []byte) ([]byte, event.Action) {
	rest := c.in.Begin(packet)
	for len(rest) > 0 && len(rest) >= c.need {
		size := bytes.Index(rest, []byte("\r\n\r\n")) + len("\r\n\r\n")
		complete := size >= len("\r\n\r\n")
		switch {
		case complete && size > maxHead, !complete && len(rest) > maxHead:
			return refuse(date, out, http.StatusRequestHeaderFieldsTooLarge)
		case !complete:
			c.in.End(rest)
			return out, event.None
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(rest[:size])))
		switch {
		case err != nil:
			return refuse(date, out, http.StatusBadRequest)
		case r.ContentLength < 0: // chunked
			return refuse(date, out, http.StatusLengthRequired)
		case r.ContentLength > maxBody:
			return refuse(date, out, http.StatusRequestEntityTooLarge)
		}
		first := c.need == 0
		c.need = size + int(r.ContentLength)
		if len(rest) < c.need {
			if first && strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
				out = append(out, "HTTP/1.1 100 Continue\r\n\r\n"...)
			}
			break
		}
		out = answer(date, out, r, rest[size:c.need])
		rest = rest[c.need:]
		c.need = 0
		if r.Close {
			return out, event.Close
		}
	}
	c.in.End(rest)
	return out, event.None
}

// answer appends the answer to a request.
func answer(date string, out []byte, r *http.Request, body []byte) []byte {
	status := http.StatusOK
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		body = []byte("hello from " + r.URL.Path + "\n")
	case http.MethodPost:
	default:
		status, body = http.StatusMethodNotAllowed, []byte("GET, HEAD or POST\n")
	}
	out = head(date, out, status, len(body))
	switch {
	case r.Close:
		out = append(out, "Connection: close\r\n"...)
	case r.ProtoMinor == 0:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	out = append(out, "\r\n"...)
	if r.Method != http.MethodHead {
		out = append(out, body...)
	}
	return out
}

// refuse appends an answer after which the connection is closed.
func refuse(date string, out []byte, status int) ([]byte, event.Action) {
	body := http.StatusText(status) + "\n"
	out = append(head(date, out, status, len(body)), "Connection: close\r\n\r\n"...)
	return append(out, body...), event.Close
}

// head appends the beginning of an answer.
func head(date string, out []byte, status, size int) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, "\r\nDate: "...)
	out = append(out, date...)
	out = append(out, "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(size), 10)
	return append(out, "\r\n"...)
}
