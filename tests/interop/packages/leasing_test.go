package packages

import (
	"context"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
)

const leasingPrefix = "leasing/"

func (e *env) leasing() (clientv3.KV, *calls) {
	e.Helper()
	cli, counted := e.client(e.urls...)
	kv, closeKV, err := leasing.NewKV(cli, leasingPrefix)
	e.must(err)
	e.Cleanup(closeKV)
	return kv, counted
}

func (e *env) leased(kv clientv3.KV, key string) string {
	e.Helper()
	resp, err := kv.Get(e.ctx, key)
	e.must(err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// total is how many calls of reads and writes there were.
func (c *calls) total() int { return c.of("Range") + c.of("Txn") + c.of("Put") + c.of("DeleteRange") }

func TestALeasedKeyIsReadFromTheCache(t *testing.T) {
	both(t, func(e *env) {
		e.put("k", "1")
		kv, counted := e.leasing()
		want(e, "first read", e.leased(kv, "k"), "1")
		resp, err := e.cli.Get(e.ctx, leasingPrefix+"k")
		e.must(err)
		want(e, "ownership keys", len(resp.Kvs), 1)
		before := counted.total()
		for range 10 {
			want(e, "cached", e.leased(kv, "k"), "1")
		}
		want(e, "calls for cached reads", counted.total()-before, 0)
		_, err = kv.Put(e.ctx, "k", "2")
		e.must(err)
		before = counted.total()
		want(e, "own write", e.leased(kv, "k"), "2")
		want(e, "calls after an own write", counted.total()-before, 0)
		want(e, "on the server", e.value("k"), "2")
	})
}

func TestAnotherWriterTakesOwnershipAway(t *testing.T) {
	both(t, func(e *env) {
		e.put("k", "1")
		owner, counted := e.leasing()
		other, _ := e.leasing()
		want(e, "owner reads", e.leased(owner, "k"), "1")
		_, err := other.Put(e.ctx, "k", "2")
		e.must(err)
		before := counted.total()
		want(e, "owner reads what the other wrote", e.leased(owner, "k"), "2")
		if counted.total() == before {
			e.Error("the former owner still reads its cache")
		}
		_, err = other.Delete(e.ctx, "k")
		e.must(err)
		want(e, "after the other's delete", e.leased(owner, "k"), "")
	})
}

func TestATransactionRevokesAndIsCached(t *testing.T) {
	both(t, func(e *env) {
		e.put("a", "1")
		e.put("b", "1")
		owner, _ := e.leasing()
		other, _ := e.leasing()
		want(e, "a", e.leased(owner, "a"), "1")
		want(e, "b", e.leased(owner, "b"), "1")
		resp, err := other.Txn(e.ctx).
			If(clientv3.Compare(clientv3.Value("a"), "=", "1")).
			Then(clientv3.OpPut("a", "2"), clientv3.OpPut("b", "2")).
			Else(clientv3.OpGet("a")).Commit()
		e.must(err)
		want(e, "succeeded", resp.Succeeded, true)
		want(e, "a", e.leased(owner, "a"), "2")
		want(e, "b", e.leased(owner, "b"), "2")
		resp, err = owner.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Else(clientv3.OpGet("b")).Commit()
		e.must(err)
		want(e, "succeeded", resp.Succeeded, false)
		want(e, "else", string(resp.Responses[0].GetResponseRange().Kvs[0].Value), "2")
	})
}

// Owners of keys in a deleted range lose them first.
func TestADeletedRangeIsGoneForItsOwner(t *testing.T) {
	both(t, func(e *env) {
		owner, _ := e.leasing()
		other, _ := e.leasing()
		for _, key := range []string{"r/1", "r/2", "r/3"} {
			e.put(key, "x")
			want(e, key, e.leased(owner, key), "x")
		}
		resp, err := other.Delete(e.ctx, "r/", clientv3.WithPrefix())
		e.must(err)
		want(e, "deleted", resp.Deleted, 3)
		for _, key := range []string{"r/1", "r/2", "r/3"} {
			want(e, key, e.leased(owner, key), "")
		}
	})
}

// Two clients that count up through the cache lose nothing.
func TestLeasedCounters(t *testing.T) {
	both(t, func(e *env) {
		first, _ := e.leasing()
		second, _ := e.leasing()
		done := make(chan error, 2)
		for _, kv := range []clientv3.KV{first, second} {
			go func() {
				for range 20 {
					if err := countUp(e.ctx, kv); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		e.must(<-done)
		e.must(<-done)
		resp, err := e.cli.Get(e.ctx, "n")
		e.must(err)
		want(e, "version", resp.Kvs[0].Version, 40)
	})
}

// countUp writes the key once, only over the revision it read.
func countUp(ctx context.Context, kv clientv3.KV) error {
	for {
		resp, err := kv.Get(ctx, "n")
		if err != nil {
			return err
		}
		var revision int64
		if len(resp.Kvs) > 0 {
			revision = resp.Kvs[0].ModRevision
		}
		txn, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("n"), "=", revision)).Then(clientv3.OpPut("n", "x")).Commit()
		if err != nil || txn.Succeeded {
			return err
		}
	}
}
