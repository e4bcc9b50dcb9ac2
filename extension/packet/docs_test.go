package packet_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The program of docs/packet.md does what it seems to, and the tests that its tables name are there.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/packet.md")
	must(t, err)
	_, program, _ := strings.Cut(string(text), "```go\n")
	program, _, _ = strings.Cut(program, "```")
	file := filepath.Join(t.TempDir(), "main.go")
	must(t, os.WriteFile(file, []byte(program), 0o600))
	if out, err := exec.Command("go", "run", file).CombinedOutput(); err != nil || string(out) != "hello, all\n" {
		t.Errorf("%v\n%s", err, out)
	}
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	var tests strings.Builder
	for _, name := range files {
		source, err := os.ReadFile(name)
		must(t, err)
		tests.Write(source)
	}
	for _, name := range regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(tests.String(), "func "+name[1]+"(") {
			t.Errorf("there is no %s", name[1])
		}
	}
}
