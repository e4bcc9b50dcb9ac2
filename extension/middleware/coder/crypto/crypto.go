package crypto

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder"
	"github.com/arpc-go/arpc/log"
)

// Layout of an encrypted frame, from the reserved byte on.
const (
	reservedOff = 4
	markOff     = 5 // where the encrypted part of the original frame begins
	keyOff      = 6
	sessionOff  = 10
	counterOff  = 26
	sealedOff   = 34
	tagLen      = 16

	// mark is in the place of the command; no command has its value.
	mark = 0x1c
	// epochBits is the number of the counter's bits that do not change the
	// derived key.
	epochBits = 20
)

// KeyLen is the length of a Key's Secret in bytes.
const KeyLen = 32

// A Key is a secret that both ends have.
type Key struct {
	// ID tells the keys of a ring from each other. It travels with each frame.
	ID uint32
	// Secret is KeyLen random bytes, not a password.
	Secret []byte
}

// Crypto is the coder. Make it with NewServer and NewClient.
type Crypto struct {
	keys     atomic.Pointer[ring]
	out, in  string // the directions, which are part of derived keys
	sessions sessions
	creating sync.Mutex
	nobody   connection // of messages without a Client
}

var _ arpc.MessageCoder = (*Crypto)(nil)

// ring is the keys in use; it does not change.
type ring struct {
	first *Key
	all   map[uint32]*Key
}

const (
	fromServer = "arpc crypto 1, server to client, "
	fromClient = "arpc crypto 1, client to server, "
)

// NewServer returns the coder of the end that accepts connections. The first key
// encrypts, all decrypt. It is an error if there is no key, if a Secret has not
// KeyLen bytes, or if an ID comes twice.
func NewServer(keys ...Key) (*Crypto, error) { return create(fromServer, fromClient, keys) }

// NewClient returns the coder of the end that dials, see NewServer.
func NewClient(keys ...Key) (*Crypto, error) { return create(fromClient, fromServer, keys) }

func create(out, in string, keys []Key) (*Crypto, error) {
	c := &Crypto{out: out, in: in}
	if err := c.SetKeys(keys...); err != nil {
		return nil, err
	}
	return c, nil
}

// SetKeys replaces the keys, from the next frame on. The errors are those of
// NewServer; the keys stay what they were then.
func (c *Crypto) SetKeys(keys ...Key) error {
	if len(keys) == 0 {
		return errors.New("crypto: no key")
	}
	r := &ring{all: make(map[uint32]*Key, len(keys))}
	for _, k := range keys {
		if len(k.Secret) != KeyLen {
			return fmt.Errorf("crypto: key %d has %d bytes, not %d", k.ID, len(k.Secret), KeyLen)
		}
		if r.all[k.ID] != nil {
			return fmt.Errorf("crypto: two keys have the ID %d", k.ID)
		}
		k.Secret = append([]byte(nil), k.Secret...)
		r.all[k.ID] = &k
		if r.first == nil {
			r.first = &k
		}
	}
	c.keys.Store(r)
	return nil
}

// sessionID identifies the frames that one Client sends.
type sessionID [counterOff - sessionOff]byte

// connection is the state of a Client. A Client that connects again continues its
// session.
type connection struct {
	id      sessionID
	counter atomic.Uint64
	sealer  atomic.Pointer[sealer]

	mu      sync.Mutex
	session *session   // what is received
	openers [2]*sealer // the last used
}

// stateKey is the key of a connection among the values of a Client.
type stateKey struct{ c *Crypto }

// connection returns the state of a Client.
func (c *Crypto) connection(client *arpc.Client) *connection {
	if client != nil {
		if v, ok := client.Get(stateKey{c}); ok {
			return v.(*connection)
		}
	}
	c.creating.Lock()
	defer c.creating.Unlock()
	if client == nil {
		if c.nobody.id == (sessionID{}) {
			rand.Read(c.nobody.id[:]) // does not fail
		}
		return &c.nobody
	}
	if v, ok := client.Get(stateKey{c}); ok {
		return v.(*connection)
	}
	s := &connection{}
	rand.Read(s.id[:]) // does not fail
	client.Set(stateKey{c}, s)
	return s
}

// A sealer is the cipher of an epoch of a session.
type sealer struct {
	key     *Key
	session sessionID
	epoch   uint64
	aead    cipher.AEAD
}

func newSealer(direction string, key *Key, session sessionID, epoch uint64) (*sealer, error) {
	info := binary.LittleEndian.AppendUint64([]byte(direction), epoch)
	derived, err := hkdf.Key(sha256.New, key.Secret, session[:], string(info), KeyLen)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{key, session, epoch, aead}, nil
}

func (s *sealer) is(key *Key, session sessionID, epoch uint64) bool {
	return s != nil && s.key == key && s.session == session && s.epoch == epoch
}

// nonce writes the nonce of a counter.
func nonce(n uint64) (b [12]byte) {
	binary.LittleEndian.PutUint64(b[4:], n)
	return b
}

// Encode implements arpc.MessageCoder.
func (c *Crypto) Encode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	b := msg.Buffer
	if len(b) < arpc.HeadLen {
		return nil
	}
	conn := c.connection(client)
	n := conn.counter.Add(1) - 1
	key, epoch := c.keys.Load().first, n>>epochBits
	s := conn.sealer.Load()
	if !s.is(key, conn.id, epoch) {
		var err error
		if s, err = newSealer(c.out, key, conn.id, epoch); err != nil {
			log.Error("arpc: crypto: %v", err)
			return nil
		}
		conn.sealer.Store(s)
	}
	out := make([]byte, sealedOff, sealedOff+len(b)-markOff+tagLen)
	out[reservedOff] = b[reservedOff] | 1<<coder.FlagBitCrypto
	out[markOff] = mark
	binary.LittleEndian.PutUint32(out[keyOff:], key.ID)
	copy(out[sessionOff:], conn.id[:])
	binary.LittleEndian.PutUint64(out[counterOff:], n)
	iv := nonce(n)
	out = s.aead.Seal(out, iv[:], b[markOff:], out[reservedOff:sealedOff])
	return coder.Replace(msg, out)
}

// The reasons to refuse a frame.
var (
	errPlain    = errors.New("it is not encrypted")
	errShape    = errors.New("malformed")
	errKey      = errors.New("its key is not known")
	errOpen     = errors.New("it is not authentic")
	errReplayed = errors.New("it was received before")
	errForeign  = errors.New("it belongs to another connection")
)

// Decode implements arpc.MessageCoder. It returns nil, which closes the
// connection, if the frame is not encrypted with one of the keys, or was received
// before.
func (c *Crypto) Decode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	out, err := c.open(client, msg)
	if err != nil {
		log.Warn("arpc: refused a frame of %d bytes from %s: %v", len(msg.Buffer), coder.Peer(client), err)
		return nil
	}
	return coder.Replace(msg, out)
}

func (c *Crypto) open(client *arpc.Client, msg *arpc.Message) ([]byte, error) {
	b := msg.Buffer
	switch {
	case !msg.IsFlagBitSet(coder.FlagBitCrypto):
		return nil, errPlain
	case len(b) < sealedOff+arpc.HeadLen-markOff+tagLen || b[markOff] != mark:
		return nil, errShape
	}
	key := c.keys.Load().all[binary.LittleEndian.Uint32(b[keyOff:])]
	if key == nil {
		return nil, errKey
	}
	id := sessionID(b[sessionOff:counterOff])
	n := binary.LittleEndian.Uint64(b[counterOff:])

	conn := c.connection(client)
	conn.mu.Lock()
	defer conn.mu.Unlock()
	s, err := conn.opener(c.in, key, id, n>>epochBits)
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(b)-sealedOff+markOff), b[:markOff]...)
	iv := nonce(n)
	if out, err = s.aead.Open(out, iv[:], b[sealedOff:], b[reservedOff:sealedOff]); err != nil {
		return nil, errOpen
	}
	conn.keep(s)
	// Only now, as who has no key must not change anything.
	if err := c.sessions.receive(conn, client, id, n); err != nil {
		return nil, err
	}
	out[reservedOff] &^= 1 << coder.FlagBitCrypto
	return out, nil
}

// opener returns the cipher for a received frame. The lock is held.
func (s *connection) opener(direction string, key *Key, id sessionID, epoch uint64) (*sealer, error) {
	for _, o := range s.openers {
		if o.is(key, id, epoch) {
			return o, nil
		}
	}
	return newSealer(direction, key, id, epoch)
}

// keep remembers a cipher that was of use. The lock is held. There are two, as
// frames of neighbouring epochs, or of an old key and a new, come mixed.
func (s *connection) keep(o *sealer) {
	if o != s.openers[0] {
		s.openers[0], s.openers[1] = o, s.openers[0]
	}
}
