package arpc

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"unique"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/core"
)

// A features is a set of what version 2 of the protocol adds; see docs/protocol.md. Both ends of a connection have those that
// both have offered.
type features uint32

const (
	featMetadata features = 1 << iota // deadlines and metadata of calls
	featCancel                        // CANCEL
	featErrors                        // errors with codes and details
	featStreams                       // flow control, metadata, resets and large messages of streams
	featGoAway                        // GOAWAY: draining, and reasons for a close

	ourFeatures = featMetadata | featCancel | featErrors | featStreams | featGoAway
)

// Layout of a HELLO, the body of the first ping and its pong. All integers are little-endian.
const (
	helloMagic = "arpc"
	helloFixed = 32 // bytes before the names of the codecs

	protocolVersion = 2
	maxHello        = 4 << 10
	minStreamWindow = 4 << 10 // bytes; a smaller window is malformed

	// checkedBody is the number of bytes from which a body is compared with the peer's limit; who takes less is told by the
	// end of the connection.
	checkedBody = 256
)

// hello is what an end says about itself.
type hello struct {
	version    byte
	features   features
	maxBody    uint32 // longest body of a frame that is accepted, in bytes
	metadata   uint32 // longest metadata block, in bytes
	window     uint32 // credit of a new stream, in bytes
	connWindow uint32 // credit of all streams together, in bytes
	streams    uint32 // streams that the peer may have opened at a time
	names      string // of codecs, and of coders after coderPrefix; each with a comma behind it
}

// peerHello is a hello of the peer's; equal ones are kept once in the process, as most are.
type peerHello = unique.Handle[hello]

// append appends the encoding.
func (h *hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = append(b, h.version, helloFixed, 0, 0)
	for _, n := range []uint32{uint32(h.features), h.maxBody, h.metadata, h.window, h.connWindow, h.streams} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	for _, name := range strings.Split(h.names, ",") {
		if name != "" && len(b)+1+len(name) <= maxHello {
			b = append(append(b, byte(len(name))), name...)
		}
	}
	return b
}

// isHello reports whether the body of a ping or pong is one, if perhaps malformed.
func isHello(body []byte) bool {
	return len(body) >= len(helloMagic) && string(body[:len(helloMagic)]) == helloMagic
}

func helloError(format string, args ...any) *Error {
	return &Error{Code: CodeInvalidArgument, Message: "malformed HELLO: " + fmt.Sprintf(format, args...)}
}

// parseHello decodes what isHello has recognised.
func parseHello(b []byte) (hello, error) {
	var h hello
	if len(b) < helloFixed || len(b) > maxHello {
		return h, helloError("%d bytes", len(b))
	}
	h.version = b[4]
	fixed := int(b[5])
	if h.version < protocolVersion {
		return h, helloError("version %d", h.version)
	}
	if fixed < helloFixed || fixed > len(b) {
		return h, helloError("fixed part of %d bytes", fixed)
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[8+4*i:]) }
	h.features = features(word(0))
	h.maxBody, h.metadata, h.window, h.connWindow, h.streams = word(1), word(2), word(3), word(4), word(5)
	if h.maxBody == 0 {
		return h, helloError("longest body of %d bytes", h.maxBody)
	}
	if h.features&featStreams != 0 && (h.window < minStreamWindow || h.connWindow < h.window || h.connWindow > math.MaxInt32) {
		return h, helloError("windows of %d and %d bytes", h.window, h.connWindow)
	}
	var names strings.Builder
	for rest := b[fixed:]; len(rest) > 0; {
		n := int(rest[0])
		if n == 0 || 1+n > len(rest) || strings.ContainsRune(string(rest[1:1+n]), ',') {
			return h, helloError("names of codecs")
		}
		names.Write(rest[1 : 1+n])
		names.WriteByte(',')
		rest = rest[1+n:]
	}
	h.names = names.String()
	return h, nil
}

// ourHello is what this side says about itself.
func (l *link) ourHello(f features) hello {
	c := l.client
	h := hello{
		version: protocolVersion, features: f, maxBody: uint32(min(c.Handler.MaxBodyLen(), math.MaxInt32)),
		metadata: uint32(l.rpc.maxMetadata), window: uint32(l.rpc.window), connWindow: uint32(l.rpc.connWindow),
		streams: uint32(l.rpc.maxStreams),
	}
	var names []string
	add := func(prefix string, v any) {
		n, ok := v.(interface{ Name() string })
		if !ok {
			return
		}
		name := prefix + n.Name()
		if len(name) <= 255 && !strings.ContainsRune(name, ',') && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	add("", c.Codec)
	for _, name := range codec.Names() {
		add("", codec.Lookup(name))
	}
	for _, coder := range c.Handler.load().coders {
		add(coderPrefix, coder)
	}
	h.names = strings.Join(names, ",") + ","
	return h
}

// coderPrefix tells the names of coders from those of codecs.
const coderPrefix = "coder:"

// decodesLocked reports whether the peer can be sent messages of a codec. The lock is held.
func (l *link) decodesLocked(name string) bool {
	return l.has(featMetadata) && l.peer != peerHello{} && l.peer.Value().knows(name)
}

func (h hello) knows(name string) bool {
	for rest := h.names; rest != ""; {
		var first string
		if first, rest, _ = strings.Cut(rest, ","); first == name {
			return true
		}
	}
	return false
}

// helloFrame makes a ping or pong that carries a hello.
func helloFrame(cmd byte, h hello) []byte {
	f := h.append(makeHeader(cmd))
	binary.LittleEndian.PutUint32(f, uint32(len(f)-HeadLen))
	return f
}

// sendHello opens the negotiation. It is the first that a connection sends.
func (l *link) sendHello() {
	f := helloFrame(CmdPing, l.ourHello(ourFeatures))
	l.cn.Lock()
	if l.cn.CanSend() != nil {
		l.cn.Unlock()
		return
	}
	copy(l.cn.Reserve(len(f)), f)
	l.cn.Commit(core.Now, false)
}

// ping handles a received ping, which may carry the peer's HELLO: of a connection that was accepted, the first time.
func (l *link) ping(frame []byte) error {
	body := frame[HeadLen:]
	if l.client.dial != nil || l.rpc.version < protocolVersion || !isHello(body) {
		l.pong(pongFrame)
		return nil
	}
	h, err := parseHello(body)
	if err == nil && l.greetedBefore() {
		err = helloError("the second of the connection")
	}
	if err != nil {
		return err
	}
	h.features &= ourFeatures
	f := helloFrame(CmdPong, l.ourHello(h.features))
	l.cn.Lock()
	if l.cn.CanSend() != nil {
		l.cn.Unlock()
		return nil
	}
	copy(l.cn.ReserveAnswer(len(f)), f) // before anybody can send what only version 2 knows
	l.learnLocked(h)
	l.cn.Commit(core.Now, false)
	return nil
}

// ponged handles a received pong: the first answers the HELLO, a later one may say that the peer knows of our drain. It reports whether
// it was the first; the caller closes linkExtra.greeted then.
func (l *link) ponged(frame []byte) (first bool, err error) {
	x := l.x.Load()
	if x != nil && x.draining.Load() {
		x.draining.Store(false)
	}
	if l.client.dial == nil || x == nil || x.greeted == nil {
		return false, nil
	}
	select {
	case <-x.greeted:
		return false, nil
	default:
	}
	if body := frame[HeadLen:]; isHello(body) {
		h, err := parseHello(body)
		if err == nil && h.features&^ourFeatures != 0 {
			err = helloError("features that were not offered")
		}
		if err != nil {
			return false, err
		}
		l.cn.Lock()
		l.learnLocked(h)
		l.cn.Unlock()
	}
	return true, nil
}

// learnLocked makes the connection one of version 2.
func (l *link) learnLocked(h hello) {
	l.peer = unique.Make(h)
	l.feat.Store(uint32(h.features))
	if x := l.x.Load(); x != nil && x.streams != nil { // of streams that began before
		x.streams.credit = int(h.connWindow)
	}
	l.cn.Together()
}

func (l *link) greetedBefore() bool {
	l.cn.Lock()
	defer l.cn.Unlock()
	return l.peer != peerHello{}
}

// has reports whether both ends have a feature.
func (l *link) has(f features) bool { return features(l.feat.Load())&f != 0 }
