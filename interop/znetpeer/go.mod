module github.com/arpc-go/arpc/interop/znetpeer

go 1.26.0

require (
	github.com/arpc-go/arpc v0.0.0
	github.com/ebar-go/znet v0.1.7
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/ebar-go/ego v1.1.8 // indirect
	github.com/gobwas/httphead v0.1.0 // indirect
	github.com/gobwas/ws v1.5.0 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/lesismal/nbio v1.6.12 // indirect
	github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/arpc-go/arpc => ../..
