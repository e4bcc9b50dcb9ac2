// Command protoc-gen-arpc is a protoc plugin that generates Go code for the services of .proto files, on the typed methods of
// package arpc. It writes a file *.arpc.go beside the *.pb.go of protoc-gen-go, which it needs:
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install github.com/arpc-go/arpc/cmd/protoc-gen-arpc@latest
//	protoc --go_out=. --go_opt=paths=source_relative --arpc_out=. --arpc_opt=paths=source_relative chat.proto
//
// Its options are those of every plugin for Go: paths, module, and M for import paths. What it generates, and how a comment of
// an rpc chooses the way in which its handler runs, is described in docs/protobuf.md.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/internal/gen"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("protoc-gen-arpc", version())
		return
	}
	gen.Options.Run(gen.Generate)
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
