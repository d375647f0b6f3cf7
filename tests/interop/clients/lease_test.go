package clients

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A lease outlives its time while it is kept alive; then its keys go in one revision, with one event each.
func TestLeaseKeepAliveThenExpiry(t *testing.T) {
	each(t, func(e *env) {
		const ttl = 2
		lease, err := e.cli.Grant(e.ctx, ttl)
		e.must(err)
		ctx, stop := context.WithCancel(e.ctx)
		alive, err := e.cli.KeepAlive(ctx, lease.ID)
		e.must(err)
		for i := range 3 {
			e.put(fmt.Sprint(i), "v", clientv3.WithLease(lease.ID))
		}
		ch := e.cli.Watch(e.ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-ch

		kept := time.Now().Add((ttl + 3) * time.Second)
		for time.Now().Before(kept) {
			resp, ok := <-alive
			if !ok {
				e.Fatal("the keepalive channel closed")
			}
			want(e, "TTL", resp.TTL, ttl)
		}
		live, err := e.cli.TimeToLive(e.ctx, lease.ID, clientv3.WithAttachedKeys())
		e.must(err)
		want(e, "granted TTL", live.GrantedTTL, ttl)
		want(e, "attached keys", len(live.Keys), 3)

		before := e.get("", clientv3.WithPrefix())
		want(e, "keys while kept alive", before.Count, 3)
		stop()
		resp := next(e, ch)
		want(e, "events", describe(e, resp.Events), "DELETE 0, DELETE 1, DELETE 2")
		want(e, "revision", resp.Header.Revision, before.Header.Revision+1)
		gone, err := e.cli.TimeToLive(e.ctx, lease.ID)
		e.must(err)
		want(e, "TTL of a gone lease", gone.TTL, -1)
		_, err = e.cli.KeepAliveOnce(e.ctx, lease.ID)
		want(e, "keepalive of a gone lease", errors.Is(err, rpctypes.ErrLeaseNotFound), true)
	})
}

func TestLeaseRevokeAndList(t *testing.T) {
	each(t, func(e *env) {
		lease, err := e.cli.Grant(e.ctx, 500)
		e.must(err)
		e.put("a", "", clientv3.WithLease(lease.ID))
		e.put("b", "", clientv3.WithLease(lease.ID))
		e.put("b", "") // detaches
		list, err := e.cli.Leases(e.ctx)
		e.must(err)
		found := false
		for _, l := range list.Leases {
			found = found || l.ID == lease.ID
		}
		want(e, "listed", found, true)
		_, err = e.cli.Revoke(e.ctx, lease.ID)
		e.must(err)
		e.wantKeys(e.get("", clientv3.WithPrefix()), "b")
		_, err = e.cli.Revoke(e.ctx, lease.ID)
		want(e, "revoked twice", errors.Is(err, rpctypes.ErrLeaseNotFound), true)
		_, err = e.cli.Grant(e.ctx, 9_000_000_001)
		want(e, "too long", errors.Is(err, rpctypes.ErrLeaseTTLTooLarge), true)
	})
}
