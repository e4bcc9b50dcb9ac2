package micro

import (
	"reflect"
	"strings"
	"testing"

	"github.com/arpc-go/arpc"
)

// TestLayout compares keys and values with those of qsocket (getty), byte by byte.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name       string
		node       Node
		key, value string
	}{
		{
			"documented", Node{Service: "Svc", Version: "v1", Group: "idc-bj", Protocol: "json", ID: "node0", Addr: "127.0.0.1:10000", Meta: map[string]string{"getty-micro-meta-key": "meta"}},
			"/getty/group%3Didc-bj%26protocol%3Djson%26role%3DSRT_Provider%26service%3DSvc%26version%3Dv1/node0",
			`{"Attr":{"Group":"idc-bj","Service":"Svc","Protocol":"json","Version":"v1","Role":1},"Nodes":[{"ID":"node0","Address":"127.0.0.1","Port":10000,"Metadata":{"getty-micro-meta-key":"meta"}}]}`,
		},
		{
			"no more than needed", Node{Service: "s", ID: "1", Addr: "host:1"},
			"/getty/group%3D%26protocol%3D%26role%3DSRT_Provider%26service%3Ds%26version%3D/1",
			`{"Attr":{"Group":"","Service":"s","Protocol":"","Version":"","Role":1},"Nodes":[{"ID":"1","Address":"host","Port":1}]}`,
		},
		{
			"weight", Node{Service: "s", ID: "1", Addr: "[::1]:65535", Weight: 7, Meta: map[string]string{"zone": "a"}},
			"/getty/group%3D%26protocol%3D%26role%3DSRT_Provider%26service%3Ds%26version%3D/1",
			`{"Attr":{"Group":"","Service":"s","Protocol":"","Version":"","Role":1},"Nodes":[{"ID":"1","Address":"::1","Port":65535,"Metadata":{"weight":"7","zone":"a"}}]}`,
		},
		{
			"escapes", Node{Service: "a b&c=d/é", ID: "x y%", Addr: "unix:///tmp/s"},
			"/getty/group%3D%26protocol%3D%26role%3DSRT_Provider%26service%3Da%2Bb%2526c%253Dd%252F%25C3%25A9%26version%3D/x y%",
			"{\"Attr\":{\"Group\":\"\",\"Service\":\"a b\\u0026c=d/é\",\"Protocol\":\"\",\"Version\":\"\",\"Role\":1},\"Nodes\":[{\"ID\":\"x y%\",\"Address\":\"unix:///tmp/s\",\"Port\":0}]}",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.node.Path("/getty"); got != c.key {
				t.Errorf("key\n%s\nnot\n%s", got, c.key)
			}
			value, err := c.node.MarshalValue()
			if err != nil || string(value) != c.value {
				t.Errorf("value\n%s\nnot\n%s\n%v", value, c.value, err)
			}
			got, err := UnmarshalValue([]byte(c.value))
			if err != nil || !reflect.DeepEqual(got, c.node) {
				t.Errorf("%+v, %v", got, err)
			}
			want := Node{Service: c.node.Service, Version: c.node.Version, Group: c.node.Group, Protocol: c.node.Protocol, ID: c.node.ID}
			if got, ok := ParsePath("/getty/", c.key); !ok || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v", got, ok)
			}
		})
	}
}

func TestNotNodes(t *testing.T) {
	const dir = "/getty/group%3D%26protocol%3D%26role%3DSRT_Provider%26service%3Ds%26version%3D"
	for _, path := range []string{
		"", "/", "/getty", "/getty/", dir, dir + "/", "/other" + dir + "/1", dir + "/1/2", strings.Replace(dir, "Provider", "Consumer", 1) + "/1",
		"/getty/%zz/1", "/getty/%253/1", "/getty/role%3DSRT_Provider%26service%3D/1",
	} {
		if n, ok := ParsePath("/getty", path); ok {
			t.Errorf("%q is %+v", path, n)
		}
	}
	const good = `{"Attr":{"Service":"s","Role":1},"Nodes":[{"ID":"1","Address":"h","Port":1}]}`
	if _, err := UnmarshalValue([]byte(good)); err != nil {
		t.Error(err)
	}
	for _, value := range []string{
		"", "{}", "null", strings.Replace(good, `"Role":1`, `"Role":2`, 1), strings.Replace(good, `"Port":1`, `"Port":-1`, 1),
		strings.Replace(good, `"Port":1`, `"Port":65536`, 1), strings.Replace(good, `"1"`, `"a/b"`, 1), strings.Replace(good, `"1"`, `".."`, 1),
		strings.Replace(good, `"h"`, `""`, 1) + " x", strings.Replace(good, `"s"`, `""`, 1),
		`{"Attr":{"Service":"s","Role":1},"Nodes":[]}`, `{"Attr":{"Service":"s","Role":1},"Nodes":[{"ID":"1","Address":"h","Port":1,"Metadata":{"weight":"x"}}]}`,
		strings.Repeat(" ", maxNode) + good,
	} {
		if n, err := UnmarshalValue([]byte(value)); arpc.CodeOf(err) != arpc.CodeInvalidArgument {
			t.Errorf("%.80q is %+v, %v", value, n, err)
		}
	}
	ok := Node{Service: "s", ID: "1", Addr: "h:1"}
	for name, spoil := range map[string]func(*Node){
		"service": func(n *Node) { n.Service = "" }, "id": func(n *Node) { n.ID = "" }, "dot": func(n *Node) { n.ID = "." },
		"addr": func(n *Node) { n.Addr = "" }, "weight": func(n *Node) { n.Weight = maxWeight + 1 }, "id not in UTF-8": func(n *Node) { n.ID = "\xff" }, "service not in UTF-8": func(n *Node) { n.Service = "s\xff" },
		"metadata not in UTF-8": func(n *Node) { n.Meta = map[string]string{"k": "\xff"} }, "nul": func(n *Node) { n.ID = "\x00" }, "nul in the group": func(n *Node) { n.Group = "\x00" },
		"reserved": func(n *Node) { n.Meta = map[string]string{"weight": "1"} }, "large": func(n *Node) { n.Meta = map[string]string{"x": strings.Repeat("x", maxNode)} },
	} {
		n := ok
		if spoil(&n); arpc.CodeOf(n.Check()) != arpc.CodeInvalidArgument {
			t.Error(name)
		}
	}
}

func FuzzUnmarshalValue(f *testing.F) {
	f.Add([]byte(`{"Attr":{"Group":"g","Service":"s","Protocol":"p","Version":"v","Role":1},"Nodes":[{"ID":"1","Address":"h","Port":1,"Metadata":{"weight":"7","a":"b"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := UnmarshalValue(data)
		if err != nil {
			return
		}
		again, err := n.MarshalValue()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := UnmarshalValue(again); err != nil || back.Key() != n.Key() || back.Weight != n.Weight {
			t.Fatalf("%+v becomes %+v, %v", n, back, err)
		}
	})
}

func FuzzParsePath(f *testing.F) {
	f.Add("/getty", "/getty/group%3D%26protocol%3D%26role%3DSRT_Provider%26service%3Ds%26version%3D/1")
	f.Fuzz(func(t *testing.T, root, path string) {
		n, ok := ParsePath(root, path)
		if !ok {
			return
		}
		if back, ok := ParsePath(root, n.Path(root)); !ok || !reflect.DeepEqual(back, n) {
			t.Fatalf("%+v becomes %+v", n, back)
		}
	})
}
