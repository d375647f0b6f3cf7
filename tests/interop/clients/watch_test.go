package clients

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const refusedWait = 3 * time.Second

func contextFor(e *env, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(e.ctx, d)
}

// next returns the next response with events.
func next(e *env, ch clientv3.WatchChan) clientv3.WatchResponse {
	e.Helper()
	for {
		select {
		case resp, ok := <-ch:
			if !ok || resp.Err() != nil {
				e.Fatalf("watch ended: %v", resp.Err())
			}
			if len(resp.Events) > 0 {
				return resp
			}
		case <-e.ctx.Done():
			e.Fatal("no event came")
		}
	}
}

func describe(e *env, events []*clientv3.Event) string {
	var out []string
	for _, ev := range events {
		s := fmt.Sprintf("%s %s", ev.Type, strings.TrimPrefix(string(ev.Kv.Key), e.prefix))
		if ev.PrevKv != nil {
			s += " was " + string(ev.PrevKv.Value)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestWatch(t *testing.T) {
	each(t, func(e *env) {
		start := e.put("a", "1").Header.Revision
		all := e.cli.Watch(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(start))
		puts := e.cli.Watch(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithRev(start))
		deletes := e.cli.Watch(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithRev(start))
		want(e, "history", describe(e, next(e, all).Events), "PUT a")
		want(e, "history of puts", describe(e, next(e, puts).Events), "PUT a")

		_, err := e.cli.Txn(e.ctx).Then(clientv3.OpPut(e.prefix+"a", "2"), clientv3.OpPut(e.prefix+"b", "1")).Commit()
		e.must(err)
		want(e, "one revision", describe(e, next(e, all).Events), "PUT a was 1, PUT b")
		want(e, "puts of it", describe(e, next(e, puts).Events), "PUT a, PUT b")

		del, err := e.cli.Delete(e.ctx, e.prefix, clientv3.WithPrefix())
		e.must(err)
		resp := next(e, all)
		want(e, "deletes", describe(e, resp.Events), "DELETE a was 2, DELETE b was 1")
		want(e, "revision", resp.Header.Revision, del.Header.Revision)
		want(e, "filtered deletes", describe(e, next(e, deletes).Events), "DELETE a, DELETE b")
		e.put("last", "")
		want(e, "puts after deletes", describe(e, next(e, puts).Events), "PUT last")
	})
}

func TestWatchProgress(t *testing.T) {
	each(t, func(e *env) {
		ctx, cancel := context.WithCancel(e.ctx)
		defer cancel()
		ch := e.cli.Watch(ctx, e.prefix+"quiet", clientv3.WithCreatedNotify())
		created := <-ch
		want(e, "created", created.Created, true)
		revision := e.put("elsewhere", "").Header.Revision
		deadline := time.After(10 * time.Second)
		for {
			e.must(e.cli.RequestProgress(ctx)) // may be dropped while the watch is not yet in step
			select {
			case resp := <-ch:
				want(e, "progress", resp.IsProgressNotify(), true)
				if resp.Header.Revision >= revision {
					return
				}
			case <-time.After(200 * time.Millisecond):
			case <-deadline:
				e.Fatal("no progress answer")
			}
		}
	})
}

// The events of one revision that exceed a response come in fragments, which the client joins again.
func TestWatchFragment(t *testing.T) {
	each(t, func(e *env) {
		const n = 5
		ch := e.cli.Watch(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithFragment(), clientv3.WithPrevKV(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
		<-ch
		for i := range n {
			e.put(fmt.Sprint(i), strings.Repeat("x", 900<<10))
		}
		_, err := e.cli.Delete(e.ctx, e.prefix, clientv3.WithPrefix())
		e.must(err)
		resp := next(e, ch)
		want(e, "events", len(resp.Events), n)
		for _, ev := range resp.Events {
			want(e, "previous size", len(ev.PrevKv.Value), 900<<10)
		}
	})
}

// The server is killed and started again under a watch: no event is lost, doubled or reordered.
func TestWatchResumesAfterKill(t *testing.T) {
	eachFresh(t, func(e *env) {
		const n = 60
		ch := e.cli.Watch(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-ch
		written := make(chan struct{})
		go func() {
			defer close(written)
			for i := range n {
				if i%20 == 10 {
					e.srv.Kill()
					if err := e.srv.Run(); err != nil {
						e.Error(err)
						return
					}
				}
				// Each put is repeated until it is acknowledged; a repeat shows as a second event of the same value.
				for {
					ctx, cancel := contextFor(e, 5*time.Second)
					_, err := e.cli.Put(ctx, e.prefix+"k", fmt.Sprintf("%03d", i))
					cancel()
					if err == nil {
						break
					}
					if e.ctx.Err() != nil {
						e.Errorf("put %d: %v", i, err)
						return
					}
				}
			}
		}()
		last, revision := -1, int64(0)
		deliver := func() {
			for _, ev := range next(e, ch).Events {
				var i int
				_, err := fmt.Sscanf(string(ev.Kv.Value), "%d", &i)
				e.must(err)
				if i != last && i != last+1 {
					e.Fatalf("event %d after %d", i, last)
				}
				if ev.Kv.ModRevision != revision+1 && revision != 0 {
					e.Fatalf("revision %d after %d", ev.Kv.ModRevision, revision)
				}
				last, revision = i, ev.Kv.ModRevision
			}
		}
		for last < n-1 {
			deliver()
		}
		<-written
		got := e.get("k").Kvs[0]
		for revision < got.ModRevision { // the last put may have been repeated
			deliver()
		}
		want(e, "last value", string(got.Value), fmt.Sprintf("%03d", n-1))
		want(e, "last revision", got.ModRevision, revision)
	})
}
