// Package clients runs etcd's official Go client, unchanged, against the server binary in KVD_BIN.
//
// Every test runs over plain HTTP/2 and again over TLS with client certificates. KVD_ARGS adds flags to the server.
package clients

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"kvd.dev/interop/proc"
)

// testTimeout bounds each test; none should come near it.
const testTimeout = 60 * time.Second

var (
	plain, secure *proc.Server
	tlsFiles      *proc.TLSFiles
)

func TestMain(m *testing.M) {
	if os.Getenv("KVD_BIN") == "" {
		fmt.Println("SKIPPED interop: KVD_BIN not set")
		os.Exit(0)
	}
	os.Exit(withServers(m))
}

func withServers(m *testing.M) int {
	dir, err := os.MkdirTemp("", "interop-certs-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	if tlsFiles, err = proc.MakeTLS(dir); err != nil {
		fmt.Println(err)
		return 1
	}
	if plain, err = startServer(nil); err != nil {
		fmt.Println(err)
		return 1
	}
	defer plain.Close()
	if secure, err = startServer(tlsFiles); err != nil {
		fmt.Println(err)
		return 1
	}
	defer secure.Close()
	return m.Run()
}

func startServer(files *proc.TLSFiles) (*proc.Server, error) {
	return proc.Start(proc.Options{Label: "kvd", Bin: os.Getenv("KVD_BIN"), Args: strings.Fields(os.Getenv("KVD_ARGS")), TLS: files})
}

// env is what a test works with: a server, a client of it, and a prefix no other test uses.
type env struct {
	*testing.T
	ctx    context.Context
	srv    *proc.Server
	cli    *clientv3.Client
	prefix string
}

// each runs the test over plain text and over TLS against the shared servers.
func each(t *testing.T, test func(e *env)) {
	for name, srv := range map[string]*proc.Server{"plain": plain, "tls": secure} {
		t.Run(name, func(t *testing.T) { test(newEnv(t, srv)) })
	}
}

// eachFresh gives the test servers of its own, to kill and restart.
func eachFresh(t *testing.T, test func(e *env)) {
	for name, files := range map[string]*proc.TLSFiles{"plain": nil, "tls": tlsFiles} {
		t.Run(name, func(t *testing.T) {
			srv, err := startServer(files)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(srv.Close)
			test(newEnv(t, srv))
		})
	}
}

func newEnv(t *testing.T, srv *proc.Server) *env {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	e := &env{T: t, ctx: ctx, srv: srv, prefix: "/" + strings.ReplaceAll(t.Name(), "/", "-") + "/"}
	e.cli = e.client()
	return e
}

// client opens one more client of the test's server.
func (e *env) client() *clientv3.Client {
	e.Helper()
	cfg := clientv3.Config{Endpoints: []string{e.srv.URL()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	if e.srv.TLS != nil {
		cfg.TLS = e.srv.TLS.Client
	}
	cli, err := clientv3.New(cfg)
	e.must(err)
	e.Cleanup(func() { _ = cli.Close() })
	return cli
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) put(key, value string, opts ...clientv3.OpOption) *clientv3.PutResponse {
	e.Helper()
	resp, err := e.cli.Put(e.ctx, e.prefix+key, value, opts...)
	e.must(err)
	return resp
}

func (e *env) get(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	e.Helper()
	resp, err := e.cli.Get(e.ctx, e.prefix+key, opts...)
	e.must(err)
	return resp
}

// wantKeys checks keys (without the test's prefix) and their order.
func (e *env) wantKeys(resp *clientv3.GetResponse, want ...string) {
	e.Helper()
	var got []string
	for _, kv := range resp.Kvs {
		got = append(got, strings.TrimPrefix(string(kv.Key), e.prefix))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		e.Errorf("keys %v, want %v", got, want)
	}
}

func want[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Errorf("%s = %v, want %v", what, got, want)
	}
}
