package packages

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func (e *env) session(opts ...concurrency.SessionOption) *concurrency.Session {
	e.Helper()
	session, err := concurrency.NewSession(e.cli, append([]concurrency.SessionOption{concurrency.WithTTL(30)}, opts...)...)
	e.must(err)
	e.Cleanup(func() { _ = session.Close() })
	return session
}

func TestMutexHandsOverInOrder(t *testing.T) {
	both(t, func(e *env) {
		held := concurrency.NewMutex(e.session(), "m")
		e.must(held.Lock(e.ctx))
		order := make(chan int, 3)
		for n := range 3 {
			mutex := concurrency.NewMutex(e.session(), "m")
			waits := make(chan error, 1)
			go func() {
				err := mutex.Lock(e.ctx)
				waits <- err
				if err == nil {
					order <- n
					_ = mutex.Unlock(e.ctx)
				}
			}()
			// In the queue before the next one begins.
			e.queueLength("m/", n+2)
		}
		want(e, "trying a held mutex", concurrency.NewMutex(e.session(), "m").TryLock(e.ctx), concurrency.ErrLocked)
		e.must(held.Unlock(e.ctx))
		for n := range 3 {
			want(e, "turn", <-order, n)
		}
		want(e, "second unlock", held.Unlock(e.ctx), concurrency.ErrLockReleased)
	})
}

// queueLength waits until so many keys are below the prefix.
func (e *env) queueLength(prefix string, length int) {
	e.Helper()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	keys := map[string]bool{}
	for resp := range e.cli.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		e.must(resp.Err())
		for _, event := range resp.Events {
			keys[string(event.Kv.Key)] = event.Type == clientv3.EventTypePut
		}
		there := 0
		for _, is := range keys {
			if is {
				there++
			}
		}
		if there >= length {
			return
		}
	}
	e.Fatalf("never %d keys below %s", length, prefix)
}

// watchSignal tells that a watch was asked for.
type watchSignal struct {
	clientv3.Watcher
	begun chan struct{}
}

func (w *watchSignal) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	events := w.Watcher.Watch(ctx, key, opts...)
	select {
	case w.begun <- struct{}{}:
	default:
	}
	return events
}

func TestACanceledLockLeavesTheQueue(t *testing.T) {
	both(t, func(e *env) {
		held := concurrency.NewMutex(e.session(), "m")
		e.must(held.Lock(e.ctx))
		ctx, cancel := context.WithCancel(e.ctx)
		cli, _ := e.client(e.urls...)
		watching := &watchSignal{Watcher: cli.Watcher, begun: make(chan struct{}, 1)}
		cli.Watcher = watching
		session, err := concurrency.NewSession(cli, concurrency.WithTTL(30))
		e.must(err)
		waiter := concurrency.NewMutex(session, "m")
		done := make(chan error, 1)
		go func() { done <- waiter.Lock(ctx) }()
		// In the queue, and aware of it: a Lock that was canceled before it got its place leaves the key to the lease.
		<-watching.begun
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			e.Errorf("a canceled lock = %v", err)
		}
		resp, err := e.cli.Get(e.ctx, "m/", clientv3.WithPrefix())
		e.must(err)
		want(e, "keys", len(resp.Kvs), 1)
		want(e, "the owner's key", string(resp.Kvs[0].Key), held.Key())
	})
}

func TestTheEndOfASessionReleases(t *testing.T) {
	both(t, func(e *env) {
		first := e.session()
		mutex := concurrency.NewMutex(first, "m")
		e.must(mutex.Lock(e.ctx))
		second := concurrency.NewMutex(e.session(), "m")
		done := make(chan error, 1)
		go func() { done <- second.Lock(e.ctx) }()
		e.queueLength("m/", 2)
		e.must(first.Close())
		e.must(<-done)
		<-first.Done()
		resp, err := e.cli.Txn(e.ctx).If(mutex.IsOwner()).Commit()
		e.must(err)
		want(e, "the first still owns it", resp.Succeeded, false)
		resp, err = e.cli.Txn(e.ctx).If(second.IsOwner()).Commit()
		e.must(err)
		want(e, "the second owns it", resp.Succeeded, true)
	})
}

func TestElection(t *testing.T) {
	both(t, func(e *env) {
		first, second := concurrency.NewElection(e.session(), "e"), concurrency.NewElection(e.session(), "e")
		_, err := first.Leader(e.ctx)
		want(e, "no leader", err, concurrency.ErrElectionNoLeader)
		observed := second.Observe(e.ctx)
		next := func(value string) {
			e.Helper()
			resp, ok := <-observed
			if !ok {
				e.Fatal("observing ended")
			}
			want(e, "observed", string(resp.Kvs[0].Value), value)
		}
		e.must(first.Campaign(e.ctx, "one"))
		next("one")
		e.must(first.Proclaim(e.ctx, "uno"))
		next("uno")
		won := make(chan error, 1)
		go func() { won <- second.Campaign(e.ctx, "two") }()
		e.queueLength("e/", 2)
		e.must(first.Resign(e.ctx))
		e.must(<-won)
		next("two")
		want(e, "a proclaim of the one who resigned", first.Proclaim(e.ctx, "late"), concurrency.ErrElectionNotLeader)
		resp, err := second.Leader(e.ctx)
		e.must(err)
		want(e, "leader", string(resp.Kvs[0].Key), second.Key())
		want(e, "revision", resp.Kvs[0].CreateRevision, second.Rev())
		resumed := concurrency.ResumeElection(e.session(concurrency.WithLease(clientv3.LeaseID(resp.Kvs[0].Lease))), "e", second.Key(), second.Rev())
		e.must(resumed.Proclaim(e.ctx, "resumed"))
		next("resumed")
	})
}

var levels = map[string]concurrency.Isolation{
	"SerializableSnapshot": concurrency.SerializableSnapshot,
	"Serializable":         concurrency.Serializable,
	"RepeatableReads":      concurrency.RepeatableReads,
	"ReadCommitted":        concurrency.ReadCommitted,
}

// Transfers between accounts keep the sum on every level that sees conflicts with what was read.
func TestSTMTransfers(t *testing.T) {
	both(t, func(e *env) {
		for name, level := range levels {
			if level == concurrency.ReadCommitted {
				continue
			}
			account := func(n int) string { return fmt.Sprintf("stm/%s/%d", name, n) }
			const accounts, workers, rounds = 4, 4, 10
			for n := range accounts {
				e.put(account(n), "100")
			}
			var group sync.WaitGroup
			for worker := range workers {
				group.Add(1)
				go func() {
					defer group.Done()
					for round := range rounds {
						from, to := account((worker+round)%accounts), account((worker+2*round+1)%accounts)
						_, err := concurrency.NewSTM(e.cli, func(s concurrency.STM) error {
							have, _ := strconv.Atoi(s.Get(from))
							s.Put(from, strconv.Itoa(have-1))
							have, _ = strconv.Atoi(s.Get(to))
							s.Put(to, strconv.Itoa(have+1))
							return nil
						}, concurrency.WithIsolation(level), concurrency.WithAbortContext(e.ctx))
						if err != nil {
							e.Errorf("%s: %v", name, err)
						}
					}
				}()
			}
			group.Wait()
			sum := 0
			for n := range accounts {
				have, _ := strconv.Atoi(e.value(account(n)))
				sum += have
			}
			want(e, name+": sum", sum, 100*accounts)
		}
	})
}

// A write between a transaction's reads and its commit: what each level makes of it.
func TestSTMConflicts(t *testing.T) {
	both(t, func(e *env) {
		for name, level := range levels {
			read, written := "c/"+name+"/read", "c/"+name+"/written"
			e.put(read, "1")
			attempts := 0
			_, err := concurrency.NewSTM(e.cli, func(s concurrency.STM) error {
				attempts++
				seen := s.Get(read)
				if attempts == 1 {
					e.put(read, "2")
				}
				want(e, name+": repeated read", s.Get(read), seen)
				s.Put(written, seen)
				return nil
			}, concurrency.WithIsolation(level), concurrency.WithAbortContext(e.ctx))
			e.must(err)
			switch level {
			case concurrency.ReadCommitted:
				want(e, name+": attempts", attempts, 1)
				want(e, name+": written", e.value(written), "1")
			default:
				want(e, name+": attempts", attempts, 2)
				want(e, name+": written", e.value(written), "2")
			}
		}
	})
}

// A write to a key that a transaction only writes is a conflict on the strictest level alone.
func TestSTMBlindWrites(t *testing.T) {
	both(t, func(e *env) {
		for name, level := range levels {
			key, other := "b/"+name+"/key", "b/"+name+"/other"
			e.put(key, "0")
			e.put(other, "0")
			attempts := 0
			_, err := concurrency.NewSTM(e.cli, func(s concurrency.STM) error {
				attempts++
				s.Get(other)
				if attempts == 1 {
					e.put(key, "outside")
				}
				s.Put(key, "inside")
				return nil
			}, concurrency.WithIsolation(level), concurrency.WithAbortContext(e.ctx))
			e.must(err)
			wanted := 1
			if level == concurrency.SerializableSnapshot {
				wanted = 2
			}
			want(e, name+": attempts", attempts, wanted)
			want(e, name+": value", e.value(key), "inside")
		}
	})
}

func TestSTMDeletesAndPrefetches(t *testing.T) {
	both(t, func(e *env) {
		e.put("d/1", "a")
		e.put("d/2", "b")
		before := e.calls.of("Range")
		_, err := concurrency.NewSTM(e.cli, func(s concurrency.STM) error {
			want(e, "both", s.Get("d/1")+s.Get("d/2"), "ab")
			s.Del("d/1")
			want(e, "after deleting", s.Get("d/1"), "")
			want(e, "revision of a key that is not there", s.Rev("d/none"), 0)
			return nil
		}, concurrency.WithPrefetch("d/1", "d/2"), concurrency.WithAbortContext(e.ctx))
		e.must(err)
		want(e, "reads beside the prefetch", e.calls.of("Range")-before, 0)
		want(e, "d/1", e.value("d/1"), "")
		failed := errors.New("no")
		_, err = concurrency.NewSTM(e.cli, func(s concurrency.STM) error { s.Put("d/2", "x"); return failed })
		want(e, "a failed transaction", err, failed)
		want(e, "d/2", e.value("d/2"), "b")
	})
}
