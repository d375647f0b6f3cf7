package clients

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func session(e *env, cli *clientv3.Client) *concurrency.Session {
	e.Helper()
	s, err := concurrency.NewSession(cli, concurrency.WithTTL(10))
	e.must(err)
	return s
}

// Eight owners count up under one mutex without compare-and-swap: no increment may be lost.
func TestMutex(t *testing.T) {
	each(t, func(e *env) {
		const owners, rounds = 8, 5
		e.put("counter", "0")
		var wg sync.WaitGroup
		failures := make(chan error, owners)
		for range owners {
			s := session(e, e.cli)
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer s.Close()
				m := concurrency.NewMutex(s, e.prefix+"lock")
				for range rounds {
					if err := increment(e, m); err != nil {
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
		want(e, "counter", string(e.get("counter").Kvs[0].Value), fmt.Sprint(owners*rounds))

		s1, s2 := session(e, e.cli), session(e, e.cli)
		defer s1.Close()
		defer s2.Close()
		held := concurrency.NewMutex(s1, e.prefix+"try")
		e.must(held.Lock(e.ctx))
		want(e, "second TryLock", concurrency.NewMutex(s2, e.prefix+"try").TryLock(e.ctx), concurrency.ErrLocked)
	})
}

func increment(e *env, m *concurrency.Mutex) error {
	if err := m.Lock(e.ctx); err != nil {
		return err
	}
	resp, err := e.cli.Get(e.ctx, e.prefix+"counter")
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(resp.Kvs[0].Value))
	if err != nil {
		return err
	}
	if _, err := e.cli.Put(e.ctx, e.prefix+"counter", strconv.Itoa(n+1)); err != nil {
		return err
	}
	return m.Unlock(e.ctx)
}

func TestElection(t *testing.T) {
	each(t, func(e *env) {
		s1, s2 := session(e, e.cli), session(e, e.client())
		defer s2.Close()
		first, second := concurrency.NewElection(s1, e.prefix+"elect"), concurrency.NewElection(s2, e.prefix+"elect")
		e.must(first.Campaign(e.ctx, "one"))
		ctx, cancel := context.WithCancel(e.ctx)
		defer cancel()
		observed := second.Observe(ctx)
		want(e, "observed leader", string((<-observed).Kvs[0].Value), "one")
		won := make(chan error, 1)
		go func() { won <- second.Campaign(e.ctx, "two") }()
		select {
		case err := <-won:
			e.Fatalf("two leaders at once (%v)", err)
		case <-time.After(300 * time.Millisecond):
		}
		e.must(first.Proclaim(e.ctx, "one again"))
		want(e, "proclaimed", string((<-observed).Kvs[0].Value), "one again")
		e.must(s1.Close()) // the session ends, and with it the leadership
		e.must(<-won)
		want(e, "next leader", string((<-observed).Kvs[0].Value), "two")
		e.must(second.Resign(e.ctx))
		_, err := second.Leader(e.ctx)
		want(e, "no leader left", err, concurrency.ErrElectionNoLeader)
	})
}

// Transfers between accounts in software transactions keep the sum.
func TestSTM(t *testing.T) {
	each(t, func(e *env) {
		const accounts, workers, transfers, start = 5, 8, 10, 100
		account := func(i int) string { return fmt.Sprintf("%saccount%d", e.prefix, i%accounts) }
		for i := range accounts {
			_, err := e.cli.Put(e.ctx, account(i), strconv.Itoa(start))
			e.must(err)
		}
		var wg sync.WaitGroup
		failures := make(chan error, workers)
		for w := range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range transfers {
					from, to := account(w+i), account(w+i+1)
					_, err := concurrency.NewSTM(e.cli, func(s concurrency.STM) error {
						a, errA := strconv.Atoi(s.Get(from))
						b, errB := strconv.Atoi(s.Get(to))
						if errA != nil || errB != nil {
							return fmt.Errorf("accounts hold %q and %q", s.Get(from), s.Get(to))
						}
						s.Put(from, strconv.Itoa(a-1))
						s.Put(to, strconv.Itoa(b+1))
						return nil
					}, concurrency.WithIsolation(concurrency.Serializable))
					if err != nil {
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
		sum := 0
		for i := range accounts {
			n, err := strconv.Atoi(string(e.get(fmt.Sprintf("account%d", i)).Kvs[0].Value))
			e.must(err)
			sum += n
		}
		want(e, "sum", sum, accounts*start)
	})
}
