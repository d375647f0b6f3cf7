package packages

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/mirror"
)

// base reads what a syncer begins with.
func (e *env) base(syncer mirror.Syncer) map[string]string {
	e.Helper()
	pairs := map[string]string{}
	answers, errs := syncer.SyncBase(e.ctx)
	for answer := range answers {
		for _, kv := range answer.Kvs {
			pairs[string(kv.Key)] = string(kv.Value)
		}
	}
	for err := range errs {
		e.must(err)
	}
	return pairs
}

func TestAMirrorOfAPrefixFollows(t *testing.T) {
	both(t, func(e *env) {
		e.put("in/a", "1")
		e.put("in/b", "1")
		e.put("out", "1")
		syncer := mirror.NewSyncer(e.cli, "in/", 0)
		copied := e.base(syncer)
		want(e, "base", fmt.Sprint(copied), "map[in/a:1 in/b:1]")
		// Between the base and the updates, and after.
		e.put("in/a", "2")
		updates := syncer.SyncUpdates(e.ctx)
		_, err := e.cli.Delete(e.ctx, "in/b")
		e.must(err)
		e.put("out", "2")
		last := e.put("in/c", "3").Header.Revision
		for resp := range updates {
			e.must(resp.Err())
			for _, event := range resp.Events {
				if event.Type == clientv3.EventTypeDelete {
					delete(copied, string(event.Kv.Key))
				} else {
					copied[string(event.Kv.Key)] = string(event.Kv.Value)
				}
			}
			if resp.Header.Revision >= last {
				break
			}
		}
		want(e, "copy", fmt.Sprint(copied), "map[in/a:2 in/c:3]")
	})
}

// More keys than one answer of the syncer holds.
func TestAMirrorOfEverythingComesInBatches(t *testing.T) {
	both(t, func(e *env) {
		const keys = 2500
		for begin := 0; begin < keys; begin += 100 {
			var ops []clientv3.Op
			for n := begin; n < begin+100; n++ {
				ops = append(ops, clientv3.OpPut(fmt.Sprintf("k/%05d", n), "x"))
			}
			_, err := e.cli.Txn(e.ctx).Then(ops...).Commit()
			e.must(err)
		}
		before := e.calls.of("Range")
		want(e, "keys", len(e.base(mirror.NewSyncer(e.cli, "", 0))), keys)
		// One for the revision, then thousand by thousand.
		want(e, "reads", e.calls.of("Range")-before, 4)
	})
}

func TestAMirrorOfThePast(t *testing.T) {
	both(t, func(e *env) {
		e.put("p", "1")
		revision := e.put("p", "2").Header.Revision
		e.put("p", "3")
		syncer := mirror.NewSyncer(e.cli, "p", revision)
		want(e, "base", e.base(syncer)["p"], "2")
		resp := <-syncer.SyncUpdates(e.ctx)
		e.must(resp.Err())
		want(e, "update", string(resp.Events[0].Kv.Value), "3")
		_, err := e.cli.Compact(e.ctx, revision+1)
		e.must(err)
		_, errs := mirror.NewSyncer(e.cli, "p", revision).SyncBase(e.ctx)
		want(e, "a compacted base", fmt.Sprint(<-errs), "etcdserver: mvcc: required revision has been compacted")
	})
}
