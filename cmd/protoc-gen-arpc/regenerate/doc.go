// Package regenerate tests protoc-gen-arpc. It compiles .proto files, in Go, has protoc-gen-go and protoc-gen-arpc generate
// code for them, and compares that with the files that are checked in: those of its testdata and those of the example
// examples/protobuf. After a change of a .proto file or of the generator
//
//	go test ./... -update
//
// in this directory writes them anew.
//
// It is a module of its own so that the compiler is a dependency of nobody else.
package regenerate
