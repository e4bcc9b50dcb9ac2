// Package gen is the generator of protoc-gen-arpc.
package gen

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// goOptions refuses the options that protogen does not know; it would ignore them.
var goOptions = protogen.Options{ParamFunc: func(name, _ string) error {
	return fmt.Errorf("unknown option %q: protoc-gen-arpc knows paths, module, annotate_code and M for Go, and lang=ts", name)
}}

// maxMethodLen is arpc.MaxMethodLen. The plugin is built without package arpc; a test compares the two.
const maxMethodLen = 127

// Packages that generated code imports.
const (
	arpcPackage    = protogen.GoImportPath("github.com/arpc-go/arpc")
	contextPackage = protogen.GoImportPath("context")
)

// generateGo writes a file for each of the files to generate that has services.
func generateGo(p *protogen.Plugin) error {
	if err := checkNames(p); err != nil {
		return err
	}
	for _, f := range p.Files {
		if !f.Generate || len(f.Services) == 0 {
			continue
		}
		if err := generateFile(p, f); err != nil {
			return err
		}
	}
	return nil
}

// A service is a protogen.Service and what the generated code says of it.
type service struct {
	*protogen.Service
	name    string // in the .proto file
	methods []*method

	handler, client, register, construct, unimplemented string // names of declarations
	doc                                                 []string
	deprecated                                          string
}

// A method is a protogen.Method and what the generated code says of it.
type method struct {
	*protogen.Method
	value      string // name of the variable
	wire       string // name on the wire
	kind       string // the constructor's name without New
	traits     []string
	doc        []string
	deprecated string
}

func newServices(f *protogen.File) ([]*service, error) {
	var services []*service
	for _, ps := range f.Services {
		s, err := newService(f, ps)
		if err != nil {
			return nil, err
		}
		for _, pm := range ps.Methods {
			m, err := newMethod(f, pm)
			if err != nil {
				return nil, err
			}
			s.methods = append(s.methods, m)
		}
		services = append(services, s)
	}
	return services, nil
}

func newService(f *protogen.File, s *protogen.Service) (*service, error) {
	doc, directives := comments(s.Comments)
	if len(directives) > 0 {
		return nil, fmt.Errorf("%s: arpc:%s belongs to the comment of an rpc, not of a service", where(f, s.Desc), directives[0])
	}
	return &service{
		Service: s, name: string(s.Desc.FullName()),
		handler: s.GoName + "Handler", client: s.GoName + "Client", register: "Register" + s.GoName,
		construct: "New" + s.GoName + "Client", unimplemented: "Unimplemented" + s.GoName,
		doc: doc, deprecated: deprecation(f, s.Desc.Options().(*descriptorpb.ServiceOptions).GetDeprecated()),
	}, nil
}

func newMethod(f *protogen.File, m *protogen.Method) (*method, error) {
	options := m.Desc.Options().(*descriptorpb.MethodOptions)
	doc, directives := comments(m.Comments)
	r := &method{
		Method: m, value: valueName(m), wire: "/" + string(m.Parent.Desc.FullName()) + "/" + string(m.Desc.Name()),
		kind: "Method", doc: doc, deprecated: deprecation(f, options.GetDeprecated()),
	}
	in, out := m.Desc.IsStreamingClient(), m.Desc.IsStreamingServer()
	switch {
	case in && out:
		r.kind = "BidiStream"
	case in:
		r.kind = "ClientStream"
	case out:
		r.kind = "ServerStream"
	}
	if len(r.wire) > maxMethodLen {
		return nil, fmt.Errorf("%s: the method's name %s has %d bytes, of which arpc allows %d",
			where(f, m.Desc), r.wire, len(r.wire), maxMethodLen)
	}
	for _, d := range directives {
		switch {
		case d != "async" && d != "inline":
			return nil, fmt.Errorf("%s: unknown directive arpc:%s: there are arpc:async and arpc:inline", where(f, m.Desc), d)
		case in || out:
			return nil, fmt.Errorf("%s: arpc:%s has no meaning for a stream, whose handler has a goroutine of its own",
				where(f, m.Desc), d)
		case len(r.traits) > 0:
			return nil, fmt.Errorf("%s: more than one directive", where(f, m.Desc))
		}
		r.traits = append(r.traits, map[string]string{"async": "Async", "inline": "Inline"}[d])
	}
	if options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN {
		r.traits = append(r.traits, "Idempotent")
	}
	return r, nil
}

// valueName has an underscore, as have the names of what is nested in a message, so that it can be that of a message only if
// service and message have the same name.
func valueName(m *protogen.Method) string { return m.Parent.GoName + "_" + m.GoName }

// where says where something is declared, as compilers do.
func where(f *protogen.File, d protoreflect.Descriptor) string {
	l := f.Desc.SourceLocations().ByDescriptor(d)
	if l.Path == nil {
		return fmt.Sprintf("%s: %s", f.Desc.Path(), d.FullName())
	}
	return fmt.Sprintf("%s:%d:%d: %s", f.Desc.Path(), l.StartLine+1, l.StartColumn+1, d.FullName())
}

func deprecation(f *protogen.File, deprecated bool) string {
	if !deprecated {
		return ""
	}
	return "Deprecated: Marked as deprecated in " + f.Desc.Path() + "."
}

// comments returns the lines of what is said of a declaration, with the space that they begin with, and the directives among
// them.
func comments(c protogen.CommentSet) (doc, directives []string) {
	for _, part := range []protogen.Comments{c.Leading, c.Trailing} {
		if part == "" {
			continue
		}
		if len(doc) > 0 {
			doc = append(doc, "")
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(string(part), "\n"), "\n") {
			line = strings.TrimRight(line, " \t\r")
			if d, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), "arpc:"); ok && d != "" && d[0] != ' ' {
				directives = append(directives, d)
				continue
			}
			if line != "" && line[0] != ' ' && line[0] != '\t' {
				line = " " + line // it must not become a directive of Go
			}
			doc = append(doc, line)
		}
		for len(doc) > 0 && doc[len(doc)-1] == "" {
			doc = doc[:len(doc)-1]
		}
	}
	for len(doc) > 0 && doc[0] == "" {
		doc = doc[1:]
	}
	return doc, directives
}

// checkNames makes sure that the declarations of a Go package have different names. protoc does so for those of the .proto
// files only.
func checkNames(p *protogen.Plugin) error {
	taken := map[protogen.GoIdent]protoreflect.FullName{}
	var message func(*protogen.Message)
	enum := func(e *protogen.Enum) {
		taken[e.GoIdent] = e.Desc.FullName()
		for _, v := range e.Values {
			taken[v.GoIdent] = v.Desc.FullName()
		}
	}
	extension := func(e *protogen.Extension) {
		ident := e.GoIdent
		ident.GoName = "E_" + ident.GoName
		taken[ident] = e.Desc.FullName()
	}
	message = func(m *protogen.Message) {
		taken[m.GoIdent] = m.Desc.FullName()
		for _, o := range m.Oneofs {
			for _, field := range o.Fields { // each has a type of its own
				taken[field.GoIdent] = field.Desc.FullName()
			}
		}
		each(m.Messages, message)
		each(m.Enums, enum)
		each(m.Extensions, extension)
	}
	for _, f := range p.Files {
		each(f.Messages, message)
		each(f.Enums, enum)
		each(f.Extensions, extension)
	}
	for _, f := range p.Files {
		for _, s := range f.Services {
			claim := func(name string, d protoreflect.Descriptor) error {
				ident := protogen.GoIdent{GoName: name, GoImportPath: f.GoImportPath}
				if other, ok := taken[ident]; ok && f.Generate {
					return fmt.Errorf("%s needs the Go name %s, which %s has", where(f, d), name, other)
				}
				taken[ident] = d.FullName()
				return nil
			}
			for _, name := range []string{s.GoName + "Handler", s.GoName + "Client", "Register" + s.GoName,
				"New" + s.GoName + "Client", "Unimplemented" + s.GoName} {
				if err := claim(name, s.Desc); err != nil {
					return err
				}
			}
			for _, m := range s.Methods {
				if err := claim(valueName(m), m.Desc); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func each[T any](list []T, f func(T)) {
	for _, v := range list {
		f(v)
	}
}

// file writes one generated file.
type file struct {
	*protogen.GeneratedFile
	path string // of the .proto file
}

func generateFile(p *protogen.Plugin, f *protogen.File) error {
	services, err := newServices(f)
	if err != nil {
		return err
	}
	g := file{p.NewGeneratedFile(f.GeneratedFilenamePrefix+".arpc.go", f.GoImportPath), f.Desc.Path()}
	g.P("// Code generated by protoc-gen-arpc. DO NOT EDIT.")
	if f.Proto.GetOptions().GetDeprecated() {
		g.P("// ", g.path, " is a deprecated file.")
	} else {
		g.P("// source: ", g.path)
	}
	g.P()
	g.P("package ", f.GoPackageName)
	for _, s := range services {
		g.values(s)
		g.handler(s)
		g.register(s)
		g.unimplemented(s)
		g.client(s)
	}
	return nil
}

// doc writes a doc comment of paragraphs.
func (g file) doc(paragraphs ...[]string) {
	first := true
	for _, lines := range paragraphs {
		if len(lines) == 0 {
			continue
		}
		if !first {
			g.P("//")
		}
		first = false
		for _, line := range lines {
			g.P("//", line)
		}
	}
}

// text is a paragraph of one's own.
func text(lines ...string) []string {
	var out []string
	for _, line := range lines {
		if line != "" {
			out = append(out, " "+line)
		}
	}
	return out
}

func (g file) arpc(name string) string {
	return g.QualifiedGoIdent(arpcPackage.Ident(name))
}

// values declares the methods.
func (g file) values(s *service) {
	if len(s.methods) == 0 {
		return
	}
	g.P()
	g.P("// The methods of ", s.name, ".")
	g.P("var (")
	for _, m := range s.methods {
		g.doc(m.doc, text(m.deprecated))
		var traits strings.Builder
		for _, t := range m.traits {
			traits.WriteString(", " + g.arpc(t))
		}
		g.P(m.value, " = ", g.arpc("New"+m.kind), "[", m.Input.GoIdent, ", ", m.Output.GoIdent, "](",
			strconv.Quote(m.wire), traits.String(), ")")
	}
	g.P(")")
}

// signature is that of a handler, with the names of its parameters or without.
func (g file) signature(m *method, named bool) string {
	name := func(n string) string {
		if named {
			return n + " "
		}
		return ""
	}
	req, res := g.QualifiedGoIdent(m.Input.GoIdent), g.QualifiedGoIdent(m.Output.GoIdent)
	stream := func() string { return name("s") + g.arpc("TypedStream") + "[" + res + ", " + req + "]" }
	switch m.kind {
	case "ServerStream":
		return m.GoName + "(" + name("req") + "*" + req + ", " + stream() + ") error"
	case "ClientStream":
		return m.GoName + "(" + stream() + ") (*" + res + ", error)"
	case "BidiStream":
		return m.GoName + "(" + stream() + ") error"
	}
	return m.GoName + "(" + name("ctx") + "*" + g.arpc("Context") + ", " + name("req") + "*" + req + ") (*" + res + ", error)"
}

func (g file) handler(s *service) {
	g.P()
	g.doc(text(s.handler+" is implemented by the end of a connection that offers "+s.name+", be it the server or the client."),
		s.doc, text(s.deprecated))
	g.P("type ", s.handler, " interface {")
	for _, m := range s.methods {
		g.doc(m.doc, text(m.deprecated))
		g.P(g.signature(m, true))
	}
	g.P("}")
}

func (g file) register(s *service) {
	// The types of a closure are looked up where the names of the parameters hide those of packages.
	qualifiers := map[string]bool{}
	for _, m := range s.methods {
		for _, ident := range []protogen.GoIdent{m.Input.GoIdent, m.Output.GoIdent} {
			if q, _, ok := strings.Cut(g.QualifiedGoIdent(ident), "."); ok {
				qualifiers[q] = true
			}
		}
	}
	unlike := func(name string) string {
		for qualifiers[name] {
			name += "_"
		}
		return name
	}
	h, impl := unlike("h"), unlike("impl")
	g.P()
	g.doc(text(s.register+" makes impl answer the calls of "+s.name+" that arrive at h: the Handler of a server or of a client,",
		"for either end of a connection may offer the service, and the other calls it. Both ends need codec.Protobuf as their Codec.",
		"It panics when h has one of the methods already."), text(s.deprecated))
	g.P("func ", s.register, "(", h, " ", g.arpc("Handler"), ", ", impl, " ", s.handler, ") {")
	for _, m := range s.methods {
		if m.kind != "ServerStream" {
			g.P(m.value, ".Handle(", h, ", ", impl, ".", m.GoName, ")")
			continue
		}
		g.P(m.value, ".Handle(", h, ", func(s ", g.arpc("TypedStream"), "[", m.Output.GoIdent, ", ", m.Input.GoIdent, "], req *",
			m.Input.GoIdent, ") error {")
		g.P("return ", impl, ".", m.GoName, "(req, s)")
		g.P("})")
	}
	g.P("}")
}

func (g file) unimplemented(s *service) {
	g.P()
	g.doc(text(s.unimplemented+" implements "+s.handler+" by methods that fail with arpc.CodeUnimplemented. A type that embeds it",
		"still implements "+s.handler+" when the service gets further methods."), text(s.deprecated))
	g.P("type ", s.unimplemented, " struct{}")
	g.P()
	g.P("var _ ", s.handler, " = ", s.unimplemented, "{}")
	for _, m := range s.methods {
		g.P()
		g.P("// ", m.GoName, " implements ", s.handler, ".")
		g.P("func (", s.unimplemented, ") ", g.signature(m, false), " {")
		if slices.Contains([]string{"Method", "ClientStream"}, m.kind) {
			g.P("return nil, ", g.arpc("ErrMethodNotFound"))
		} else {
			g.P("return ", g.arpc("ErrMethodNotFound"))
		}
		g.P("}")
	}
}

func (g file) client(s *service) {
	caller := g.arpc("Caller")
	g.P()
	g.doc(text(s.client+" calls "+s.name+" at the other end of a connection; see "+s.construct+"."), s.doc, text(s.deprecated))
	g.P("type ", s.client, " struct{ caller ", caller, " }")
	g.P()
	g.doc(text(s.construct+" returns the "+s.client+" that calls the peer of c: the Client of a program that has dialled, or that of a",
		"connection that a server has accepted, such as the field Client of the Context in a handler. Both ends need codec.Protobuf",
		"as their Codec."), text(s.deprecated))
	g.P("func ", s.construct, "(c ", caller, ") ", s.client, " { return ", s.client, "{c} }")
	for _, m := range s.methods {
		g.P()
		req, res := g.QualifiedGoIdent(m.Input.GoIdent), g.QualifiedGoIdent(m.Output.GoIdent)
		ctx := g.QualifiedGoIdent(contextPackage.Ident("Context"))
		stream := g.arpc("TypedStream") + "[" + req + ", " + res + "]"
		var parameters, results, call string
		switch m.kind {
		case "Method":
			parameters, results, call = ", req *"+req, "*"+res, "Call(ctx, c.caller, req)"
		case "ServerStream":
			parameters, results, call = ", req *"+req, stream, "Call(ctx, c.caller, req)"
		default:
			results, call = stream, "Open(ctx, c.caller)"
		}
		g.doc(m.doc, text(m.deprecated))
		g.P("func (c ", s.client, ") ", m.GoName, "(ctx ", ctx, parameters, ") (", results, ", error) {")
		g.P("return ", m.value, ".", call)
		g.P("}")
	}
}
