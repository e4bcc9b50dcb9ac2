package packet_test

import (
	"encoding/binary"
	"testing"

	packnet "github.com/arpc-go/arpc/extension/packet"
)

// EchoMessage is the seed's kind of message.
type EchoMessage struct{ Content []byte }

func (m EchoMessage) RecommendPacketSize() uint { return uint(len(m.Content)) }

func (m EchoMessage) AppendToPacket(packet []byte) []byte { return append(packet, m.Content...) }

// The statements are packnet's quick start; but for what a test must know, only the import is another.
func TestP07SeedSnippets(t *testing.T) {
	proto := packnet.NewFixProtocol(4, binary.BigEndian)

	server, err := packnet.ListenAndServe("tcp", "127.0.0.1:0", proto)
	if err != nil {
		panic(err)
	}

	server.OnSessionStart(func(session *packnet.Session) {
		t.Log("session start", session.Id(), session.RawConn().RemoteAddr())

		session.OnMessage(func(session *packnet.Session, message []byte) {
			session.Send(EchoMessage{message})
		})
	})

	server.OnSessionClose(func(session *packnet.Session) {
		t.Log("session close", session.Id())
	})

	server.Start()
	defer server.Stop()

	client, err := packnet.Dial("tcp", server.Listener().Addr().String(), proto)
	if err != nil {
		panic(err)
	}

	received := make(chan string, 1)
	client.OnMessage(func(session *packnet.Session, message []byte) {
		received <- string(message)
	})

	client.Start(nil)
	defer client.Close()

	if err := client.Send(EchoMessage{[]byte("hello")}); err != nil {
		panic(err)
	}
	if got := recv(t, received, "echo"); got != "hello" {
		t.Errorf("got %q", got)
	}

	channel := packnet.NewChannel(proto)
	server.Fetch(func(session *packnet.Session) {
		channel.Join(session, func() { session.Close() })
	})
	channel.Broadcast(EchoMessage{[]byte("to all")})
	if got := recv(t, received, "broadcast"); got != "to all" {
		t.Errorf("got %q", got)
	}
}
