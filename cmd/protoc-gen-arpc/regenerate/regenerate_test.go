package regenerate

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	// The sources of the plugin and of the examples, for the cache of test results: the go command sees neither what the
	// plugin is built from nor files outside of this module that the test reads.
	_ "github.com/arpc-go/arpc/cmd/protoc-gen-arpc/internal/gen"
	"github.com/arpc-go/arpc/examples/protobuf/chat"
	"github.com/arpc-go/arpc/examples/typed-web/thermostat"
)

var update = flag.Bool("update", false, "write the generated files instead of comparing them")

// plugins is where TestMain builds the plugins.
var plugins string

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	plugins, err = os.MkdirTemp("", "protoc-gen-arpc")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(plugins)
	// Both in the versions of this module's go.mod.
	out, err := goCommand("build", "-o", plugins+string(filepath.Separator),
		"google.golang.org/protobuf/cmd/protoc-gen-go", "github.com/arpc-go/arpc/cmd/protoc-gen-arpc").CombinedOutput()
	if err != nil {
		return 1, fmt.Errorf("building the plugins: %w\n%s", err, out)
	}
	return m.Run(), nil
}

func goCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOWORK=off")
	return cmd
}

// plugin returns a command that runs a plugin.
func plugin(name string, args ...string) *exec.Cmd {
	exe := filepath.Join(plugins, name)
	if _, err := os.Stat(exe); err != nil {
		exe += ".exe"
	}
	return exec.Command(exe, args...)
}

// request compiles .proto files and makes what protoc sends to a plugin. sources are texts by path; other files are those of
// Protocol Buffers itself.
func request(t *testing.T, sources map[string]string, parameter string, files ...string) *pluginpb.CodeGeneratorRequest {
	t.Helper()
	c := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: protocompile.SourceAccessorFromMap(sources),
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := c.Compile(context.Background(), files...)
	if err != nil {
		t.Fatal(err)
	}
	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: files, Parameter: &parameter}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) { // each file behind those that it imports
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		req.ProtoFile = append(req.ProtoFile, protoutil.ProtoFromFileDescriptor(f))
	}
	for _, f := range compiled {
		add(f)
	}
	return req
}

// generate runs a plugin and returns the files by name, or the plugin's error: the one that protoc prints, or else what the
// plugin itself prints when it cannot even begin.
func generate(t *testing.T, name string, req *pluginpb.CodeGeneratorRequest) (map[string]string, string) {
	t.Helper()
	res, problem := ask(t, plugin(name), req)
	if problem != "" {
		return nil, problem
	}
	features := res.GetSupportedFeatures()
	oldest, newest := descriptorpb.Edition(res.GetMinimumEdition()), descriptorpb.Edition(res.GetMaximumEdition())
	if res.Error == nil && (features != uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL|
		pluginpb.CodeGeneratorResponse_FEATURE_SUPPORTS_EDITIONS) ||
		oldest != descriptorpb.Edition_EDITION_PROTO2 || newest != descriptorpb.Edition_EDITION_2024) {
		t.Errorf("%s supports features %b, editions %v to %v", name, features, oldest, newest)
	}
	return filesOf(res), res.GetError()
}

func filesOf(res *pluginpb.CodeGeneratorResponse) map[string]string {
	files := map[string]string{}
	for _, f := range res.File {
		files[f.GetName()] = f.GetContent()
	}
	return files
}

// ask has a plugin answer a request. What it prints when it cannot even begin is returned as well.
func ask(t *testing.T, cmd *exec.Cmd, req *pluginpb.CodeGeneratorRequest) (*pluginpb.CodeGeneratorResponse, string) {
	t.Helper()
	in, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if stderr.Len() == 0 {
			t.Fatalf("%s: %v, and no message", cmd, err)
		}
		return nil, stderr.String()
	}
	res := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(out, res); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return res, ""
}

// testdata returns the .proto files of testdata by path.
func testdata(t *testing.T) (sources map[string]string, names []string) {
	t.Helper()
	sources = map[string]string{}
	for name := range below(t, "testdata", ".proto") {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		sources[name] = string(text)
		names = append(names, name)
	}
	slices.Sort(names)
	return sources, names
}

// below returns the names, relative to dir, of the files whose names end so.
func below(t *testing.T, dir string, ends ...string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, end := range ends {
			if strings.HasSuffix(name, end) {
				rel, err := filepath.Rel(dir, name)
				if err != nil {
					return err
				}
				names[filepath.ToSlash(rel)] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

const sourceRelative = "paths=source_relative"

// TestCheckedIn generates everything anew and compares it byte by byte with what is checked in.
func TestCheckedIn(t *testing.T) {
	sources, names := testdata(t)
	for _, set := range []struct {
		dir     string
		sources map[string]string
		names   []string
	}{
		{"testdata", sources, names},
		{"../../../examples/protobuf", map[string]string{"chat/chat.proto": chat.Source}, []string{"chat/chat.proto"}},
		{"../../../examples/typed-web", map[string]string{"thermostat/thermostat.proto": thermostat.Source}, []string{"thermostat/thermostat.proto"}},
	} {
		t.Run(path.Base(set.dir), func(t *testing.T) {
			req := request(t, set.sources, sourceRelative, set.names...)
			left := below(t, set.dir, ".pb.go", ".arpc.go")
			for _, name := range []string{"protoc-gen-go", "protoc-gen-arpc"} {
				files, problem := generate(t, name, req)
				if problem != "" || len(files) == 0 {
					t.Fatalf("%s gives %d files, %s", name, len(files), problem)
				}
				compare(t, name, set.dir, files, left)
			}
			rest(t, set.dir, left)
		})
	}
}

// compare compares files with those of dir, or writes them there, and deletes their names from left.
func compare(t *testing.T, plugin, dir string, files map[string]string, left map[string]bool) {
	t.Helper()
	for file, text := range files {
		delete(left, file)
		full := filepath.Join(dir, file)
		if *update {
			if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(full)
		if err != nil {
			t.Error(err)
		} else if string(have) != text {
			t.Errorf("%s is not what %s generates (go test ./... -update); the first difference:\n%s", full, plugin,
				difference(string(have), text))
		}
	}
}

// rest complains about files of dir that nothing generates, or deletes them.
func rest(t *testing.T, dir string, left map[string]bool) {
	t.Helper()
	for file := range left {
		if !*update {
			t.Errorf("%s is checked in, but nothing generates it", filepath.Join(dir, file))
		} else if err := os.Remove(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
}

// difference returns the first lines that differ.
func difference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range max(len(h), len(w)) {
		switch {
		case i >= len(h):
			return fmt.Sprintf("line %d: have the end, want %q", i+1, w[i])
		case i >= len(w):
			return fmt.Sprintf("line %d: have %q, want the end", i+1, h[i])
		case h[i] != w[i]:
			return fmt.Sprintf("line %d: have %q, want %q", i+1, h[i], w[i])
		}
	}
	return "none"
}

var header = regexp.MustCompile(`^// Code generated by protoc-gen-arpc\. DO NOT EDIT\.
// (source: \S+\.proto|\S+\.proto is a deprecated file\.)
`)

// TestCompiles has the go command compile and check what is generated for testdata; that of the example is part of its module.
func TestCompiles(t *testing.T) {
	args := []string{"vet"}
	for name := range below(t, "testdata", ".pb.go") {
		args = append(args, "./testdata/"+path.Dir(name)) // no pattern matches what is below a testdata
	}
	if len(args) == 1 {
		t.Fatal("there is nothing to compile")
	}
	if out, err := goCommand(args...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for name := range below(t, "testdata", ".arpc.go") {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if !header.Match(text) {
			t.Errorf("%s does not say what it is", name)
		}
	}
}

// TestAlone: what is generated for a file does not depend on the files that are generated with it, nor on the compiler.
func TestAlone(t *testing.T) {
	sources, names := testdata(t)
	all, problem := generate(t, "protoc-gen-arpc", request(t, sources, sourceRelative, names...))
	if problem != "" {
		t.Fatal(problem)
	}
	var generated []string
	for _, name := range names {
		req := request(t, sources, sourceRelative, name)
		req.CompilerVersion = &pluginpb.Version{Major: proto.Int32(9), Minor: proto.Int32(8), Suffix: proto.String("rc7")}
		files, problem := generate(t, "protoc-gen-arpc", req)
		if problem != "" {
			t.Fatal(problem)
		}
		for file, text := range files {
			generated = append(generated, file)
			if all[file] != text {
				t.Errorf("%s alone: %s", name, difference(text, all[file]))
			}
		}
	}
	slices.Sort(generated)
	want := []string{"edge/edge.arpc.go", "edge/more.arpc.go", "edition/edition.arpc.go", "old/old.arpc.go", "type/type.arpc.go"}
	if !slices.Equal(generated, want) { // the others have no services
		t.Errorf("generated %v, want %v", generated, want)
	}
}

// TestOptions: the options of all plugins for Go, and none else.
func TestOptions(t *testing.T) {
	source := map[string]string{"dir/a.proto": `syntax = "proto3"; package a; option go_package = "example.com/x/a;b";
		message M {} service S { rpc R(M) returns (M); }`}
	for _, c := range []struct{ parameter, file, pkg, problem string }{
		{"", "example.com/x/a/a.arpc.go", "b", ""},
		{"paths=import", "example.com/x/a/a.arpc.go", "b", ""},
		{"paths=source_relative", "dir/a.arpc.go", "b", ""},
		{"module=example.com/x", "a/a.arpc.go", "b", ""},
		{"paths=source_relative,Mdir/a.proto=example.com/y;c", "dir/a.arpc.go", "c", ""},
		{"paths=elsewhere", "", "", `unknown path type "elsewhere"`},
		{"pahts=import", "", "", `unknown option "pahts"`},
		{"paths=import,plugins=grpc", "", "", `unknown option "plugins"`},
		{"lang=go,paths=source_relative", "dir/a.arpc.go", "b", ""},
		{"paths=source_relative,lang=go", "dir/a.arpc.go", "b", ""},
		{"import_extension=js", "", "", `unknown option "import_extension"`},
		{"lang=rust", "", "", `unknown language "rust": there are lang=go, the default, and lang=ts`},
		{"lang=", "", "", `unknown language ""`},
	} {
		files, problem := generate(t, "protoc-gen-arpc", request(t, source, c.parameter, "dir/a.proto"))
		if c.problem != "" {
			if !strings.Contains(problem, c.problem) || len(files) > 0 {
				t.Errorf("%q: error %q and %d files, want an error with %q", c.parameter, problem, len(files), c.problem)
			}
			continue
		}
		if problem != "" || len(files) != 1 || !strings.Contains(files[c.file], "\npackage "+c.pkg+"\n") {
			t.Errorf("%q: %q, %v, want %s in package %s", c.parameter, problem, files, c.file, c.pkg)
		}
	}
}

// TestErrors: what cannot be generated is refused, with the place in the .proto file.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"long name", "message M {}\nservice S { rpc " + strings.Repeat("R", 123) + "(M) returns (M); }", // "/a.S/" and 123 are 128
			"a.proto:3:13: a.S." + strings.Repeat("R", 123) + ": the method's name /a.S/" + strings.Repeat("R", 123) +
				" has 128 bytes, of which arpc allows 127"},
		{"unknown directive", "message M {}\nservice S {\n  // arpc:asnyc\n  rpc R(M) returns (M); }",
			"a.proto:5:3: a.S.R: unknown directive arpc:asnyc: there are arpc:async and arpc:inline"},
		{"argument of a directive", "message M {}\nservice S {\n  // arpc:async please\n  rpc R(M) returns (M); }",
			"a.proto:5:3: a.S.R: unknown directive arpc:async please: there are arpc:async and arpc:inline"},
		{"two directives", "message M {}\nservice S {\n  // arpc:async\n  // arpc:inline\n  rpc R(M) returns (M); }",
			"a.proto:6:3: a.S.R: more than one directive"},
		{"directive of a server stream", "message M {}\nservice S {\n  // arpc:async\n  rpc R(M) returns (stream M); }",
			"a.proto:5:3: a.S.R: arpc:async has no meaning for a stream, whose handler has a goroutine of its own"},
		{"directive of a client stream", "message M {}\nservice S {\n  // arpc:inline\n  rpc R(stream M) returns (M); }",
			"a.proto:5:3: a.S.R: arpc:inline has no meaning for a stream, whose handler has a goroutine of its own"},
		{"directive of a service", "message M {}\n// arpc:async\nservice S { rpc R(M) returns (M); }",
			"a.proto:4:1: a.S: arpc:async belongs to the comment of an rpc, not of a service"},
		{"rpcs alike", "message M {}\nservice S { rpc get_it(M) returns (M); rpc GetIt(M) returns (M); }",
			"a.proto:3:40: a.S.GetIt needs the Go name S_GetIt, which a.S.get_it has"},
		{"services alike", "message M {}\nservice s {}\nservice S {}",
			"a.proto:4:1: a.S needs the Go name SHandler, which a.s has"},
		{"message", "message SClient {}\nservice S {}", "a.proto:3:1: a.S needs the Go name SClient, which a.SClient has"},
		{"enum", "enum UnimplementedS { X = 0; }\nservice S {}",
			"a.proto:3:1: a.S needs the Go name UnimplementedS, which a.UnimplementedS has"},
		{"enum value", "message M {} enum s { R = 0; }\nservice S { rpc R(M) returns (M); }",
			"a.proto:3:13: a.S.R needs the Go name S_R, which a.R has"},
		{"nested message", "message s { message R {} }\nservice S { rpc R(s) returns (s); }",
			"a.proto:3:13: a.S.R needs the Go name S_R, which a.s.R has"},
		{"field of a oneof", "message s { oneof o { int32 r = 1; } }\nservice S { rpc R(s) returns (s); }",
			"a.proto:3:13: a.S.R needs the Go name S_R, which a.s.r has"},
		{"imported file of the package", "message M {}\nservice B {}",
			"a.proto:3:1: a.B needs the Go name RegisterB, which a.RegisterB has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			head := `syntax = "proto3"; package a; option go_package = "example.com/a"; import public "b.proto";` + "\n"
			sources := map[string]string{
				"a.proto": head + c.body,
				"b.proto": `syntax = "proto3"; package a; option go_package = "example.com/a"; message RegisterB {}`,
			}
			files, problem := generate(t, "protoc-gen-arpc", request(t, sources, "", "a.proto"))
			if problem != c.want || len(files) > 0 {
				t.Errorf("%d files, error\n%s\nwant\n%s", len(files), problem, c.want)
			}
		})
	}
}

// TestOtherPackage: a name is taken in its own Go package only, and a service that is not being generated takes its own.
func TestOtherPackage(t *testing.T) {
	sources := map[string]string{
		"a.proto": `syntax = "proto3"; package a; option go_package = "example.com/a"; import "b.proto";
			service S { rpc R(b.SClient) returns (b.SClient); }`,
		"b.proto": `syntax = "proto3"; package b; option go_package = "example.com/b";
			message SClient {} service X {} message XClient {}`,
	}
	files, problem := generate(t, "protoc-gen-arpc", request(t, sources, "", "a.proto"))
	if problem != "" || len(files) != 1 {
		t.Errorf("%d files, %s", len(files), problem)
	}
}

// TestCommandLine runs the plugin as people do, not protoc.
func TestCommandLine(t *testing.T) {
	out, err := plugin("protoc-gen-arpc", "--version").Output()
	if err != nil || !regexp.MustCompile(`^protoc-gen-arpc \S+\n$`).Match(out) {
		t.Errorf("--version: %q, %v", out, err)
	}
	out, err = plugin("protoc-gen-arpc", "chat.proto").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `unknown argument "chat.proto"`) {
		t.Errorf("an argument: %q, %v", out, err)
	}
}
