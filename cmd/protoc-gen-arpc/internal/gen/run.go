package gen

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// Run reads a request of protoc's, generates what it asks for and writes the answer. What is wrong with .proto files is part of
// the answer; the error is about the request itself, its options included, and then nothing is written.
func Run(r io.Reader, w io.Writer) error {
	in, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	req := &pluginpb.CodeGeneratorRequest{}
	if err := proto.Unmarshal(in, req); err != nil {
		return err
	}
	p, generate, err := begin(req)
	if err != nil {
		return err
	}
	p.SupportedFeatures = uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL |
		pluginpb.CodeGeneratorResponse_FEATURE_SUPPORTS_EDITIONS)
	p.SupportedEditionsMinimum = descriptorpb.Edition_EDITION_PROTO2
	p.SupportedEditionsMaximum = descriptorpb.Edition_EDITION_2024
	if err := generate(p); err != nil {
		p.Error(err)
	}
	out, err := proto.Marshal(p.Response())
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// begin reads the options and returns the generator of the language that they choose.
func begin(req *pluginpb.CodeGeneratorRequest) (*protogen.Plugin, func(*protogen.Plugin) error, error) {
	lang := "go"
	options := slices.DeleteFunc(strings.Split(req.GetParameter(), ","), func(option string) bool {
		value, ok := strings.CutPrefix(option, "lang=")
		if ok {
			lang = value
		}
		return ok
	})
	switch lang {
	case "go":
		req.Parameter = proto.String(strings.Join(options, ","))
		p, err := goOptions.New(req)
		return p, generateGo, err
	case "ts":
		ts, err := newTypeScript(options)
		if err != nil {
			return nil, nil, err
		}
		// To protogen every file is one of a Go package, which TypeScript has no use for and the file need not say.
		req.Parameter = nil
		for _, f := range req.ProtoFile {
			if f.Options == nil {
				f.Options = &descriptorpb.FileOptions{}
			}
			f.Options.GoPackage = proto.String("arpc.invalid/none")
		}
		p, err := protogen.Options{}.New(req)
		return p, ts.generate, err
	}
	return nil, nil, fmt.Errorf("unknown language %q: there are lang=go, the default, and lang=ts", lang)
}
