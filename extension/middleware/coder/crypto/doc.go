// Package crypto encrypts and authenticates frames with keys that both ends
// have: AES-256-GCM, by the standard library. It is for ends between which TLS
// ends early, at a proxy or a gateway that must not read the messages. Where
// TLS can go all the way, use TLS: it also proves who the peer is, keeps order,
// notices what is cut off, and keeps old traffic secret when a key leaks.
//
//	server.Handler.UseCoder(serverCrypto) // NewServer(keys...)
//	client.Handler.UseCoder(clientCrypto) // NewClient(keys...)
//
// Install it after compression, as encrypted bytes do not compress. It has no
// name on purpose: coders with a name are left out when the peer does not have
// them, and this one must never be. An end without it, or without the key,
// cannot talk to an end that has it: the first frame closes the connection.
//
// # The frame
//
// Everything after the reserved byte (command, flags, sequence, method, payload)
// is encrypted. In its place stand a byte 0x1c, the key's ID (4 bytes,
// little-endian), the session (16 bytes), the counter (8 bytes, little-endian),
// the ciphertext and the tag (16 bytes); bit 5 of the reserved byte is set. The
// reserved byte and all of the new header are authenticated, so that neither
// they nor the bits of coders that were there before can be changed. A frame
// becomes 45 bytes longer.
//
// The session is a random number that an end draws for each Client, the counter
// counts the frames of the session. Frames are encrypted with keys derived
// (HKDF-SHA256) from the key, the direction, the session and the upper bits of the
// counter: so the counter can be the nonce without ever coming twice under one
// key, and no derived key sees more than 2^20 frames, far below the limits of
// GCM, however long a connection or a key lives. Each direction has keys of its own.
//
// # What is protected
//
//   - Content: nobody without a key reads or changes a frame, or makes one.
//   - Reflection: a client's frames are never taken for a server's, or the other
//     way around, on whatever connection.
//   - Replay: a frame is accepted once, also on another connection to the same
//     receiver. The receiver remembers all sessions of open connections and the
//     last MaxSessions of those that have ended. Who restarts has forgotten them,
//     and another server with the same key does not know them: a recorded session
//     can be played to these, from any point. Keys that are rotated with the restart
//     end that; so does a key per server.
//   - Exchange: once a connection has a session, frames of other sessions that
//     the receiver knows are refused.
//
// What is refused closes the connection.
//
// # What is not protected
//
//   - Loss: frames can be held back. A call then ends by its timeout.
//   - Order: frames can be put in another order within their session. Frames of
//     concurrent calls change places on their way to the connection anyway, so
//     the receiver cannot insist. What relies on order needs TLS below, or
//     numbers of its own.
//   - The connection: who holds back all of a session's frames can deliver them on
//     another connection.
//   - Who the peer is, beyond having a key; frames do not tell which client of
//     many sent them.
//   - Length and time of frames, pings and pongs (keep-alive and the HELLO of
//     protocol version 2), and the end of the connection.
//   - The past: who gets a key can read what was recorded. Rotation limits that.
//
// # Rotation
//
// Each end encrypts with the first of its keys and decrypts with all of them.
// To rotate, give the new key to all ends as a second one, then make it the
// first everywhere, then remove the old one: SetKeys takes effect with the next
// frame.
//
// Concurrency: a Crypto may be used by any number of clients, or servers, at
// once.
//
// Ownership: frames that are given are not changed; keys are copied.
//
// Limits: MaxSessions ended sessions, about 150 bytes each. A connection costs
// about 3 KiB. If more than 1,024 stretches of a session's frames are missing, the
// oldest count as received.
package crypto
