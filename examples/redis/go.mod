module github.com/arpc-go/arpc/examples/redis

go 1.26.0

require (
	github.com/arpc-go/arpc v0.0.0
	github.com/tidwall/redcon v1.6.2
)

require (
	github.com/lesismal/nbio v1.6.12 // indirect
	github.com/tidwall/btree v1.1.0 // indirect
	github.com/tidwall/match v1.1.1 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/arpc-go/arpc => ../..
