package gettypeer

import (
	"os/exec"
	"testing"
)

// demo is what getty's demo page does, for Node: an echo and a heartbeat, in the packet layout of package echo.
const demo = `
const packet = (command, text) => {
  const body = new TextEncoder().encode(text), view = new DataView(new ArrayBuffer(33 + body.length));
  [0x20160905, 7, 9, 1, command].forEach((n, i) => view.setUint32(4 * i, n, true));
  view.setUint16(24, 1 + body.length, true);
  view.setUint8(32, body.length);
  new Uint8Array(view.buffer).set(body, 33);
  return view.buffer;
};
const ws = new WebSocket(process.argv[1]);
ws.binaryType = "arraybuffer";
ws.onopen = () => ws.send(packet(1, "hello"));
ws.onerror = (e) => { console.error(e.message); process.exit(1); };
ws.onmessage = ({ data }) => {
  const view = new DataView(data), text = new TextDecoder().decode(new Uint8Array(data, 33));
  if (view.getUint32(0, true) !== 0x20160905 || view.getUint32(4, true) !== 7 || view.getUint32(8, true) !== 9) process.exit(2);
  if (text === "hello") { ws.send(packet(0, "ping")); return; }
  if (view.getUint32(16, true) !== 0 || text !== "ping") process.exit(3);
  ws.close(1000);
};
ws.onclose = ({ code, wasClean }) => process.exit(code === 1000 && wasClean ? 0 : 4);
`

// A WebSocket of Node's talks to our server.
func TestNodeWebSocket(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("no node")
	}
	server := serve(t, "ws", "127.0.0.1:0", newSession(newListener(t, nil)))
	out, err := exec.Command(node, "--experimental-websocket", "--no-warnings", "-e", demo, "ws://"+server.Addr().String()+"/echo").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
