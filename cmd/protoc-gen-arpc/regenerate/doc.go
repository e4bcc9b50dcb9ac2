// Package regenerate tests protoc-gen-arpc. It compiles .proto files, in Go, has protoc-gen-go, protoc-gen-es and protoc-gen-arpc
// generate code for them, and compares that with the files that are checked in: those of its testdata and of typescript, and
// those of the examples. After a change of a .proto file or of the generator
//
//	go test ./... -update
//
// in this directory writes them anew. What needs Node is skipped without the packages of examples/typed-web (npm ci there), or
// fails if the environment has ARPC_NODE; make js sets it.
//
// It is a module of its own so that the compiler is a dependency of nobody else.
package regenerate
