// Package thermostat is generated from thermostat.proto, but for this file.
package thermostat

import _ "embed"

//go:generate protoc -I .. --go_out=.. --go_opt=paths=source_relative --arpc_out=.. --arpc_opt=paths=source_relative thermostat/thermostat.proto
//go:generate protoc -I .. --plugin=../node_modules/.bin/protoc-gen-es --es_out=.. --es_opt=target=ts --arpc_out=.. --arpc_opt=lang=ts thermostat/thermostat.proto

// Source is the text of thermostat.proto. The test that generates the package again has it from here, so that the go command
// knows that its result depends on the text.
//
//go:embed thermostat.proto
var Source string
