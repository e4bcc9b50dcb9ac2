package ws

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/frame"
)

// Config says how a connection was agreed upon.
type Config struct {
	// Client says that this end dialled: it masks what it sends, and the peer does not.
	Client bool
	// ReadLimit is the longest message that is accepted, in bytes.
	ReadLimit int64
	// Deflate says that permessage-deflate was agreed upon, without context takeover in either direction.
	Deflate bool
	// Compress is the number of bytes from which a message is sent compressed, if Deflate; 0 for never.
	Compress int
	// StatusOf returns the code and text of the close frame for the reason of a close; default StatusOf.
	StatusOf func(error) (ws.StatusCode, string)
	// Prefix keeps messages apart. What has arrived is handed on with its length before each message: four bytes, most
	// significant first, which count themselves; ReadLimit must fit. What is sent is such frames too, and each becomes a message
	// of its own.
	Prefix bool
	// NoText refuses text messages.
	NoText bool
}

// prefixLen is the size of the length that Config.Prefix speaks of.
const prefixLen = 4

// maxEmpty is the number of fragments without contents that a message may have in a row.
const maxEmpty = 100

// An Error is what the peer did wrong, and the status that it is told.
type Error struct {
	Status Status
	Text   string
	last   bool // the peer has sent its close frame and waits for ours
}

// Status is the code of a close frame.
type Status = ws.StatusCode

func (e *Error) Error() string { return fmt.Sprintf("websocket: %s (status %d)", e.Text, e.Status) }

// Unwrap returns io.EOF when the peer sends nothing more.
func (e *Error) Unwrap() error {
	if e.last {
		return io.EOF
	}
	return nil
}

// Closed is the end of a connection that the peer has closed with a status other than an ordinary one, or with a reason.
type Closed struct {
	Status ws.StatusCode
	Reason string
}

func (c *Closed) Error() string {
	return strings.TrimSpace(fmt.Sprintf("status %d %s", c.Status, c.Reason))
}

// PeerReason is what the errors of calls say.
func (c *Closed) PeerReason() string { return c.Error() }

// Unwrap returns io.EOF: the end was in order.
func (c *Closed) Unwrap() error { return io.EOF }

// Stage implements core.Stage.
//
//	open --close frame received--> the end of input, --Goodbye--> answered
//	open --Goodbye--> said --close frame received--> the end of input
//	open --fault--> nothing but a close frame is recognised, --Goodbye--> said --close frame received--> the end of input
type Stage struct {
	cfg *Config

	// The reader's.
	head    [ws.MaxHeaderSize]byte
	headLen uint8
	mask    [4]byte
	pos     uint8 // of the mask
	empty   uint8 // fragments without contents in a row
	flags   flags
	opcode  ws.OpCode // of the frame that is read
	tail    [3]byte   // an incomplete character of a text
	tailLen uint8
	left    int64 // bytes of the frame that have not arrived
	size    int64 // bytes of the message so far
	rare    *rare

	said   atomic.Bool            // a close frame was sent
	answer atomic.Pointer[[]byte] // the close frame that answers the peer's
	single atomic.Bool
}

// rare is what only some connections use.
type rare struct {
	control []byte // contents of a control frame
	message []byte // what has come of a message that is compressed, or must be complete
	plain   bytes.Buffer
}

type flags uint16

const (
	inFrame    flags = 1 << iota // left, mask and opcode are those of a frame
	fin                          // it is the last of its message
	masked                       // it is masked
	fragmented                   // a message is incomplete
	text                         // the message is text
	packed                       // the message is compressed
	deaf                         // after a fault: nothing is decoded but a close frame
	ended                        // nothing is decoded any more
	collect                      // the message is handed on when it is complete
)

// New returns the stage of a new connection. cfg must not change. single says that each frame has a message of its own, and
// has no meaning with cfg.Prefix, with which each does.
func New(cfg *Config, single bool) *Stage {
	s := &Stage{cfg: cfg}
	if cfg.Prefix { // they are wrapped together where a header fits into the place of a length
		single = cfg.Client || cfg.Deflate
	}
	s.single.Store(single)
	return s
}

// SetSingle changes whether each frame has a message of its own. The connection's lock is held.
func (s *Stage) SetSingle(single bool) { s.single.Store(single) }

// Single implements core.Stage.
func (s *Stage) Single() bool { return s.single.Load() }

func (s *Stage) is(f flags) bool { return s.flags&f != 0 }

func (s *Stage) extra() *rare {
	if s.rare == nil {
		s.rare = &rare{}
	}
	return s.rare
}

// Decode implements core.Stage.
func (s *Stage) Decode(p []byte, reply func([]byte)) ([]byte, error) {
	if s.is(ended) {
		return nil, nil
	}
	if s.is(deaf) {
		return nil, s.await(p)
	}
	out, rest, err := s.decode(p, reply)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		s.flags |= ended
	default:
		s.flags |= deaf
		var fault *Error
		if s.await(rest) != nil && errors.As(err, &fault) { // it has closed already
			err = &Error{fault.Status, fault.Text, true}
		}
	}
	return out, err
}

// await looks for the close frame that answers the one which said that the peer is at fault, so that the connection ends with
// it: the peer waits for that, RFC 6455 section 7.1.1. Whatever else the peer sends is skipped.
func (s *Stage) await(p []byte) error {
	for {
		take := min(s.left, int64(len(p)))
		s.left -= take
		if p = p[take:]; s.left > 0 {
			return nil
		}
		if s.is(inFrame) && s.opcode == ws.OpClose {
			s.flags |= ended
			return io.EOF
		}
		s.flags &^= inFrame
		rest, h, ok, err := s.readHeader(p)
		switch {
		case err != nil: // what follows cannot be told apart
			s.flags |= ended
			return io.EOF
		case !ok:
			return nil
		}
		p = rest
		s.flags |= inFrame
		s.left, s.opcode = h.Length, h.OpCode
	}
}

func (s *Stage) decode(p []byte, reply func([]byte)) (out, rest []byte, err error) {
	whole, n := p, 0 // whole[:n] is what has been decoded in place
	var more []byte  // decoded elsewhere, and all that follows
	add := func(b []byte) {
		if more == nil && n+len(b) <= len(whole)-len(p) {
			n += copy(whole[n:], b)
			return
		}
		if more == nil {
			more = append(more, whole[:n]...)
		}
		more = append(more, b...)
	}
	result := func() []byte {
		if more != nil {
			return more
		}
		return whole[:n]
	}
	for {
		if !s.is(inFrame) {
			var h ws.Header
			var ok bool
			if p, h, ok, err = s.readHeader(p); err == nil && ok {
				err = s.begin(h)
			}
			if err != nil || !ok {
				return result(), p, err
			}
			if s.cfg.Prefix && !s.opcode.IsControl() && !s.is(packed|collect) {
				add(binary.BigEndian.AppendUint32(nil, uint32(prefixLen+h.Length)))
			}
		}
		take := int(min(s.left, int64(len(p))))
		data := p[:take]
		p = p[take:]
		s.left -= int64(take)
		if s.is(masked) {
			ws.Cipher(data, s.mask, int(s.pos))
			s.pos = uint8((int(s.pos) + take) & 3)
		}
		switch {
		case s.opcode.IsControl():
			s.extra().control = append(s.rare.control, data...)
		case s.is(text) && !s.validText(data):
			return result(), p, errText
		case s.is(packed | collect):
			s.extra().message = append(s.rare.message, data...)
		default:
			add(data)
		}
		if s.left > 0 {
			return result(), p, nil
		}
		s.flags &^= inFrame
		if s.opcode.IsControl() {
			if err := s.control(reply); err != nil {
				return result(), p, err
			}
			continue
		}
		if !s.is(fin) {
			s.flags |= fragmented
			continue
		}
		if s.is(text) && s.tailLen > 0 {
			return result(), p, errText
		}
		if s.is(packed | collect) {
			message, err := s.complete()
			if err != nil {
				return result(), p, err
			}
			if s.cfg.Prefix {
				add(binary.BigEndian.AppendUint32(nil, uint32(prefixLen+len(message))))
			}
			add(message)
		}
		s.flags &^= fragmented | text | packed | collect
		s.size, s.tailLen, s.empty = 0, 0, 0
	}
}

var (
	errText    = &Error{Status: ws.StatusInvalidFramePayloadData, Text: "a text message is not UTF-8"}
	errTooBig  = &Error{Status: ws.StatusMessageTooBig, Text: "a message is above the limit"}
	errInflate = &Error{Status: ws.StatusInvalidFramePayloadData, Text: "a compressed message is malformed"}
	errEmpty   = &Error{Status: ws.StatusPolicyViolation, Text: "too many empty fragments"}
	errNoText  = &Error{Status: ws.StatusUnsupportedData, Text: "text messages are not understood"}
)

var readers = sync.Pool{New: func() any { return &headReader{} }}

type headReader struct {
	r   bytes.Reader
	buf [ws.MaxHeaderSize]byte
}

// readHeader takes a frame's header from p, of which a part may have come before. It returns what follows, and whether the header
// is complete.
func (s *Stage) readHeader(p []byte) (rest []byte, h ws.Header, ok bool, err error) {
	for {
		need := 2
		if s.headLen >= 2 {
			need = headerLen(s.head[1])
		}
		if int(s.headLen) == need && need > 2 || need == 2 && s.headLen == 2 {
			break
		}
		if len(p) == 0 {
			return p, h, false, nil
		}
		n := copy(s.head[s.headLen:need], p)
		s.headLen += uint8(n)
		p = p[n:]
		if s.headLen >= 2 && int(s.headLen) == headerLen(s.head[1]) {
			break
		}
	}
	r := readers.Get().(*headReader)
	r.r.Reset(s.head[:s.headLen])
	h, err = ws.ReadHeaderBuffer(&r.r, r.buf[:])
	r.r.Reset(nil)
	readers.Put(r)
	s.headLen = 0
	if err != nil {
		return p, h, false, &Error{Status: ws.StatusProtocolError, Text: err.Error()}
	}
	return p, h, true, nil
}

// headerLen is the length of a header whose second byte is b.
func headerLen(b byte) int {
	n := 2
	switch b & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if b&0x80 != 0 {
		n += 4
	}
	return n
}

// begin checks a header and begins its frame.
func (s *Stage) begin(h ws.Header) error {
	s.opcode, s.left, s.mask, s.pos = h.OpCode, h.Length, h.Mask, 0
	s.flags = s.flags&^(fin|masked) | inFrame
	state := ws.StateServerSide
	if s.cfg.Client {
		state = ws.StateClientSide
	}
	if s.is(fragmented) {
		state = state.Set(ws.StateFragmented)
	}
	compressed := s.cfg.Deflate && h.Rsv1() && !h.OpCode.IsControl() && h.OpCode != ws.OpContinuation
	if compressed {
		h.Rsv &^= 0x4
	}
	if err := ws.CheckHeader(h, state); err != nil {
		return &Error{Status: ws.StatusProtocolError, Text: err.Error()}
	}
	if h.Masked {
		s.flags |= masked
	}
	if h.OpCode.IsControl() {
		return nil // within a message: its flags stay as they are
	}
	if h.Fin {
		s.flags |= fin
	}
	if h.OpCode == ws.OpText {
		if s.cfg.NoText {
			return errNoText
		}
		s.flags |= text
	}
	if s.cfg.Prefix && !h.Fin {
		s.flags |= collect // until then its length is not known
	}
	if compressed {
		s.flags |= packed
	}
	if h.Length > s.cfg.ReadLimit-s.size {
		return errTooBig
	}
	s.size += h.Length
	if h.Length > 0 || h.Fin {
		s.empty = 0
	} else if s.empty++; s.empty > maxEmpty {
		return errEmpty
	}
	return nil
}

// control handles a control frame that has arrived.
func (s *Stage) control(reply func([]byte)) error {
	var p []byte
	if s.rare != nil {
		p = s.rare.control
		s.rare.control = nil
	}
	switch s.opcode {
	case ws.OpPing:
		if !s.said.Load() {
			reply(s.frame(ws.NewPongFrame(p)))
		}
		return nil
	case ws.OpPong:
		return nil
	}
	status, reason := ws.ParseCloseFrameData(p)
	if len(p) == 1 {
		return &Error{Status: ws.StatusProtocolError, Text: "a close frame of one byte", last: true}
	}
	if len(p) > 0 {
		if !validStatus(status) || !utf8.ValidString(reason) {
			return &Error{Status: ws.StatusProtocolError, Text: "a malformed close frame", last: true}
		}
	}
	var body []byte
	if len(p) > 0 {
		body = ws.NewCloseFrameBody(status, "")
	}
	answer := s.frame(ws.NewCloseFrame(body))
	s.answer.Store(&answer)
	if len(p) > 0 && (status != ws.StatusNormalClosure && status != ws.StatusGoingAway || reason != "") {
		return &Closed{status, reason}
	}
	return io.EOF
}

// validStatus reports whether a close frame may have a status, by RFC 6455 section 7.4 and the registry of IANA.
func validStatus(s Status) bool {
	return s >= 1000 && s <= 1003 || s >= 1007 && s <= 1014 || s >= 3000 && s <= 4999
}

// frame encodes a frame as this end sends it.
func (s *Stage) frame(f ws.Frame) []byte {
	if s.cfg.Client {
		f = ws.MaskFrame(f)
	}
	return ws.MustCompileFrame(f)
}

// Ping returns a ping with a payload of at most 125 bytes, raw; the connection's lock is held while it is queued.
func (s *Stage) Ping(payload []byte) []byte { return s.frame(ws.NewPingFrame(payload)) }

// validText checks the next bytes of a text, which may end within a character.
func (s *Stage) validText(p []byte) bool {
	if s.is(packed) {
		return true // checked when it is unpacked
	}
	for s.tailLen > 0 && len(p) > 0 {
		var c [utf8.UTFMax]byte
		n := copy(c[:], s.tail[:s.tailLen])
		m := n + copy(c[n:], p)
		if !utf8.FullRune(c[:m]) {
			s.tailLen = uint8(copy(s.tail[:], c[:m]))
			return validStart(c[:m])
		}
		r, size := utf8.DecodeRune(c[:m])
		if r == utf8.RuneError && size == 1 {
			return false
		}
		p = p[size-n:]
		s.tailLen = 0
	}
	for i := 0; i < utf8.UTFMax-1 && i < len(p); i++ { // does it end within a character?
		if at := len(p) - 1 - i; utf8.RuneStart(p[at]) {
			if !utf8.FullRune(p[at:]) {
				s.tailLen = uint8(copy(s.tail[:], p[at:]))
				p = p[:at]
			}
			break
		}
	}
	return utf8.Valid(p) && (s.tailLen == 0 || validStart(s.tail[:s.tailLen]))
}

// validStart reports whether p, which is not a whole character, may begin one.
func validStart(p []byte) bool {
	for _, fill := range [...]byte{0x80, 0x90, 0xa0, 0xbf} { // some continuation makes it whole
		var c [utf8.UTFMax]byte
		n := copy(c[:], p)
		c[n] = fill
		for i := n + 1; i < len(c); i++ {
			c[i] = 0x80
		}
		if r, size := utf8.DecodeRune(c[:]); r != utf8.RuneError || size > 1 {
			return true
		}
	}
	return false
}

type inflater struct {
	src bytes.Reader
	r   io.ReadCloser
}

// deflateTail ends the blocks of a message, RFC 7692 section 7.2.2, and then the stream.
var deflateTail = []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}

var inflaters = sync.Pool{New: func() any { return &inflater{r: flate.NewReader(nil)} }}

// complete returns the message that has been collected, unpacked.
func (s *Stage) complete() ([]byte, error) {
	x := s.extra()
	message := x.message
	x.message = nil
	if !s.is(packed) {
		return message, nil
	}
	in := inflaters.Get().(*inflater)
	defer inflaters.Put(in)
	in.src.Reset(append(message, deflateTail...))
	in.r.(flate.Resetter).Reset(&in.src, nil) //nolint:errcheck // it never fails
	x.plain.Reset()
	limit := min(s.cfg.ReadLimit, math.MaxInt64-1)
	n, err := io.Copy(&x.plain, io.LimitReader(in.r, limit+1))
	switch {
	case n > limit:
		x.plain = bytes.Buffer{}
		return nil, errTooBig
	case err != nil:
		return nil, errInflate
	case s.is(text) && !utf8.Valid(x.plain.Bytes()):
		return nil, errText
	}
	out := x.plain.Bytes()
	if x.plain.Cap() > 64<<10 {
		x.plain = bytes.Buffer{}
	}
	return out, nil
}

// Room implements core.Stage.
func (s *Stage) Room() int {
	if s.cfg.Client {
		return ws.MaxHeaderSize
	}
	return ws.MaxHeaderSize - 4
}

type headWriter struct {
	bytes.Buffer
	buf [ws.MaxHeaderSize]byte
}

var writers = sync.Pool{New: func() any { return new(headWriter) }}

// Wrap implements core.Stage.
func (s *Stage) Wrap(p []byte) (start, end int) {
	room := s.Room()
	switch {
	case !s.cfg.Prefix:
		return s.wrap(p, room)
	case s.Single():
		return s.wrap(p, room+prefixLen)
	}
	for at := room; at < len(p); {
		next := at + int(binary.BigEndian.Uint32(p[at:]))
		// The header fits into the place of the length, but for that of a message of 64 KiB or more, which core makes the
		// first of its chunk, so that it has all the room.
		from, to := s.wrap(p[:next], at+prefixLen)
		if at == room {
			start, end = from, to
		} else {
			end += copy(p[end:], p[from:to])
		}
		at = next
	}
	return start, end
}

// wrap makes p[at:] a message: in place, but for the header, which comes before it.
func (s *Stage) wrap(p []byte, at int) (start, end int) {
	payload := p[at:]
	h := ws.Header{Fin: true, OpCode: ws.OpBinary}
	if s.cfg.Deflate && s.cfg.Compress > 0 && len(payload) >= s.cfg.Compress {
		if n := deflate(payload); n > 0 {
			payload = payload[:n]
			h.Rsv = ws.Rsv(true, false, false)
		}
	}
	h.Length = int64(len(payload))
	if s.cfg.Client {
		h.Masked, h.Mask = true, ws.NewMask()
		ws.Cipher(payload, h.Mask, 0)
	}
	w := writers.Get().(*headWriter)
	w.Reset()
	ws.WriteHeaderBuffer(w, h, w.buf[:]) //nolint:errcheck // a buffer takes everything
	start = at - w.Len()
	copy(p[start:], w.Bytes())
	writers.Put(w)
	return start, at + len(payload)
}

type deflater struct {
	dst bytes.Buffer
	w   *flate.Writer
}

var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant
	}
	return &deflater{w: w}
}}

// deflate replaces p by its compressed form, of n bytes, if that is shorter; otherwise it returns 0.
func deflate(p []byte) (n int) {
	d := deflaters.Get().(*deflater)
	defer deflaters.Put(d)
	d.dst.Reset()
	d.w.Reset(&d.dst)
	d.w.Write(p) //nolint:errcheck // a buffer takes everything
	d.w.Flush()  //nolint:errcheck // as above
	out := bytes.TrimSuffix(d.dst.Bytes(), deflateTail[:4])
	if len(out) >= len(p) {
		return 0
	}
	return copy(p, out)
}

// StatusOf is the close code and text for the reason of a close, as far as the lower layers know it: 1000 when this side is done,
// 1001 when it ends or the peer was silent, 1009 for what is too long, and 1008 for everything else.
func StatusOf(err error) (Status, string) {
	var large *frame.TooLargeError
	switch {
	case errors.Is(err, core.ErrClosed):
		return ws.StatusNormalClosure, ""
	case errors.Is(err, core.ErrStopped), errors.Is(err, core.ErrIdle):
		return ws.StatusGoingAway, err.Error()
	case errors.As(err, &large):
		return ws.StatusMessageTooBig, err.Error()
	}
	return ws.StatusPolicyViolation, err.Error()
}

// Goodbye implements core.Stage.
func (s *Stage) Goodbye(err error) []byte {
	if !s.said.CompareAndSwap(false, true) {
		return nil
	}
	if answer := s.answer.Load(); answer != nil {
		return *answer
	}
	var own *Error
	status, reason := ws.StatusCode(0), ""
	if errors.As(err, &own) {
		status, reason = own.Status, own.Text
	} else {
		statusOf := s.cfg.StatusOf
		if statusOf == nil {
			statusOf = StatusOf
		}
		status, reason = statusOf(err)
	}
	for len(reason) > 123 || !utf8.ValidString(reason) {
		reason = reason[:len(reason)-1]
	}
	return s.frame(ws.NewCloseFrame(ws.NewCloseFrameBody(status, reason)))
}
