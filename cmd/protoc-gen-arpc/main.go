// Command protoc-gen-arpc is a protoc plugin that generates Go or TypeScript code for the services of .proto files.
//
// In Go it is made of the typed methods of package arpc. A file *.arpc.go lies beside the *.pb.go of protoc-gen-go, which it
// needs:
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install github.com/arpc-go/arpc/cmd/protoc-gen-arpc@latest
//	protoc --go_out=. --go_opt=paths=source_relative --arpc_out=. --arpc_opt=paths=source_relative chat.proto
//
// In TypeScript it is made for the client of extension/jsclient. A file *_arpc.ts lies beside the *_pb.ts of protoc-gen-es, which
// it needs:
//
//	npm install @bufbuild/protobuf @bufbuild/protoc-gen-es
//	protoc --plugin=node_modules/.bin/protoc-gen-es --es_out=. --es_opt=target=ts --arpc_out=. --arpc_opt=lang=ts chat.proto
//
// The options for Go are those of every plugin: paths, module, and M for import paths. Those for TypeScript are import_extension
// (none, js or ts; default none) of generated modules that are imported, and arpc_import, the module that the client comes from
// (default @arpc-go/arpc). What is generated, and how a comment of an rpc chooses the way in which its handler runs, is described
// in docs/protobuf.md.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/internal/gen"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("protoc-gen-arpc", version())
		return
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		return fmt.Errorf("unknown argument %q: protoc runs this program", os.Args[1])
	}
	return gen.Run(os.Stdin, os.Stdout)
}

// version is that of the module the program was built from.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == "github.com/arpc-go/arpc" && m.Version != "" {
				return m.Version
			}
		}
	}
	return "(devel)"
}
