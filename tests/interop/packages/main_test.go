// Package packages tests what etcd's public client packages promise (concurrency, leasing, mirror, naming, ordering) on a
// real etcd and on the server in KVD_BIN. A test that fails on etcd is wrong.
package packages

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"kvd.dev/interop/proc"
)

// testTimeout bounds each test on each server.
const testTimeout = 60 * time.Second

func TestMain(m *testing.M) { proc.MainOfPair(m) }

// env is one of the two servers and a client of it that counts its calls.
type env struct {
	*testing.T
	ctx   context.Context
	urls  []string
	cli   *clientv3.Client
	calls *calls
}

// calls are the unary calls of a client, by the method's last part.
type calls struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *calls) of(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[method]
}

func (c *calls) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	c.mu.Lock()
	c.count[method[strings.LastIndex(method, "/")+1:]]++
	c.mu.Unlock()
	return invoke(ctx, method, req, reply, cc, opts...)
}

// both runs the test on each server.
func both(t *testing.T, test func(e *env)) {
	for _, server := range proc.StartPair(t) {
		t.Run(server.Label, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			t.Cleanup(cancel)
			e := &env{T: t, ctx: ctx, urls: []string{server.URL()}}
			e.cli, e.calls = e.client(e.urls...)
			test(e)
		})
	}
}

// client opens a client that counts its calls.
func (e *env) client(urls ...string) (*clientv3.Client, *calls) {
	e.Helper()
	counted := &calls{count: map[string]int{}}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: urls, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(counted.intercept)},
	})
	e.must(err)
	e.Cleanup(func() { _ = cli.Close() })
	return cli, counted
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func want[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Errorf("%s = %v, want %v", what, got, want)
	}
}

func (e *env) put(key, value string, opts ...clientv3.OpOption) *clientv3.PutResponse {
	e.Helper()
	resp, err := e.cli.Put(e.ctx, key, value, opts...)
	e.must(err)
	return resp
}

// value reads a key from the server; "" if it is not there.
func (e *env) value(key string) string {
	e.Helper()
	resp, err := e.cli.Get(e.ctx, key)
	e.must(err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}
