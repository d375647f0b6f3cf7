package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// leaseState is a lease that both servers hold. name is its id in every request of the generator; for a lease whose id
// the servers chose it is replaced on the way (see leaseNames).
type leaseState struct {
	name      int64
	ttl       int64
	chosen    bool
	expiresAt time.Time
}

// renewed notes that the lease has its whole time again.
func (l *leaseState) renewed() {
	l.expiresAt = time.Now().Add(time.Duration(min(l.ttl, 1<<32)) * time.Second)
}

const (
	leasesLimit     = 10
	chosenLeaseBase = int64(0x6b76640000000000) // names of leases whose ids the servers chose
	leaseTTLMin     = 600                       // no lease may end during a run by itself
	leaseTTLMax     = 9_000_000_000
)

func (p *pair) lease(name int64) *leaseState {
	for _, l := range p.leases {
		if l.name == name {
			return l
		}
	}
	return nil
}

func (p *pair) unknownLease() int64 { return pick[int64](p, 0x7fff, -0x7fff, math.MaxInt64) }

// anyLease draws a lease id, mostly a held one.
func (p *pair) anyLease() int64 {
	if len(p.leases) == 0 || p.chance(12) {
		return p.unknownLease()
	}
	return pick(p, p.leases...).name
}

// leaseForPut is anyLease until the last tenth of the run, except that it avoids ids the servers chose: those are
// stored with the key, and HashKV could not be compared any more.
func (p *pair) leaseForPut() int64 {
	id := p.anyLease()
	if l := p.lease(id); l != nil && l.chosen {
		if p.requests < p.config.requests*9/10 {
			return p.unknownLease()
		}
		p.tainted = true
	}
	return id
}

func (p *pair) leaseStep() error {
	switch n := p.rng.IntN(100); {
	case n < 30:
		return p.grant()
	case n < 45:
		id := p.anyLease()
		if len(p.leases) < 3 && p.chance(70) {
			id = p.unknownLease()
		}
		return p.revoke(id)
	case n < 70:
		req := &pb.LeaseTimeToLiveRequest{ID: p.anyLease(), Keys: p.chance(60)}
		return p.once("Lease.LeaseTimeToLive", req)
	case n < 92:
		return p.keepAlive(p.anyLease())
	default:
		return p.listLeases()
	}
}

func (p *pair) grant() error {
	req := &pb.LeaseGrantRequest{ID: 1 + p.rng.Int64N(40), TTL: leaseTTLMin + 60*p.rng.Int64N(100)}
	if p.chance(15) {
		req.ID = -req.ID
	}
	if len(p.leases) >= leasesLimit {
		req.ID = pick(p, p.leases...).name // exists
		if p.lease(req.ID).chosen {
			return p.revoke(req.ID)
		}
	}
	switch {
	case p.chance(30) && len(p.leases) < leasesLimit:
		req.ID = 0
	case p.chance(4):
		req.TTL = leaseTTLMax + 1 + p.rng.Int64N(2)*(math.MaxInt64-leaseTTLMax-1)
	case p.chance(4):
		req.TTL = leaseTTLMax
	case p.chance(8) && p.lease(req.ID) == nil:
		req.TTL = pick[int64](p, 0, -1, 1, 2, math.MinInt64)
	}
	c, err := p.generated("Lease.LeaseGrant", req)
	if err != nil {
		return err
	}
	name := req.ID
	if req.ID == 0 {
		p.chosen++
		name = chosenLeaseBase + p.chosen
		c.adopt = func(side int, resp proto.Message) string {
			id := resp.(*pb.LeaseGrantResponse).ID
			p.sides[side].names.bindLease(name, id)
			if id <= 0 {
				return fmt.Sprintf("a chosen lease id must be positive, not %d", id)
			}
			return ""
		}
	}
	a, err := p.do(c)
	if err != nil || a.resp == nil {
		return err
	}
	granted := a.resp.(*pb.LeaseGrantResponse).TTL
	l := &leaseState{name: name, ttl: granted, chosen: req.ID == 0}
	l.renewed()
	p.leases = append(p.leases, l)
	if granted < leaseTTLMin {
		return p.revokeBy(call{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: name}}) // before it can end by itself
	}
	return nil
}

func (p *pair) revoke(id int64) error {
	c, err := p.generated("Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: id})
	if err != nil {
		return err
	}
	return p.revokeBy(c)
}

func (p *pair) revokeBy(c call) error {
	a, err := p.do(c)
	if a.resp != nil {
		p.leases = slices.DeleteFunc(p.leases, func(l *leaseState) bool { return l.name == c.req.(*pb.LeaseRevokeRequest).ID })
	}
	return err
}

func (p *pair) keepAlive(id int64) error {
	c, err := p.generated("Lease.LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: id})
	if err != nil {
		return err
	}
	c.md = nil
	return p.keepAliveBy(c)
}

func (p *pair) keepAliveBy(c call) error {
	a, err := p.exchange(c, func(ctx context.Context, e end, req proto.Message) (proto.Message, error) {
		if p.config.auth != authOff {
			// Each caller has a stream of its own, for one request.
			stream, err := pb.NewLeaseClient(e.conn).LeaseKeepAlive(ctx)
			if err != nil {
				return nil, err
			}
			if err := stream.Send(req.(*pb.LeaseKeepAliveRequest)); err != nil {
				return nil, err
			}
			defer func() { _ = stream.CloseSend() }()
			resp, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			return resp, nil
		}
		if e.m.keepAlive == nil {
			streamCtx, cancel := context.WithCancel(context.Background())
			stream, err := pb.NewLeaseClient(e.conn).LeaseKeepAlive(streamCtx)
			if err != nil {
				cancel()
				return nil, err
			}
			e.m.keepAlive, e.m.keepAliveCancel = stream, cancel
		}
		// One stream serves the whole run, one request at a time; an unanswered request ends it.
		defer context.AfterFunc(ctx, e.m.keepAliveCancel)()
		if err := e.m.keepAlive.Send(req.(*pb.LeaseKeepAliveRequest)); err != nil {
			return nil, err
		}
		resp, err := e.m.keepAlive.Recv()
		if err != nil {
			e.m.keepAlive = nil
			return nil, err
		}
		return resp, nil
	})
	if l := p.lease(c.req.(*pb.LeaseKeepAliveRequest).ID); l != nil && a.resp != nil {
		l.renewed()
	}
	return err
}

// renewAll gives all leases their whole time on both sides, after something that each side may do at another moment.
func (p *pair) renewAll() error {
	for _, l := range p.leases {
		if err := p.keepAliveBy(call{rpc: "Lease.LeaseKeepAlive", req: &pb.LeaseKeepAliveRequest{ID: l.name}}); err != nil {
			return err
		}
	}
	return nil
}

// checkRestored checks a lease after a restart, which gives it its whole time from the moment the member leads again.
// That moment is each server's own, so the lease is then renewed on both.
func (p *pair) checkRestored(l *leaseState, sinceKill time.Duration) error {
	inspect := func(_ int, m proto.Message) string {
		resp := m.(*pb.LeaseTimeToLiveResponse)
		least := resp.GrantedTTL - int64(sinceKill.Seconds()) - 2
		if resp.TTL < least || resp.TTL > resp.GrantedTTL+5 {
			return fmt.Sprintf("a restored lease must have at least %d s left", least)
		}
		resp.TTL = resp.GrantedTTL
		return ""
	}
	req := &pb.LeaseTimeToLiveRequest{ID: l.name, Keys: true}
	if _, err := p.do(call{rpc: "Lease.LeaseTimeToLive", req: req, inspect: inspect}); err != nil {
		return err
	}
	return p.keepAliveBy(call{rpc: "Lease.LeaseKeepAlive", req: &pb.LeaseKeepAliveRequest{ID: l.name}})
}

// orderSlack is how far apart two expiries must be for the order of LeaseLeases to be certain.
const orderSlack = 2 * time.Second

func (p *pair) listLeases() error {
	c, err := p.generated("Lease.LeaseLeases", &pb.LeaseLeasesRequest{})
	if err != nil {
		return err
	}
	return p.listLeasesBy(c)
}

func (p *pair) listLeasesBy(c call) error {
	c.inspect = func(_ int, resp proto.Message) string {
		list := resp.(*pb.LeaseLeasesResponse).Leases
		var complaint string
		for i := 1; i < len(list); i++ {
			before, after := p.lease(list[i-1].ID), p.lease(list[i].ID)
			// A follower does not know when a lease ends.
			if p.members == 1 && before != nil && after != nil && before.expiresAt.Sub(after.expiresAt) > orderSlack {
				complaint = fmt.Sprintf("lease %d must not come before %d: leases are listed by expiry", before.name, after.name)
			}
		}
		slices.SortFunc(list, func(x, y *pb.LeaseStatus) int { return compareInt(x.ID, y.ID) })
		return complaint
	}
	_, err := p.do(c)
	return err
}

// expiryScenario lets a lease with three keys end by itself on both servers: one revision, one event per key.
func (p *pair) expiryScenario() error {
	const id = int64(0x6578706972)
	if _, err := p.do(call{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: id, TTL: 1}}); err != nil {
		return err
	}
	// Late puts would race the expiry, so the keys go in with one transaction at once.
	txn := &pb.TxnRequest{}
	for i := range 3 {
		txn.Success = append(txn.Success, putOp(&pb.PutRequest{Key: fmt.Appendf(nil, "k/a/expire%d", i), Lease: id}))
	}
	if _, err := p.do(call{rpc: "KV.Txn", req: txn}); err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for i := range p.sides {
		for time.Now().Before(deadline) {
			who, err := p.privileged()
			if err != nil {
				return err
			}
			ctx, cancel := p.context(who.metadata(i, nil))
			resp, err := pb.NewLeaseClient(p.endOf(i, 1, who).conn).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id})
			cancel()
			if err == nil && resp.TTL == -1 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	p.changes++ // by itself
	if _, err := p.do(call{rpc: "Lease.LeaseTimeToLive", req: &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}}); err != nil {
		return err
	}
	_, err := p.do(call{rpc: "KV.Range", req: &pb.RangeRequest{Key: []byte("k/a/"), RangeEnd: []byte("k/b/")}})
	if err != nil {
		return err
	}
	return p.settleAll()
}
