// Package proxy tests `grpc-proxy` and `gateway` of etcd and kvd, each before a server of its own kind. A test that fails
// on etcd is wrong.
package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"

	"kvd.dev/interop/proc"
)

// testTimeout bounds each test on each server.
const testTimeout = 60 * time.Second

func TestMain(m *testing.M) { proc.MainOfPair(m) }

// env is a server with a proxy before it.
type env struct {
	*testing.T
	ctx    context.Context
	label  string
	server *proc.Server
	proxy  *proc.Proxy
	// direct and cli are clients of the server and of the proxy.
	direct, cli *clientv3.Client
}

func both(t *testing.T, subcommand string, args []string, test func(e *env)) {
	for _, server := range proc.StartPair(t) {
		t.Run(server.Label, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			t.Cleanup(cancel)
			e := &env{T: t, ctx: ctx, label: server.Label, server: server}
			e.proxy = e.start(subcommand, args...)
			e.direct, e.cli = e.client(server.URL()), e.client(e.proxy.Addr)
			test(e)
		})
	}
}

func (e *env) start(subcommand string, args ...string) *proc.Proxy {
	e.Helper()
	return proc.StartProxy(e.T, e.label, subcommand, append([]string{"--endpoints=" + e.server.URL()}, args...)...)
}

func (e *env) client(endpoint string) *clientv3.Client {
	e.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
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

func want[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Errorf("%s = %v, want %v", what, got, want)
	}
}

func value(e *env, cli *clientv3.Client, key string, opts ...clientv3.OpOption) string {
	e.Helper()
	resp, err := cli.Get(e.ctx, key, opts...)
	e.must(err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// metric is the sum of a server's metric over its labels.
func (e *env) metric(addr, name, labels string) int {
	e.Helper()
	sum := 0
	for _, line := range strings.Split(e.page(addr, "/metrics", http.StatusOK), "\n") {
		found := regexp.MustCompile(`^` + name + `(\{.*\})? ([0-9.e+]+)$`).FindStringSubmatch(line)
		if found == nil || !strings.Contains(found[1], labels) {
			continue
		}
		n, err := strconv.ParseFloat(found[2], 64)
		e.must(err)
		sum += int(n)
	}
	return sum
}

func (e *env) page(addr, path string, status int) string {
	e.Helper()
	resp, err := http.Get("http://" + addr + path)
	e.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	e.must(err)
	want(e, path, resp.StatusCode, status)
	return string(body)
}

// await asks again until a condition holds.
func (e *env) await(what string, holds func() bool) {
	e.Helper()
	for !holds() {
		if e.ctx.Err() != nil {
			e.Fatalf("%s: %v", what, e.ctx.Err())
		}
	}
}

// What a client does through either kind of proxy.
func everyday(e *env) {
	_, err := e.cli.Put(e.ctx, "a", "1")
	e.must(err)
	want(e, "through the proxy", value(e, e.cli, "a"), "1")
	want(e, "on the server", value(e, e.direct, "a"), "1")
	txn, err := e.cli.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Then(clientv3.OpPut("a", "2"), clientv3.OpGet("a")).Commit()
	e.must(err)
	want(e, "succeeded", txn.Succeeded, true)
	want(e, "inside", string(txn.Responses[1].GetResponseRange().Kvs[0].Value), "2")
	_, err = e.cli.Get(e.ctx, "a", clientv3.WithRev(999))
	want(e, "refusal", fmt.Sprint(err), "etcdserver: mvcc: required revision is a future revision")

	session, err := concurrency.NewSession(e.cli, concurrency.WithTTL(30))
	e.must(err)
	mutex := concurrency.NewMutex(session, "lock")
	e.must(mutex.Lock(e.ctx))
	ttl, err := e.direct.TimeToLive(e.ctx, session.Lease(), clientv3.WithAttachedKeys())
	e.must(err)
	want(e, "keys of the lease", len(ttl.Keys), 1)
	once, err := e.cli.KeepAliveOnce(e.ctx, session.Lease())
	e.must(err)
	want(e, "renewed", once.TTL, 30)
	e.must(mutex.Unlock(e.ctx))
	e.must(session.Close())
	_, err = e.cli.KeepAliveOnce(e.ctx, session.Lease())
	want(e, "a lease that is gone", fmt.Sprint(err), "etcdserver: requested lease not found")

	deleted, err := e.cli.Delete(e.ctx, "a")
	e.must(err)
	want(e, "deleted", deleted.Deleted, 1)
	_, err = e.cli.Status(e.ctx, e.proxy.Addr)
	e.must(err)
	_, err = e.cli.AuthStatus(e.ctx)
	e.must(err)
}

func TestEverydayThroughTheGrpcProxy(t *testing.T) { both(t, "grpc-proxy", nil, everyday) }
func TestEverydayThroughTheGateway(t *testing.T)   { both(t, "gateway", nil, everyday) }

// A member that is down is no matter to clients of the gateway.
func TestTheGatewayLeavesOutWhoIsDown(t *testing.T) {
	both(t, "gateway", nil, func(e *env) {
		proxy := proc.StartProxy(e.T, e.label, "gateway", "--endpoints=127.0.0.1:9,"+e.server.Addr())
		cli := e.client(proxy.Addr)
		_, err := cli.Put(e.ctx, "g", "1")
		e.must(err)
		want(e, "on the server", value(e, e.direct, "g"), "1")
	})
}

const watcherGauge = "etcd_debugging_mvcc_watcher_total"

func TestWatchersOfARangeShareAWatch(t *testing.T) {
	both(t, "grpc-proxy", nil, func(e *env) {
		const watchers, writes = 20, 30
		before := e.metric(e.server.Addr(), watcherGauge, "")
		var ready, group sync.WaitGroup
		seen := make([][]string, watchers)
		for n := range watchers {
			ready.Add(1)
			group.Add(1)
			cli := e.client(e.proxy.Addr)
			go func() {
				defer group.Done()
				watch := cli.Watch(e.ctx, "w/", clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
				<-watch
				ready.Done()
				for resp := range watch {
					if resp.Err() != nil {
						e.Error(resp.Err())
						return
					}
					for _, event := range resp.Events {
						seen[n] = append(seen[n], fmt.Sprintf("%s=%s at %d after %d", event.Kv.Key, event.Kv.Value, event.Kv.ModRevision, event.PrevKv.GetModRevision()))
					}
					if len(seen[n]) >= writes {
						return
					}
				}
			}()
		}
		ready.Wait()
		var wanted []string
		for n := range writes {
			key, previous := fmt.Sprintf("w/%d", n%3), int64(0)
			resp, err := e.direct.Put(e.ctx, key, strconv.Itoa(n), clientv3.WithPrevKV())
			e.must(err)
			if resp.PrevKv != nil {
				previous = resp.PrevKv.ModRevision
			}
			wanted = append(wanted, fmt.Sprintf("%s=%d at %d after %d", key, n, resp.Header.Revision, previous))
			if n == writes/2 {
				e.await("fewer watches than watchers", func() bool {
					return e.metric(e.server.Addr(), watcherGauge, "")-before < watchers
				})
			}
		}
		group.Wait()
		for n := range watchers {
			want(e, fmt.Sprintf("events of watcher %d", n), strings.Join(seen[n], ", "), strings.Join(wanted, ", "))
		}
	})
}

func TestWatchesOfThePastThroughTheProxy(t *testing.T) {
	both(t, "grpc-proxy", nil, func(e *env) {
		var first int64
		for n := range 5 {
			resp, err := e.direct.Put(e.ctx, "h", strconv.Itoa(n))
			e.must(err)
			if n == 0 {
				first = resp.Header.Revision
			}
		}
		// One that is current holds a watch of the range already.
		current := e.cli.Watch(e.ctx, "h", clientv3.WithCreatedNotify())
		<-current
		past := e.cli.Watch(e.ctx, "h", clientv3.WithRev(first), clientv3.WithFilterDelete())
		next := func(watch clientv3.WatchChan, count int) string {
			e.Helper()
			var got []string
			for len(got) < count {
				resp, ok := <-watch
				if !ok || resp.Err() != nil {
					e.Fatalf("the watch ended: %v", resp.Err())
				}
				for _, event := range resp.Events {
					if event.PrevKv != nil {
						e.Error("a previous pair that was not asked for")
					}
					got = append(got, fmt.Sprintf("%v%s", event.Type, event.Kv.Value))
				}
			}
			return strings.Join(got, " ")
		}
		want(e, "history", next(past, 5), "PUT0 PUT1 PUT2 PUT3 PUT4")
		_, err := e.direct.Delete(e.ctx, "h")
		e.must(err)
		_, err = e.direct.Put(e.ctx, "h", "5")
		e.must(err)
		want(e, "filtered", next(past, 1), "PUT5")
		want(e, "current", next(current, 2), "DELETE PUT5")
		_, err = e.direct.Compact(e.ctx, first+3)
		e.must(err)
		resp := <-e.cli.Watch(e.ctx, "h", clientv3.WithRev(first))
		want(e, "compacted", resp.CompactRevision, first+3)
	})
}

func TestSerializableReadsAreKept(t *testing.T) {
	both(t, "grpc-proxy", nil, func(e *env) {
		reads := func() int {
			return e.metric(e.server.Addr(), "grpc_server_started_total", `grpc_method="Range"`)
		}
		_, err := e.cli.Put(e.ctx, "c", "1")
		e.must(err)
		want(e, "linearizable", value(e, e.cli, "c"), "1")
		before := reads()
		for range 10 {
			want(e, "kept", value(e, e.cli, "c", clientv3.WithSerializable()), "1")
		}
		want(e, "reads of the server for kept answers", reads()-before, 0)
		want(e, "linearizable again", value(e, e.cli, "c"), "1")
		want(e, "reads of the server", reads()-before, 1)
		for _, write := range []func() error{
			func() error { _, err := e.cli.Put(e.ctx, "c", "2"); return err },
			func() error { _, err := e.cli.Txn(e.ctx).Then(clientv3.OpPut("c", "3")).Commit(); return err },
			func() error { _, err := e.cli.Delete(e.ctx, "c", clientv3.WithFromKey()); return err },
		} {
			old := value(e, e.cli, "c", clientv3.WithSerializable())
			e.must(write())
			if value(e, e.cli, "c", clientv3.WithSerializable()) == old {
				e.Errorf("%q is kept over a write through the proxy", old)
			}
		}
		want(e, "keys", e.proxyMetric("etcd_grpc_proxy_cache_keys_total") > 0, true)
		want(e, "hits", e.proxyMetric("etcd_grpc_proxy_cache_hits_total") >= 10, true)
	})
}

func (e *env) proxyMetric(name string) int {
	e.Helper()
	for _, line := range strings.Split(e.page(e.proxy.Addr, "/proxy/metrics", http.StatusOK), "\n") {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(rest, 64)
			e.must(err)
			return int(n)
		}
	}
	e.Errorf("%s is missing", name)
	return 0
}

func TestANamespace(t *testing.T) {
	both(t, "grpc-proxy", []string{"--namespace=ns/"}, func(e *env) {
		for _, key := range []string{"a", "b"} {
			_, err := e.cli.Put(e.ctx, key, "in "+key)
			e.must(err)
		}
		_, err := e.direct.Put(e.ctx, "outside", "x")
		e.must(err)
		want(e, "on the server", value(e, e.direct, "ns/a"), "in a")
		want(e, "not without the prefix", value(e, e.direct, "a"), "")
		keys := func(resp *clientv3.GetResponse, err error) string {
			e.Helper()
			e.must(err)
			var all []string
			for _, kv := range resp.Kvs {
				all = append(all, string(kv.Key))
			}
			return strings.Join(all, " ")
		}
		want(e, "everything", keys(e.cli.Get(e.ctx, "", clientv3.WithPrefix())), "a b")
		want(e, "a range", keys(e.cli.Get(e.ctx, "a", clientv3.WithRange("b"))), "a")
		watch := e.cli.Watch(e.ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
		<-watch
		txn, err := e.cli.Txn(e.ctx).
			If(clientv3.Compare(clientv3.Value("a"), "=", "in a")).
			Then(clientv3.OpPut("a", "again", clientv3.WithPrevKV()), clientv3.OpGet("b"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet("a")}, nil)).
			Commit()
		e.must(err)
		want(e, "compared", txn.Succeeded, true)
		want(e, "previous", string(txn.Responses[0].GetResponsePut().PrevKv.Key), "a")
		want(e, "read", string(txn.Responses[1].GetResponseRange().Kvs[0].Key), "b")
		want(e, "nested", string(txn.Responses[2].GetResponseTxn().Responses[0].GetResponseRange().Kvs[0].Key), "a")
		event := (<-watch).Events[0]
		want(e, "watched", string(event.Kv.Key)+" "+string(event.PrevKv.Key), "a a")
		lease, err := e.cli.Grant(e.ctx, 60)
		e.must(err)
		_, err = e.cli.Put(e.ctx, "leased", "", clientv3.WithLease(lease.ID))
		e.must(err)
		_, err = e.direct.Put(e.ctx, "outside", "x", clientv3.WithLease(lease.ID))
		e.must(err)
		ttl, err := e.cli.TimeToLive(e.ctx, lease.ID, clientv3.WithAttachedKeys())
		e.must(err)
		want(e, "keys of a lease", fmt.Sprintf("%s", ttl.Keys), "[leased]")
		deleted, err := e.cli.Delete(e.ctx, "", clientv3.WithPrefix())
		e.must(err)
		want(e, "deleted", deleted.Deleted, 3)
		want(e, "outside", value(e, e.direct, "outside"), "x")
	})
}

func TestProxiesKnowEachOther(t *testing.T) {
	both(t, "grpc-proxy", []string{"--advertise-client-url=alone:1"}, func(e *env) {
		members, err := e.cli.MemberList(e.ctx)
		e.must(err)
		want(e, "members", len(members.Members), 1)
		want(e, "a proxy alone", members.Members[0].ClientURLs[0], "alone:1")
		for _, name := range []string{"one:1", "two:2"} {
			proxy := e.start("grpc-proxy", "--resolver-prefix=proxies", "--resolver-ttl=10", "--advertise-client-url="+name)
			cli := e.client(proxy.Addr)
			e.await(name+" is registered", func() bool {
				members, err := cli.MemberList(e.ctx)
				e.must(err)
				for _, member := range members.Members {
					if member.ClientURLs[0] == name && member.Name != "" {
						resp, err := e.direct.Get(e.ctx, "proxies/"+name)
						e.must(err)
						return len(resp.Kvs) == 1 && resp.Kvs[0].Lease != 0
					}
				}
				return false
			})
		}
		second := e.client(e.start("grpc-proxy", "--resolver-prefix=proxies", "--resolver-ttl=10", "--advertise-client-url=three:3").Addr)
		e.await("all are listed", func() bool {
			members, err := second.MemberList(e.ctx)
			e.must(err)
			return len(members.Members) == 3
		})
	})
}

func TestPagesOfTheProxy(t *testing.T) {
	// etcd's proxy asks itself for its health, where it says to be.
	both(t, "grpc-proxy", []string{"--advertise-client-url={addr}"}, func(e *env) {
		for _, path := range []string{"/health", "/proxy/health"} {
			want(e, path, strings.TrimSpace(e.page(e.proxy.Addr, path, http.StatusOK)), `{"health":"true","reason":""}`)
		}
		e.proxyMetric("etcd_grpc_proxy_watchers_coalescing_total")
		e.proxyMetric("etcd_grpc_proxy_events_coalescing_total")
		e.proxyMetric("etcd_grpc_proxy_cache_misses_total")
		// A member's own.
		want(e, "a member's metrics", e.metric(e.proxy.Addr, "etcd_server_has_leader", ""), 1)
		e.server.Kill()
		if body := e.page(e.proxy.Addr, "/health", http.StatusServiceUnavailable); !strings.HasPrefix(body, `{"health":"false","reason":"GET ERROR:`) {
			e.Errorf("/health without a server: %s", body)
		}
	})
}

// The server comes back: watches through the proxy go on, and nothing is missing or twice.
func TestTheServerRestartsBehindTheProxy(t *testing.T) {
	both(t, "grpc-proxy", nil, func(e *env) {
		watch := e.cli.Watch(e.ctx, "r", clientv3.WithCreatedNotify())
		<-watch
		put := func(v string) {
			e.Helper()
			e.await("a write", func() bool {
				ctx, cancel := context.WithTimeout(e.ctx, 5*time.Second)
				defer cancel()
				_, err := e.direct.Put(ctx, "r", v)
				return err == nil
			})
		}
		put("1")
		e.server.Kill()
		e.must(e.server.Run())
		put("2")
		last := ""
		for resp := range watch {
			e.must(resp.Err())
			for _, event := range resp.Events {
				if v := string(event.Kv.Value); v < last {
					e.Errorf("%s after %s", v, last)
				} else {
					last = v
				}
			}
			if last == "2" {
				return
			}
		}
		e.Error("the watch ended")
	})
}
