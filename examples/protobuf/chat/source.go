// Package chat is generated from chat.proto, but for this file.
package chat

import _ "embed"

//go:generate protoc -I .. --go_out=.. --go_opt=paths=source_relative --arpc_out=.. --arpc_opt=paths=source_relative chat/chat.proto

// Source is the text of chat.proto. The test that generates the package again has it from here, so that the go command knows
// that its result depends on the text.
//
//go:embed chat.proto
var Source string
