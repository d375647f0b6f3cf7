package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/protobuf/proto"
)

// Locks and elections are queues of keys below a name. A call that would wait is only sent where something ends the wait.

// queueNames lie among the hot keys, so that deletions and permissions of the generator reach them.
var queueNames = []string{"k/a/lock", "k/b/lock", "k/c/vote"}

// plainLease draws a held lease whose id is the same on both sides; keys of queues are named by it.
func (p *pair) plainLease() (int64, bool) {
	plain := slices.DeleteFunc(slices.Clone(p.leases), func(l *leaseState) bool { return l.chosen })
	if len(plain) == 0 {
		return 0, false
	}
	return pick(p, plain...).name, true
}

// queue are the keys of a queue on the reference, oldest first.
func (p *pair) queue(name string) (*pb.RangeResponse, error) {
	ctx, cancel, err := p.asRoot(0)
	if err != nil {
		return nil, err
	}
	defer cancel()
	prefix := []byte(name + "/")
	req := &pb.RangeRequest{Key: prefix, RangeEnd: prefixEnd(prefix), SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_CREATE}
	return pb.NewKVClient(p.sides[0].members[0].conn).Range(ctx, req)
}

func queueKey(name string, lease int64) string { return fmt.Sprintf("%s/%x", name, lease) }

// serviceStep sends something to the Lock or Election service.
func (p *pair) serviceStep() error {
	name := pick(p, queueNames...)
	if n := p.rng.IntN(100); n < 15 {
		return p.once("Election.Leader", &epb.LeaderRequest{Name: []byte(name)})
	}
	q, err := p.queue(name)
	if err != nil {
		return err
	}
	if len(q.Kvs) == 0 {
		lease, ok := p.plainLease()
		if !ok {
			return p.grant()
		}
		if p.chance(10) {
			lease = p.unknownLease()
		}
		if p.chance(50) {
			return p.holds("Lock.Lock", &lpb.LockRequest{Name: []byte(name), Lease: lease}, lease)
		}
		return p.holds("Election.Campaign", &epb.CampaignRequest{Name: []byte(name), Lease: lease, Value: p.value()}, lease)
	}
	first := q.Kvs[0]
	lease := first.Lease
	if common, ok := p.sides[0].names.lease[lease]; ok {
		lease = common
	}
	leader := &epb.LeaderKey{Name: []byte(name), Key: first.Key, Rev: first.CreateRevision, Lease: lease}
	if p.chance(8) {
		leader.Rev++
	}
	if lease == 0 {
		// A put took the lease away; the server would then make one of its own choice.
		return p.once("Lock.Unlock", &lpb.UnlockRequest{Key: first.Key})
	}
	switch n := p.rng.IntN(100); {
	case n < 20:
		return p.holds("Lock.Lock", &lpb.LockRequest{Name: []byte(name), Lease: lease}, lease)
	case n < 40:
		return p.holds("Election.Campaign", &epb.CampaignRequest{Name: []byte(name), Lease: lease, Value: p.value()}, lease)
	case n < 55:
		return p.holds("Election.Proclaim", &epb.ProclaimRequest{Leader: leader, Value: p.value()}, lease)
	case n < 70:
		return p.holds("Election.Resign", &epb.ResignRequest{Leader: leader}, lease)
	case n < 88:
		return p.once("Lock.Unlock", &lpb.UnlockRequest{Key: pick(p, first.Key, first.Key, []byte(queueKey(name, 0x99)))})
	case n < 93:
		if p.chance(50) {
			return p.once("Election.Proclaim", &epb.ProclaimRequest{Value: p.value()})
		}
		return p.once("Election.Resign", &epb.ResignRequest{})
	default:
		return p.waiterScenario(name, p.chance(50))
	}
}

// holds sends a call with a lease. The session that etcd makes of it may renew the lease, so both sides then do.
func (p *pair) holds(rpc string, req proto.Message, lease int64) error {
	if err := p.once(rpc, req); err != nil || p.lease(lease) == nil {
		return err
	}
	return p.keepAliveBy(call{rpc: "Lease.LeaseKeepAlive", req: &pb.LeaseKeepAliveRequest{ID: lease}})
}

// waiterScenario has a second one wait for a queue that is held, until the first leaves.
func (p *pair) waiterScenario(name string, lock bool) error {
	if p.alarms.raised {
		return nil
	}
	q, err := p.queue(name)
	if err != nil || len(q.Kvs) != 1 {
		return err
	}
	const second = int64(0x5ec0d)
	if _, err := p.do(call{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: second, TTL: leaseTTLMin}}); err != nil {
		return err
	}
	c := call{rpc: "Election.Campaign", req: &epb.CampaignRequest{Name: []byte(name), Lease: second, Value: p.value()}}
	if lock {
		c = call{rpc: "Lock.Lock", req: &lpb.LockRequest{Name: []byte(name), Lease: second}}
	}
	c.member = p.anywhere()
	// The first leaves when the second one's key is there on both sides.
	released := make(chan error, 1)
	go func() { released <- p.release(queueKey(name, second), q.Kvs[0].Key) }()
	if _, err := p.do(c); err != nil {
		return err
	}
	if err := <-released; err != nil {
		return err
	}
	p.changes++
	_, err = p.do(call{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: second}})
	return err
}

// release deletes a key on both sides once another one is there.
func (p *pair) release(waiting string, key []byte) error {
	for i, s := range p.sides {
		deadline := time.Now().Add(callTimeout / 2)
		kv := pb.NewKVClient(s.members[0].conn)
		for {
			ctx, cancel, err := p.asRoot(i)
			if err != nil {
				return err
			}
			resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(waiting)})
			cancel()
			if err != nil {
				return err
			}
			if resp.Count == 1 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: %s never waits", s.label, waiting)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for i, s := range p.sides {
		ctx, cancel, err := p.asRoot(i)
		if err != nil {
			return err
		}
		_, err = pb.NewKVClient(s.members[0].conn).DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// observeScenario observes an election from before its first leader to after its last.
func (p *pair) observeScenario() error {
	const lease = int64(0x0b5e7e)
	name := []byte("k/observed")
	if _, err := p.do(call{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: lease, TTL: leaseTTLMin}}); err != nil {
		return err
	}
	member := p.anywhere()
	who, err := p.privileged()
	if err != nil {
		return err
	}
	if err := p.catchUpAt(member); err != nil {
		return err
	}
	var streams [2]epb.Election_ObserveClient
	for i := range p.sides {
		ctx, cancel := p.context(who.metadata(i, nil))
		defer cancel()
		if streams[i], err = epb.NewElectionClient(p.endOf(i, member, who).conn).Observe(ctx, &epb.LeaderRequest{Name: name}); err != nil {
			return err
		}
	}
	observed := func() error {
		c := call{rpc: "Election.Observe", req: &epb.LeaderRequest{Name: name}, member: member}
		_, err := p.exchange(c, func(_ context.Context, e end, _ proto.Message) (proto.Message, error) { return streams[e.side].Recv() })
		return err
	}
	for range 2 {
		a, err := p.do(call{rpc: "Election.Campaign", req: &epb.CampaignRequest{Name: name, Lease: lease, Value: p.value()}})
		if err != nil || a.resp == nil {
			return err
		}
		leader := a.resp.(*epb.CampaignResponse).Leader
		if err := observed(); err != nil {
			return err
		}
		for range 2 {
			if _, err := p.do(call{rpc: "Election.Proclaim", req: &epb.ProclaimRequest{Leader: leader, Value: p.value()}}); err != nil {
				return err
			}
			if err := observed(); err != nil {
				return err
			}
		}
		if _, err := p.do(call{rpc: "Election.Leader", req: &epb.LeaderRequest{Name: name}}); err != nil {
			return err
		}
		if _, err := p.do(call{rpc: "Election.Resign", req: &epb.ResignRequest{Leader: leader}}); err != nil {
			return err
		}
	}
	_, err = p.do(call{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: lease}})
	return err
}

// queueScenario is a lock or an election with one who waits.
func (p *pair) queueScenario(lock bool) func() error {
	return func() error {
		const lease = int64(0xf1f57)
		name := "k/a/queue"
		c := call{rpc: "Election.Campaign", req: &epb.CampaignRequest{Name: []byte(name), Lease: lease, Value: p.value()}}
		if lock {
			c = call{rpc: "Lock.Lock", req: &lpb.LockRequest{Name: []byte(name), Lease: lease}}
		}
		if _, err := p.do(call{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: lease, TTL: leaseTTLMin}}); err != nil {
			return err
		}
		if _, err := p.do(c); err != nil {
			return err
		}
		if err := p.waiterScenario(name, lock); err != nil {
			return err
		}
		if lock {
			for range 2 { // of one that is not there, and of one that is
				if _, err := p.do(call{rpc: "Lock.Unlock", req: &lpb.UnlockRequest{Key: []byte(queueKey(name, lease))}}); err != nil {
					return err
				}
				if _, err := p.do(c); err != nil {
					return err
				}
			}
		}
		_, err := p.do(call{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: lease}})
		return err
	}
}
