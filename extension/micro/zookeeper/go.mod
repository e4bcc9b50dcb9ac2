module github.com/arpc-go/arpc/extension/micro/zookeeper

go 1.26.0

require (
	github.com/arpc-go/arpc v0.0.0
	github.com/go-zookeeper/zk v1.0.4
)

require (
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/lesismal/nbio v1.6.12 // indirect
	github.com/modern-go/concurrent v0.0.0-20180228061459-e0a39a4cb421 // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/arpc-go/arpc => ../../..
