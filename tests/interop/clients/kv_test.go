package clients

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestPutGetDelete(t *testing.T) {
	each(t, func(e *env) {
		first := e.put("a", "1")
		second := e.put("a", "2", clientv3.WithPrevKV())
		want(e, "revision step", second.Header.Revision, first.Header.Revision+1)
		want(e, "previous value", string(second.PrevKv.Value), "1")
		e.put("b", "3")
		e.put("c", "0")

		e.wantKeys(e.get("", clientv3.WithPrefix()), "a", "b", "c")
		e.wantKeys(e.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend)), "b", "a", "c")
		limited := e.get("", clientv3.WithPrefix(), clientv3.WithLimit(2))
		e.wantKeys(limited, "a", "b")
		want(e, "more", limited.More, true)
		want(e, "count", limited.Count, 3)
		want(e, "count only", e.get("", clientv3.WithPrefix(), clientv3.WithCountOnly()).Count, 3)
		want(e, "old value", string(e.get("a", clientv3.WithRev(first.Header.Revision)).Kvs[0].Value), "1")
		want(e, "keys only", len(e.get("a", clientv3.WithKeysOnly()).Kvs[0].Value), 0)
		a := e.get("a", clientv3.WithSerializable()).Kvs[0]
		want(e, "create revision", a.CreateRevision, first.Header.Revision)
		want(e, "mod revision", a.ModRevision, second.Header.Revision)
		want(e, "version", a.Version, 2)
		e.wantKeys(e.get("", clientv3.WithPrefix(), clientv3.WithMinModRev(second.Header.Revision+1)), "b", "c")

		del, err := e.cli.Delete(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV())
		e.must(err)
		want(e, "deleted", del.Deleted, 3)
		want(e, "previous pairs", len(del.PrevKvs), 3)
		want(e, "left", e.get("", clientv3.WithPrefix()).Count, 0)

		_, err = e.cli.Put(e.ctx, "", "x")
		want(e, "empty key", errors.Is(err, rpctypes.ErrEmptyKey), true)
		_, err = e.cli.Put(e.ctx, e.prefix+"big", strings.Repeat("x", 1600<<10))
		want(e, "too large", errors.Is(err, rpctypes.ErrRequestTooLarge), true)
		_, err = e.cli.Put(e.ctx, e.prefix+"leased", "x", clientv3.WithLease(0x1234))
		want(e, "unknown lease", errors.Is(err, rpctypes.ErrLeaseNotFound), true)
	})
}

func TestRangeStream(t *testing.T) {
	each(t, func(e *env) {
		const n = 300
		for i := range n {
			e.put(fmt.Sprintf("%04d", i), strings.Repeat("v", 1000))
		}
		stream, err := e.cli.GetStream(e.ctx, e.prefix, clientv3.WithPrefix())
		e.must(err)
		whole, err := clientv3.GetStreamToGetResponse(stream)
		e.must(err)
		want(e, "count", whole.Count, n)
		want(e, "pairs", len(whole.Kvs), n)
		want(e, "last", string(whole.Kvs[n-1].Key), fmt.Sprintf("%s%04d", e.prefix, n-1))
	})
}

func TestTxn(t *testing.T) {
	each(t, func(e *env) {
		key := e.prefix + "k"
		create := func(value string) *clientv3.TxnResponse {
			resp, err := e.cli.Txn(e.ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
				Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
			e.must(err)
			return resp
		}
		want(e, "created", create("1").Succeeded, true)
		again := create("2")
		want(e, "created again", again.Succeeded, false)
		want(e, "found", string(again.Responses[0].GetResponseRange().Kvs[0].Value), "1")

		nested, err := e.cli.Txn(e.ctx).
			If(clientv3.Compare(clientv3.Value(key), "=", "1"), clientv3.Compare(clientv3.Version(key), "<", 2)).
			Then(clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.LeaseValue(key), ">", 0)},
				[]clientv3.Op{clientv3.OpPut(key, "leased")},
				[]clientv3.Op{clientv3.OpPut(key, "free", clientv3.WithPrevKV()), clientv3.OpDelete(e.prefix + "other")},
			)).Commit()
		e.must(err)
		inner := nested.Responses[0].GetResponseTxn()
		want(e, "inner branch", inner.Succeeded, false)
		want(e, "inner previous", string(inner.Responses[0].GetResponsePut().PrevKv.Value), "1")
		want(e, "value", string(e.get("k").Kvs[0].Value), "free")

		_, err = e.cli.Txn(e.ctx).Then(clientv3.OpPut(key, "a"), clientv3.OpPut(key, "b")).Commit()
		want(e, "duplicate", errors.Is(err, rpctypes.ErrDuplicateKey), true)
		var many []clientv3.Op
		for i := range 129 {
			many = append(many, clientv3.OpPut(fmt.Sprintf("%s%d", e.prefix, i), ""))
		}
		_, err = e.cli.Txn(e.ctx).Then(many...).Commit()
		want(e, "too many", errors.Is(err, rpctypes.ErrTooManyOps), true)
	})
}

func TestCompactionErrorsAreTyped(t *testing.T) {
	each(t, func(e *env) {
		old := e.put("k", "1").Header.Revision
		now := e.put("k", "2").Header.Revision
		_, err := e.cli.Compact(e.ctx, now, clientv3.WithCompactPhysical())
		e.must(err)
		_, err = e.cli.Get(e.ctx, e.prefix+"k", clientv3.WithRev(old))
		want(e, "get", errors.Is(err, rpctypes.ErrCompacted), true)
		_, err = e.cli.Compact(e.ctx, old)
		want(e, "compact", errors.Is(err, rpctypes.ErrCompacted), true)
		_, err = e.cli.Compact(e.ctx, now+1000)
		want(e, "compact future", errors.Is(err, rpctypes.ErrFutureRev), true)
		_, err = e.cli.Get(e.ctx, e.prefix+"k", clientv3.WithRev(now+1000))
		want(e, "get future", errors.Is(err, rpctypes.ErrFutureRev), true)
		resp := <-e.cli.Watch(e.ctx, e.prefix+"k", clientv3.WithRev(old))
		want(e, "watch", errors.Is(resp.Err(), rpctypes.ErrCompacted), true)
		want(e, "watch revision", resp.CompactRevision, now)
		want(e, "value at the compacted revision", string(e.get("k", clientv3.WithRev(now)).Kvs[0].Value), "2")
	})
}

func TestMaintenanceAndCluster(t *testing.T) {
	each(t, func(e *env) {
		e.put("k", "v")
		status, err := e.cli.Status(e.ctx, e.srv.URL())
		e.must(err)
		want(e, "leader is known", status.Leader != 0, true)
		want(e, "database has a size", status.DbSize > 0, true)
		want(e, "errors", len(status.Errors), 0)
		members, err := e.cli.MemberList(e.ctx)
		e.must(err)
		want(e, "members", len(members.Members), 1)
		want(e, "client URL", members.Members[0].ClientURLs[0], e.srv.URL())
		hash, err := e.cli.HashKV(e.ctx, e.srv.URL(), 0)
		e.must(err)
		want(e, "hash revision", hash.HashRevision, hash.Header.Revision)
		_, err = e.cli.Defragment(e.ctx, e.srv.URL())
		e.must(err)
		alarms, err := e.cli.AlarmList(e.ctx)
		e.must(err)
		want(e, "alarms", len(alarms.Alarms), 0)
	})
}

// Two hundred clients, each with its own connection, write at once; nothing may be lost or doubled.
func TestManyClients(t *testing.T) {
	const clients, puts = 200, 10
	each(t, func(e *env) {
		before := e.get("x").Header.Revision
		var wg sync.WaitGroup
		failures := make(chan error, clients)
		for c := range clients {
			cli := e.client()
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range puts {
					if _, err := cli.Put(e.ctx, fmt.Sprintf("%s%03d/%d", e.prefix, c, i), "v"); err != nil {
						failures <- err
						return
					}
				}
			}()
		}
		wg.Wait()
		close(failures)
		for err := range failures {
			e.Error(err)
		}
		after := e.get("", clientv3.WithPrefix(), clientv3.WithCountOnly())
		want(e, "count", after.Count, clients*puts)
		want(e, "revisions", after.Header.Revision-before, clients*puts)
	})
}

func TestClientWithoutCertificateIsRefused(t *testing.T) {
	e := newEnv(t, secure)
	bare := e.srv.TLS.Client.Clone()
	bare.Certificates = nil
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{e.srv.URL()}, TLS: bare})
	e.must(err)
	defer cli.Close()
	ctx, cancel := contextFor(e, refusedWait)
	defer cancel()
	if _, err := cli.Get(ctx, "k"); err == nil {
		t.Error("a client without a certificate was served")
	}
}
