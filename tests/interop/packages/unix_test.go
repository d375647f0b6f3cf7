package packages

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"kvd.dev/interop/proc"
)

// A server listens on socket files, plain and with TLS, beside its port.
func TestUnixSockets(t *testing.T) {
	files, err := proc.MakeTLS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	servers := proc.StartPair(t,
		"--listen-client-urls={url},unix://{dir}/plain.sock,unixs://{dir}/localhost",
		"--cert-file="+files.Cert, "--key-file="+files.Key, "--trusted-ca-file="+files.TrustedCA, "--client-cert-auth=true")
	for _, server := range servers {
		t.Run(server.Label, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			defer cancel()
			e := &env{T: t, ctx: ctx}
			overPort, _ := e.client(server.URL())
			for _, endpoint := range []string{"unix://" + server.Dir() + "/plain.sock", "unixs://" + server.Dir() + "/localhost"} {
				cfg := clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
				if endpoint[:5] == "unixs" {
					// The client takes the file's name for the server's.
					cfg.TLS = files.Client
				}
				cli, err := clientv3.New(cfg)
				e.must(err)
				defer cli.Close()
				watch := overPort.Watch(ctx, endpoint, clientv3.WithCreatedNotify())
				<-watch
				_, err = cli.Put(ctx, endpoint, "1")
				e.must(err)
				want(e, "seen over the port", string((<-watch).Events[0].Kv.Value), "1")
			}
			// A socket file that a killed server left behind is taken over.
			server.Kill()
			_, err := os.Stat(filepath.Join(server.Dir(), "plain.sock"))
			e.must(err)
			e.must(server.Run())
			again, _ := e.client("unix://" + server.Dir() + "/plain.sock")
			resp, err := again.Get(ctx, "unix", clientv3.WithPrefix())
			e.must(err)
			want(e, "keys after a restart", len(resp.Kvs), 2)
		})
	}
}
