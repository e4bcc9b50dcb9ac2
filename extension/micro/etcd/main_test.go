package etcd

import (
	"testing"

	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
	"github.com/arpc-go/arpc/internal/leak"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestMain(m *testing.M) {
	registrytest.Provider(open)
	leak.Main(m)
}

func open(target string) (micro.Registry, error) {
	return New(Config{Client: clientv3.Config{Endpoints: []string{target}}})
}
