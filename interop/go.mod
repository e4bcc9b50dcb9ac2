module github.com/arpc-go/arpc/interop

go 1.26.0

require (
	github.com/arpc-go/arpc v0.0.0
	github.com/coder/websocket v1.8.15
	github.com/lesismal/arpc v1.2.17
	github.com/lxzan/gws v1.9.1
)

require (
	github.com/gobwas/httphead v0.1.0 // indirect
	github.com/gobwas/ws v1.5.0 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/lesismal/nbio v1.6.12 // indirect
	github.com/modern-go/concurrent v0.0.0-20180228061459-e0a39a4cb421 // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/arpc-go/arpc => ../
