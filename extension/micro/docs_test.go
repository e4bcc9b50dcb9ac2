package micro_test

import (
	"os"
	"strings"
	"testing"
)

// TestProgramOfDocs finds the program of docs/micro.md to be the example of the package, which is run.
func TestProgramOfDocs(t *testing.T) {
	docs, err := os.ReadFile("../../docs/micro.md")
	must(t, err)
	_, program, _ := strings.Cut(string(docs), "```go\npackage main")
	program, _, found := strings.Cut(program, "```")
	example, err := os.ReadFile("example_test.go")
	must(t, err)
	want := strings.NewReplacer("package micro_test", "", "func Example()", "func main()", "\t// Output: 100 calls, 1 node left\n", "").Replace(string(example))
	if !found || program != want {
		t.Errorf("the program of docs/micro.md is not that of example_test.go")
	}
}
