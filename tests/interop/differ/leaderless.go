package main

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// leaderless ends a run of several members: all but one are killed, and that one is asked what it answers alone.
func (p *pair) leaderless() error {
	if p.members == 1 {
		return nil
	}
	p.alone = true
	for i, s := range p.sides {
		for _, m := range s.members[1:] {
			m.disconnect()
			m.srv.Kill()
		}
		if err := p.waitLeaderless(i); err != nil {
			return err
		}
	}
	wants := metadata.Pairs("hasleader", "true")
	k := []byte("k/a/0")
	for _, c := range []call{
		{rpc: "Maintenance.Status", req: &pb.StatusRequest{}},
		{rpc: "KV.Range", req: &pb.RangeRequest{Key: k, Serializable: true}},
		{rpc: "KV.Range", req: &pb.RangeRequest{Key: k, Serializable: true}, md: wants},
		{rpc: "KV.Put", req: &pb.PutRequest{Key: k}, md: wants},
		{rpc: "KV.Txn", req: &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: k, Serializable: true})}}},
		{rpc: "Cluster.MemberList", req: &pb.MemberListRequest{}},
		{rpc: "Cluster.MemberAdd", req: &pb.MemberAddRequest{}},
		{rpc: "Maintenance.MoveLeader", req: &pb.MoveLeaderRequest{TargetID: firstMember}},
		{rpc: "Lease.LeaseLeases", req: &pb.LeaseLeasesRequest{}, md: wants},
	} {
		c.member, c.lost = 1, true
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	if err := p.hashKVBy(call{rpc: "Maintenance.HashKV", req: &pb.HashKVRequest{}, member: 1}); err != nil {
		return err
	}
	watch := call{rpc: "Watch.Watch", req: &pb.WatchRequest{}, md: wants, member: 1, lost: true}
	_, err := p.exchange(watch, func(ctx context.Context, e end, _ proto.Message) (proto.Message, error) {
		stream, err := pb.NewWatchClient(e.conn).Watch(ctx)
		if err != nil {
			return nil, err
		}
		create := &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: k}}
		_ = stream.Send(&pb.WatchRequest{RequestUnion: create}) // the stream's end is what counts
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return resp, nil
	})
	if err != nil {
		return err
	}
	// Each of these takes the whole request timeout.
	err = p.together([]call{
		{rpc: "KV.Range", req: &pb.RangeRequest{Key: k}},
		{rpc: "KV.Put", req: &pb.PutRequest{Key: k, Value: k}},
		{rpc: "KV.DeleteRange", req: &pb.DeleteRangeRequest{Key: k}},
		{rpc: "KV.Txn", req: &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: k})}}},
		{rpc: "KV.Compact", req: &pb.CompactionRequest{Revision: p.revision}},
		{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: 0x70005, TTL: leaseTTLMin}},
		{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: 0x70005}},
		{rpc: "Cluster.MemberList", req: &pb.MemberListRequest{Linearizable: true}},
		{rpc: "Maintenance.Alarm", req: &pb.AlarmRequest{}},
		{rpc: "Maintenance.Downgrade", req: &pb.DowngradeRequest{Version: "3.6"}},
	})
	if err != nil {
		return err
	}
	// By now each server has noticed that the others' connections are gone too, which this depends on.
	req := &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true}
	_, err = p.do(call{rpc: "Cluster.MemberAdd", req: req, member: 1, lost: true})
	return err
}

// waitLeaderless waits until the last member has noticed.
func (p *pair) waitLeaderless(side int) error {
	deadline := time.Now().Add(callTimeout)
	for {
		ctx, cancel := p.context(nil)
		resp, err := pb.NewMaintenanceClient(p.sides[side].members[0].conn).Status(ctx, &pb.StatusRequest{})
		cancel()
		if err != nil {
			return err
		}
		if resp.Leader == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: a member alone of %d still has a leader", p.sides[side].label, p.members)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// together sends calls to the first member at the same time and compares them one by one.
func (p *pair) together(calls []call) error {
	got := make([][2]answer, len(calls))
	done := make(chan struct{})
	for n, c := range calls {
		scope := scopeOf(c.rpc)
		for i, s := range p.sides {
			req := s.names.toServer(c.req)
			go func() {
				defer func() { done <- struct{}{} }()
				ctx, cancel := p.context(nil)
				defer cancel()
				resp := scope.resp.ProtoReflect().New().Interface()
				got[n][i] = answerOf(resp, s.members[0].conn.Invoke(ctx, scope.method, req, resp))
			}()
		}
	}
	for range 2 * len(calls) {
		<-done
	}
	for n, c := range calls {
		p.requests++
		c.member = 1
		a, b := got[n][0], got[n][1]
		for i, x := range []answer{a, b} {
			if x.resp != nil {
				normalise(x.resp, p.sides[i].names)
			}
		}
		if err := p.settleScore(c, a, b, equal(c.req, a, b), [2]string{}); err != nil {
			return err
		}
	}
	return nil
}
