package services

import (
	"context"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/v3/concurrency"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

func (s *side) doLock(ctx context.Context, name string, lease int64) string {
	resp, err := s.lock.Lock(ctx, &lpb.LockRequest{Name: []byte(name), Lease: lease})
	if err != nil {
		return failure(err)
	}
	return string(resp.Key) + " " + header(resp.Header)
}

func (s *side) doUnlock(key string) string {
	resp, err := s.lock.Unlock(s.ctx, &lpb.UnlockRequest{Key: []byte(key)})
	if err != nil {
		return failure(err)
	}
	return header(resp.Header)
}

// waiting begins a Lock that has to wait, and returns when its key stands in the queue.
func (s *side) waiting(ctx context.Context, name string, lease int64, key string) <-chan string {
	s.Helper()
	answer := make(chan string, 1)
	go func() { answer <- s.doLock(ctx, name, lease) }()
	s.appears(key)
	return answer
}

func TestLockIsAQueue(t *testing.T) {
	compare(t, func(s *side) {
		first, second, third := s.lease(0x10), s.lease(0x20), s.lease(-0x30)
		s.see("lock %s", s.doLock(s.ctx, "q", first))
		s.see("again %s", s.doLock(s.ctx, "q", first))
		s.keys("q/")
		two := s.waiting(s.ctx, "q", second, "q/20")
		three := s.waiting(s.ctx, "q", third, "q/-30")
		s.keys("q/")
		s.see("unlock %s", s.doUnlock("q/10"))
		s.see("second %s", <-two)
		s.see("unlock %s", s.doUnlock("q/20"))
		s.see("third %s", <-three)
		s.keys("q/")
		s.see("unlock %s", s.doUnlock("q/-30"))
		s.see("unlock again %s", s.doUnlock("q/-30"))
		s.keys("q/")
	})
}

// The key before one's own may go without being the first.
func TestAWaiterInTheMiddleLeaves(t *testing.T) {
	compare(t, func(s *side) {
		for _, id := range []int64{1, 2, 3} {
			s.lease(id)
		}
		s.see("lock %s", s.doLock(s.ctx, "m", 1))
		ctx, cancel := context.WithCancel(s.ctx)
		two := s.waiting(ctx, "m", 2, "m/2")
		three := s.waiting(s.ctx, "m", 3, "m/3")
		cancel()
		s.see("second %s", <-two)
		s.goes("m/2")
		s.keys("m/")
		select {
		case got := <-three:
			s.Errorf("the third has the lock beside the first: %s", got)
		default:
		}
		s.see("unlock %s", s.doUnlock("m/1"))
		s.see("third %s", <-three)
	})
}

func TestLockRefusals(t *testing.T) {
	compare(t, func(s *side) {
		s.see("unknown lease: %s", s.doLock(s.ctx, "r", 0x99))
		s.keys("r/")
		s.see("empty key: %s", s.doUnlock(""))
		s.see("unknown key: %s", s.doUnlock("r/none"))
		s.lease(5)
		s.see("empty name: %s", s.doLock(s.ctx, "", 5))
	})
}

// A waiter whose lease ends meanwhile is told so once it is its turn.
func TestALeaseEndsWhileItsLockWaits(t *testing.T) {
	compare(t, func(s *side) {
		s.lease(1)
		s.lease(2)
		s.see("lock %s", s.doLock(s.ctx, "e", 1))
		two := s.waiting(s.ctx, "e", 2, "e/2")
		_, err := s.cli.Revoke(s.ctx, 2)
		s.must(err)
		s.see("unlock %s", s.doUnlock("e/1"))
		s.see("second %s", <-two)
		s.keys("e/")
	})
}

// The end of the owner's lease is an unlock.
func TestTheOwnersLeaseEnds(t *testing.T) {
	compare(t, func(s *side) {
		s.lease(1)
		s.lease(2)
		s.see("lock %s", s.doLock(s.ctx, "o", 1))
		two := s.waiting(s.ctx, "o", 2, "o/2")
		_, err := s.cli.Revoke(s.ctx, 1)
		s.must(err)
		s.see("second %s", <-two)
	})
}

func TestLockWithoutALease(t *testing.T) {
	compare(t, func(s *side) {
		resp, err := s.lock.Lock(s.ctx, &lpb.LockRequest{Name: []byte("z")})
		s.must(err)
		s.see("prefix %t", strings.HasPrefix(string(resp.Key), "z/"))
		got, err := s.cli.Get(s.ctx, string(resp.Key))
		s.must(err)
		ttl, err := s.cli.TimeToLive(s.ctx, concurrencyLease(got.Kvs[0].Lease))
		s.must(err)
		s.see("value %q, granted %d", got.Kvs[0].Value, ttl.GrantedTTL)
	})
}

// Callers of the service and users of the client's mutex stand in one queue.
func TestLockAndTheClientsMutex(t *testing.T) {
	compare(t, func(s *side) {
		session, err := concurrency.NewSession(s.cli, concurrency.WithLease(concurrencyLease(s.lease(1))))
		s.must(err)
		mutex := concurrency.NewMutex(session, "c")
		s.must(mutex.Lock(s.ctx))
		two := s.waiting(s.ctx, "c", s.lease(2), "c/2")
		s.must(mutex.Unlock(s.ctx))
		s.see("service %s", <-two)
		s.see("try %v", concurrency.NewMutex(session, "c").TryLock(s.ctx))
		s.see("unlock %s", s.doUnlock("c/2"))
		s.must(mutex.Lock(s.ctx))
		s.see("mutex %s %s", mutex.Key(), header(mutex.Header()))
	})
}
