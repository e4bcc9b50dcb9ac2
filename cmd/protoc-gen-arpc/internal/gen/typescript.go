package gen

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// typeScript generates TypeScript, on the messages of protoc-gen-es.
type typeScript struct {
	extension string // of the generated modules that are imported
	arpc      string // the module that is the client
}

// newTypeScript reads the options.
func newTypeScript(options []string) (*typeScript, error) {
	ts := &typeScript{arpc: "@arpc-go/arpc"}
	for _, option := range options {
		name, value, _ := strings.Cut(option, "=")
		switch {
		case option == "" || strings.HasPrefix(name, "M"): // an import path is of no use, but may be among shared options
		case name == "paths":
			if value != "source_relative" {
				return nil, fmt.Errorf("paths=%s has no meaning for TypeScript, whose files are where their .proto files are", value)
			}
		case name == "import_extension":
			switch value {
			case "none", "":
				ts.extension = ""
			case "js", ".js", "ts", ".ts":
				ts.extension = "." + strings.TrimPrefix(value, ".")
			default:
				return nil, fmt.Errorf("unknown import_extension %q: there are none, js and ts", value)
			}
		case name == "arpc_import":
			if value == "" {
				return nil, fmt.Errorf("the option arpc_import needs the name of a module")
			}
			ts.arpc = value
		default:
			return nil, fmt.Errorf("unknown option %q: protoc-gen-arpc knows import_extension, arpc_import, paths and M for TypeScript", name)
		}
	}
	return ts, nil
}

// generate writes a file for each of the files to generate that has services.
func (ts *typeScript) generate(p *protogen.Plugin) error {
	for _, f := range p.Files {
		if !f.Generate || len(f.Services) == 0 {
			continue
		}
		services, err := newServices(f)
		if err == nil {
			err = checkTypeScriptNames(f, services)
		}
		if err != nil {
			return err
		}
		// The imports come first, and what they are is known last.
		m := &module{typeScript: ts, plugin: p, file: f, imported: map[protoreflect.FullName]string{}, taken: map[string]bool{}}
		for _, s := range services {
			m.client(s)
			m.handler(s)
			m.handle(s)
		}
		m.helpers()
		body := m.text.String()
		m.text.Reset()
		m.head()
		out := p.NewGeneratedFile(modulePath(f.Desc)+"_arpc.ts", "")
		for _, part := range []string{m.text.String(), body} {
			if _, err := out.Write([]byte(part)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkTypeScriptNames makes sure that the declarations of a module, and the methods of a class, have different names.
func checkTypeScriptNames(f *protogen.File, services []*service) error {
	taken := map[string]protoreflect.FullName{}
	claim := func(scope, name string, d protoreflect.Descriptor) error {
		if other, ok := taken[scope+name]; ok {
			return fmt.Errorf("%s needs the TypeScript name %s, which %s has", where(f, d), name, other)
		}
		taken[scope+name] = d.FullName()
		return nil
	}
	for _, s := range services {
		if err := claim("", s.client, s.Desc); err != nil {
			return err
		}
		for _, m := range s.methods {
			if err := claim(s.client+".", property(m), m.Desc); err != nil {
				return err
			}
		}
	}
	return nil
}

// property is the name of a method in TypeScript: that of Go with a small first letter. Of names that objects have anyway, or
// that make one look like a promise, it is another.
func property(m *method) string {
	name := strings.ToLower(m.GoName[:1]) + m.GoName[1:]
	if slices.Contains([]string{"constructor", "then", "toJSON", "toString", "valueOf"}, name) {
		return name + "$"
	}
	return name
}

// modulePath is the path of the modules of a .proto file without what they end with.
func modulePath(f protoreflect.FileDescriptor) string {
	return strings.TrimSuffix(f.Path(), ".proto")
}

// wellKnown are the files whose messages come with @bufbuild/protobuf.
var wellKnown = []string{
	"any", "api", "compiler/plugin", "cpp_features", "descriptor", "duration", "empty", "field_mask", "go_features", "java_features",
	"source_context", "struct", "timestamp", "type", "wrappers",
}

// A module is one generated file in the making.
type module struct {
	*typeScript
	plugin *protogen.Plugin
	file   *protogen.File
	text   strings.Builder

	schemas  []schemaImport
	imported map[protoreflect.FullName]string // the names that schemas have in the module
	taken    map[string]bool
	kinds    [4]bool // which kinds of methods are called or offered, see shape
}

// A schemaImport is the schema of a message, which is the value that its types are found by.
type schemaImport struct{ from, name, as string }

// shape numbers the kinds of methods.
func shape(m *method) int {
	return slices.Index([]string{"Method", "ServerStream", "ClientStream", "BidiStream"}, m.kind)
}

// P writes a line.
func (m *module) P(parts ...string) {
	for _, p := range parts {
		m.text.WriteString(p)
	}
	m.text.WriteByte('\n')
}

// doc writes a doc comment of paragraphs.
func (m *module) doc(indent string, deprecated bool, paragraphs ...[]string) {
	if deprecated {
		paragraphs = append(paragraphs, text("@deprecated"))
	}
	var lines []string
	for _, p := range paragraphs {
		if len(p) > 0 && len(lines) > 0 {
			lines = append(lines, "")
		}
		for _, line := range p {
			lines = append(lines, strings.ReplaceAll(line, "*/", `*\/`))
		}
	}
	switch len(lines) {
	case 0:
	case 1:
		m.P(indent, "/**", lines[0], " */")
	default:
		m.P(indent, "/**")
		for _, line := range lines {
			m.P(indent, " *", line)
		}
		m.P(indent, " */")
	}
}

// schema imports the schema of a message and returns its name.
func (m *module) schema(message *protogen.Message) string {
	if name, ok := m.imported[message.Desc.FullName()]; ok {
		return name
	}
	i := schemaImport{from: m.from(message.Desc.ParentFile()), name: schemaName(m.plugin, message)}
	// Messages of different packages may have the same name.
	i.as = i.name
	for n := 2; m.taken[i.as]; n++ {
		i.as = i.name + strconv.Itoa(n)
	}
	m.taken[i.as] = true
	m.imported[message.Desc.FullName()] = i.as
	m.schemas = append(m.schemas, i)
	return i.as
}

// from returns the module that has the messages of a file.
func (m *module) from(f protoreflect.FileDescriptor) string {
	name, google := strings.CutPrefix(modulePath(f), "google/protobuf/")
	if google && slices.Contains(wellKnown, name) && !m.plugin.FilesByPath[f.Path()].Generate {
		return "@bufbuild/protobuf/wkt"
	}
	return m.relative(modulePath(f) + "_pb" + m.extension)
}

// relative returns how the module imports a file whose path begins where its own does.
func (m *module) relative(to string) string {
	a, b := strings.Split(path.Dir(m.file.Desc.Path()), "/"), strings.Split(path.Clean(to), "/")
	if a[0] == "." {
		a = nil
	}
	for len(a) > 0 && len(b) > 1 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	if len(a) == 0 && b[0] != ".." {
		return "./" + strings.Join(b, "/")
	}
	return strings.Repeat("../", len(a)) + strings.Join(b, "/")
}

// schemaName is the name that protoc-gen-es gives to the schema of a message. It is that of the message behind those that the
// message is nested in, and "Schema", unless another declaration of the file has that name already.
func schemaName(p *protogen.Plugin, message *protogen.Message) string {
	f := p.FilesByPath[message.Desc.ParentFile().Path()]
	taken := map[string]bool{}
	take := func(name string) string {
		free := name
		for i := 1; taken[free]; i++ {
			free = name + "$"
			if i > 1 {
				free += strconv.Itoa(i - 1)
			}
		}
		taken[free] = true
		return free
	}
	identifier := func(d protoreflect.Descriptor) string {
		name := strings.TrimPrefix(string(d.FullName()), string(f.Desc.Package())+".")
		return strings.ReplaceAll(name, ".", "_")
	}
	// The types come first, then the schemas and extensions; reserved words cannot be among those that end in Schema.
	eachDeclared(f, func(d protoreflect.Descriptor) {
		if _, ok := d.(protoreflect.ExtensionDescriptor); !ok {
			take(identifier(d))
		}
	})
	found := ""
	eachDeclared(f, func(d protoreflect.Descriptor) {
		name := identifier(d)
		if _, ok := d.(protoreflect.ExtensionDescriptor); !ok {
			name += "Schema"
		}
		if name = take(name); d.FullName() == message.Desc.FullName() {
			found = name
		}
	})
	return found
}

// eachDeclared calls f for the messages, enums and extensions of a file, in the order in which protoc-gen-es names them.
func eachDeclared(file *protogen.File, f func(protoreflect.Descriptor)) {
	enum := func(e *protogen.Enum) { f(e.Desc) }
	extension := func(e *protogen.Extension) { f(e.Desc) }
	var message func(m *protogen.Message)
	message = func(m *protogen.Message) {
		if m.Desc.IsMapEntry() {
			return
		}
		f(m.Desc)
		each(m.Messages, message)
		each(m.Enums, enum)
		each(m.Extensions, extension)
	}
	each(file.Messages, message)
	each(file.Enums, enum)
	each(file.Extensions, extension)
}

// quote writes a text as one of JavaScript.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string can be encoded
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// received and sent are the types of a message at the end that gets it and at the one that gives it.
func (m *module) received(message *protogen.Message) string {
	return "MessageShape<typeof " + m.schema(message) + ">"
}

func (m *module) sent(message *protogen.Message) string {
	return "MessageInitShape<typeof " + m.schema(message) + ">"
}

// as is the codec of a method at the end that sends one message and receives the other.
func (m *module) as(send, receive *protogen.Message, more string) string {
	return "protobuf(" + m.schema(send) + ", " + m.schema(receive) + more + ")"
}

func (m *module) client(s *service) {
	deprecated := s.deprecated != ""
	m.P()
	m.doc("", deprecated, text(s.client+" calls "+s.name+" at the other end of a connection."), s.doc)
	m.P("export class ", s.client, " {")
	if len(s.methods) == 0 {
		m.P("  constructor(_client: Client) {}")
		m.P("}")
		return
	}
	m.P("  readonly #client: Client;")
	m.P()
	m.P("  constructor(client: Client) {")
	m.P("    this.#client = client;")
	m.P("  }")
	for _, r := range s.methods {
		m.kinds[shape(r)] = true
		route, as := quote(r.wire), m.as(r.Input, r.Output, "")
		m.P()
		m.doc("  ", r.deprecated != "", r.doc)
		switch name := property(r); r.kind {
		case "Method":
			m.P("  ", name, "(request: ", m.sent(r.Input), ", options?: CallOptions): Promise<", m.received(r.Output), "> {")
			m.P("    return this.#client.call<", m.received(r.Output), ">(", route, ", request, { ...options, as: ", as, " });")
		case "ServerStream":
			m.P("  async ", name, "(request: ", m.sent(r.Input), ", options?: StreamOptions): Promise<Stream<", m.received(r.Output), ", never>> {")
			m.P("    return asked(await this.#client.stream<", m.received(r.Output), ", ", m.sent(r.Input), ">(", route,
				", { ...options, as: ", as, " }), request);")
		case "ClientStream":
			m.P("  async ", name, "(options?: StreamOptions): Promise<Asking<", m.received(r.Output), ", ", m.sent(r.Input), ">> {")
			m.P("    return asking(await this.#client.stream<", m.received(r.Output), ", ", m.sent(r.Input), ">(", route,
				", { ...options, as: ", as, " }));")
		default:
			m.P("  ", name, "(options?: StreamOptions): Promise<Stream<", m.received(r.Output), ", ", m.sent(r.Input), ">> {")
			m.P("    return this.#client.stream<", m.received(r.Output), ", ", m.sent(r.Input), ">(", route, ", { ...options, as: ", as, " });")
		}
		m.P("  }")
	}
	m.P("}")
}

func (m *module) handler(s *service) {
	m.P()
	m.doc("", s.deprecated != "", text(s.handler+" is implemented by a page or program that offers "+s.name+" to the server."), s.doc)
	m.P("export interface ", s.handler, " {")
	for _, r := range s.methods {
		m.doc("  ", r.deprecated != "", r.doc)
		switch name := property(r); r.kind {
		case "Method":
			m.P("  ", name, "(request: ", m.received(r.Input), ", context: Context): Awaitable<", m.sent(r.Output), ">;")
		case "ServerStream":
			m.P("  ", name, "(request: ", m.received(r.Input), ", stream: Stream<never, ", m.sent(r.Output), ">, context: StreamContext): Awaitable<void>;")
		case "ClientStream":
			m.P("  ", name, "(stream: Stream<", m.received(r.Input), ", never>, context: StreamContext): Awaitable<", m.sent(r.Output), ">;")
		default:
			m.P("  ", name, "(stream: Stream<", m.received(r.Input), ", ", m.sent(r.Output), ">, context: StreamContext): Awaitable<void>;")
		}
	}
	m.P("}")
}

func (m *module) handle(s *service) {
	m.P()
	m.doc("", s.deprecated != "", text("Makes impl answer what the server calls of "+s.name+". It throws if one of the methods has a handler already, and",
		"returns a function that ends this."))
	if len(s.methods) == 0 {
		m.P("export function handle", s.GoName, "(_client: Client, _impl: ", s.handler, "): () => void {")
		m.P("  return () => {};")
		m.P("}")
		return
	}
	m.P("export function handle", s.GoName, "(client: Client, impl: ", s.handler, "): () => void {")
	m.P("  return together(")
	for _, r := range s.methods {
		route, options := quote(r.wire), "{ as: "+m.as(r.Output, r.Input, ", Code.InvalidArgument")+" }"
		in, out := m.received(r.Input), m.sent(r.Output)
		name := property(r)
		switch r.kind {
		case "Method":
			m.P("    () => client.handle<", in, ", ", out, ">(", route, ", (request, context) => impl.", name, "(request, context), ", options, "),")
		case "ServerStream":
			m.P("    () => client.handleStream<never, ", out, ">(", route, ", async (stream, context) => impl.", name,
				"(await requested<", in, ">(stream), offered(stream), context), ", options, "),")
		case "ClientStream":
			m.P("    () => client.handleStream<", in, ", ", out, ">(", route, ", async (stream, context) => stream.send(await impl.", name,
				"(offered(stream), context)), ", options, "),")
		default:
			m.P("    () => client.handleStream<", in, ", ", out, ">(", route, ", (stream, context) => impl.", name, "(offered(stream), context), ", options, "),")
		}
	}
	m.P("  );")
	m.P("}")
}

// Code that methods of the kinds need.
const (
	tsAwaitable = `
type Awaitable<T> = T | PromiseLike<T>;
`
	tsProtobuf = `
/** The codec of a method at one end. A message that cannot be decoded is an error of the code malformed. */
function protobuf<Out extends DescMessage>(send: Out, receive: DescMessage, malformed = Code.Internal): Codec {
  return {
    name: "protobuf",
    encode: (value) => toBinary(send, create(send, value as MessageInitShape<Out>)),
    decode: (bytes) => {
      try {
        return fromBinary(receive, bytes);
      } catch (e) {
        throw new ArpcError(malformed, ` + "`malformed ${receive.typeName}: ${e instanceof Error ? e.message : e}`" + `, { cause: e });
      }
    },
  };
}
`
	tsTogether = `
/** Registers handlers, all or none, and returns a function that removes them. */
function together(...register: (() => () => void)[]): () => void {
  const removers: (() => void)[] = [];
  const remove = () => removers.splice(0).forEach((f) => f());
  try {
    for (const f of register) removers.push(f());
  } catch (e) {
    remove();
    throw e;
  }
  return remove;
}
`
	tsStream = `
/** Has a handler's stream end with the handler, not with a loop that it leaves, so that it can still answer or fail. */
function offered<In, Out>(stream: Stream<In, Out>): Stream<In, Out> {
  stream.return = async () => ({ done: true, value: undefined });
  return stream;
}
`
	tsServerStream = `
/** Sends the only message of the side that asks. */
async function asked<In, Out>(stream: Stream<In, Out>, request: Out): Promise<Stream<In, never>> {
  try {
    await stream.send(request);
    await stream.closeSend();
  } catch (e) {
    stream.reset(e);
    throw e;
  }
  return stream;
}

/** Receives the only message of the side that asks. */
async function requested<In>(stream: Stream<unknown, never>): Promise<In> {
  const first = await stream.next();
  if (first.done) throw new ArpcError(Code.InvalidArgument, "the stream carries no request");
  return first.value as In;
}
`
	tsClientStream = `
/** A stream on which any number of messages is sent, and then one answer received. */
type Asking<In, Out> = Stream<In, Out> & {
  /** Says that there are no more messages, and returns the answer. */
  closeAndReceive(): Promise<In>;
};

function asking<In, Out>(stream: Stream<In, Out>): Asking<In, Out> {
  return Object.assign(stream, {
    async closeAndReceive(): Promise<In> {
      await stream.closeSend();
      const answer = await stream.next();
      if (answer.done) throw new ArpcError(Code.Internal, "the stream carries no answer", { remote: true });
      return answer.value;
    },
  });
}
`
)

func (m *module) helpers() {
	if m.kinds == ([4]bool{}) {
		return
	}
	m.text.WriteString(tsAwaitable + tsProtobuf + tsTogether)
	if m.kinds[1] || m.kinds[2] || m.kinds[3] {
		m.text.WriteString(tsStream)
	}
	if m.kinds[1] {
		m.text.WriteString(tsServerStream)
	}
	if m.kinds[2] {
		m.text.WriteString(tsClientStream)
	}
}

// head writes what the module begins with.
func (m *module) head() {
	m.P("// Code generated by protoc-gen-arpc. DO NOT EDIT.")
	if m.file.Proto.GetOptions().GetDeprecated() {
		m.P("// ", m.file.Desc.Path(), " is a deprecated file.")
	} else {
		m.P("// source: ", m.file.Desc.Path())
	}
	m.P("/* eslint-disable */")
	m.P()
	arpc := m.arpc
	if strings.HasPrefix(arpc, "./") || strings.HasPrefix(arpc, "../") {
		arpc = m.relative(arpc)
	}
	if m.kinds == ([4]bool{}) {
		m.P("import type { Client } from ", quote(arpc), ";")
		return
	}
	types := []string{"Client", "Codec"}
	if m.kinds[0] {
		types = append(types, "CallOptions", "Context")
	}
	if m.kinds[1] || m.kinds[2] || m.kinds[3] {
		types = append(types, "Stream", "StreamContext", "StreamOptions")
	}
	slices.Sort(types)
	m.P(`import { create, fromBinary, toBinary } from "@bufbuild/protobuf";`)
	m.P(`import type { DescMessage, MessageInitShape, MessageShape } from "@bufbuild/protobuf";`)
	m.P("import { ArpcError, Code } from ", quote(arpc), ";")
	m.P("import type { ", strings.Join(types, ", "), " } from ", quote(arpc), ";")
	slices.SortFunc(m.schemas, func(a, b schemaImport) int {
		if c := strings.Compare(a.from, b.from); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	for i := 0; i < len(m.schemas); {
		from := m.schemas[i].from
		var names []string
		for ; i < len(m.schemas) && m.schemas[i].from == from; i++ {
			name := m.schemas[i].name
			if as := m.schemas[i].as; as != name {
				name += " as " + as
			}
			names = append(names, name)
		}
		m.P("import { ", strings.Join(names, ", "), " } from ", quote(from), ";")
	}
}
