package arpc

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// facades are the systems beside RPC that stand on internal/core, and how many lines of code, without comments and blank lines, each
// may have: once and a half of what was planned.
var facades = map[string]int{"action": 825, "event": 675, "packet": 675, "session": 1125}

// startsGoroutines are the functions of facades that may, and for what: none is for each connection.
var startsGoroutines = map[string]string{
	"extension/action/client.go Close":           "the end of a client",
	"extension/action/instance.go Run":           "a listener",
	"extension/event/serve.go Serve":             "a listener",
	"extension/session/endpoint.go RunEventLoop": "a client, which dials again",
	"extension/session/endpoint.go listen":       "a listener",
	"extension/session/endpoint.go Close":        "the end of a client",
	"extension/session/wire/client.go AsyncCall": "a call that is not waited for",
}

// TestFacadesStayThin: no facade opens a socket, starts a goroutine for a connection or imports another one; each keeps its number of
// lines and has a guide of at most 120 lines.
func TestFacadesStayThin(t *testing.T) {
	const module = "github.com/arpc-go/arpc/"
	for name, most := range facades {
		lines := 0
		for _, dir := range []string{name, name + "/wire"} {
			paths, err := filepath.Glob("extension/" + dir + "/*.go")
			must(t, err)
			for _, path := range paths {
				path := filepath.ToSlash(path)
				if strings.HasSuffix(path, "_test.go") {
					continue
				}
				src, err := os.ReadFile(path)
				must(t, err)
				if dir == name { // the packages of RPCs over sessions are a wire, not the facade
					lines += codeLines(src)
				}
				fset := token.NewFileSet()
				file, err := parser.ParseFile(fset, path, src, 0)
				must(t, err)
				for _, i := range file.Imports {
					p := strings.Trim(i.Path.Value, `"`)
					if rest, ok := strings.CutPrefix(p, module+"extension/"); ok && rest != name {
						t.Errorf("%s imports %s", path, p)
					}
					if strings.HasPrefix(p, "golang.org/x/sys") || strings.Contains(p, "nbio") {
						t.Errorf("%s imports %s", path, p)
					}
				}
				function := ""
				ast.Inspect(file, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.FuncDecl:
						function = n.Name.Name
					case *ast.GoStmt:
						if startsGoroutines[path+" "+function] == "" {
							t.Errorf("%s starts a goroutine", fset.Position(n.Pos()))
						}
					case *ast.SelectorExpr:
						x, _ := n.X.(*ast.Ident)
						if x == nil {
							break
						}
						switch called := x.Name + "." + n.Sel.Name; called {
						case "net.Listen", "net.ListenPacket", "net.ListenUDP", "net.ListenTCP", "net.Dial", "net.DialTimeout", "net.Dialer", "net.ListenConfig":
							t.Errorf("%s uses %s", fset.Position(n.Pos()), called)
						}
					}
					return true
				})
			}
		}
		t.Logf("%s: %d of %d lines", name, lines, most)
		if lines == 0 || lines > most {
			t.Errorf("extension/%s has %d lines of code, of %d", name, lines, most)
		}
		guide, err := os.ReadFile(fmt.Sprintf("docs/%s.md", name))
		must(t, err)
		if n := strings.Count(string(guide), "\n"); n > 120 {
			t.Errorf("docs/%s.md has %d lines", name, n)
		}
	}
}

// codeLines counts the lines that hold anything but comments.
func codeLines(src []byte) int {
	fset := token.NewFileSet()
	file := fset.AddFile("", -1, len(src))
	var s scanner.Scanner
	s.Init(file, src, nil, 0)
	lines := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return len(lines)
		}
		if tok == token.SEMICOLON && lit == "\n" {
			continue
		}
		first := file.Line(pos)
		for l := range strings.Count(lit, "\n") + 1 { // a raw string may have several
			lines[first+l] = true
		}
	}
}
