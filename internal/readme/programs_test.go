package readme

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/format"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// maxLines is how long a program of the README may be.
const maxLines = 15

// TestProgramsOfREADME builds the two programs that README.md prints, each with the file before them that both share, runs one
// against the other, and expects what the comment in the second promises. Only the port is changed.
func TestProgramsOfREADME(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n > 250 {
		t.Errorf("README.md has %d lines", n)
	}
	files := regexp.MustCompile("(?s)```go\n(package main.*?)```").FindAllSubmatch(text, -1)
	if len(files) != 3 {
		t.Fatalf("README.md has %d files of Go, not what both ends share, a server and a client", len(files))
	}
	for i, f := range files {
		if n := strings.Count(string(f[1]), "\n"); n > maxLines {
			t.Errorf("file %d of README.md has %d lines", i, n)
		}
		if formatted, err := format.Source(f[1]); err != nil || !bytes.Equal(formatted, f[1]) {
			t.Errorf("file %d of README.md is not formatted: %v", i, err)
		}
	}
	shared, programs := files[0][1], files[1:]
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	dir, here := t.TempDir(), mustAbs(t, ".")
	overlay := map[string]map[string]string{"Replace": {}}
	for i, p := range programs {
		src := strings.ReplaceAll(string(p[1]), "8888", fmt.Sprint(port))
		file := filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][filepath.Join(here, fmt.Sprintf("program%d", i), "main.go")] = file
		overlay["Replace"][filepath.Join(here, fmt.Sprintf("program%d", i), "methods.go")] = filepath.Join(dir, "methods.go")
	}
	if err := os.WriteFile(filepath.Join(dir, "methods.go"), shared, 0o600); err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, js, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range programs {
		build := exec.CommandContext(ctx, "go", "build", "-overlay", overlayFile, "-o", filepath.Join(dir, fmt.Sprint("p", i)),
			fmt.Sprintf("./program%d", i))
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("program %d: %v\n%s", i, err, out)
		}
	}
	server := exec.CommandContext(ctx, filepath.Join(dir, "p0"))
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		server.Process.Kill()
		server.Wait()
	}()
	for {
		nc, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			nc.Close()
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "p1")).CombinedOutput()
	if err != nil {
		t.Fatalf("the client: %v\n%s", err, out)
	}
	line, _, _ := bufio.NewReader(strings.NewReader(string(out))).ReadLine()
	if string(line) != "&{hello Bob} <nil>" {
		t.Fatalf("the client printed %q", line)
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
