package main

import (
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"kvd.dev/interop/proc"
)

// learnerScenario adds a learner that runs, asks it what a learner answers, gives it a vote and removes it.
func (p *pair) learnerScenario() error {
	if p.members == 1 {
		return nil
	}
	defer func() {
		for _, s := range p.sides {
			for _, m := range s.members[p.members:] {
				m.disconnect()
				m.srv.Close()
			}
			s.members = s.members[:p.members]
		}
	}()
	for _, s := range p.sides {
		srv, err := proc.Joining(s.servers())
		if err != nil {
			return err
		}
		s.members = append(s.members, &member{srv: srv})
		s.names.replaceAddresses(s.servers())
	}
	n := p.members + 1
	id, err := p.adds(fmt.Sprintf("http://PEER%d", n), true)
	if err != nil {
		return err
	}
	for i, s := range p.sides {
		m := s.members[n-1]
		if err := m.srv.Launch(); err != nil {
			return err
		}
		if err := p.dial(m); err != nil {
			return err
		}
		if err := p.waitLearner(i, m); err != nil {
			return fmt.Errorf("%s: %w: %s", s.label, err, m.srv.LogTail(20))
		}
	}
	k := []byte("k/a/0")
	for _, x := range []probe{
		{"Maintenance.Status", &pb.StatusRequest{}, nil},
		{"KV.Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Serializable: true}, nil},
		{"KV.Range", &pb.RangeRequest{Key: k}, nil},
		{"KV.RangeStream", &pb.RangeRequest{Key: k}, p.rangeStreamBy},
		{"KV.Put", &pb.PutRequest{Key: k}, nil},
		{"KV.DeleteRange", &pb.DeleteRangeRequest{Key: k}, nil},
		{"KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: k, Serializable: true})}}, nil},
		{"KV.Compact", &pb.CompactionRequest{Revision: 1}, nil},
		{"Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: 0x70003, TTL: leaseTTLMin}, nil},
		{"Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: 0x70003}, nil},
		{"Lease.LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 0x70003}, nil},
		{"Lease.LeaseLeases", &pb.LeaseLeasesRequest{}, p.listLeasesBy},
		{"Cluster.MemberList", &pb.MemberListRequest{}, nil},
		{"Cluster.MemberList", &pb.MemberListRequest{Linearizable: true}, nil},
		{"Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: 5}, nil},
		{"Maintenance.Alarm", &pb.AlarmRequest{}, nil},
		{"Maintenance.Hash", &pb.HashRequest{}, nil},
		{"Maintenance.HashKV", &pb.HashKVRequest{}, nil},
		{"Maintenance.Defragment", &pb.DefragmentRequest{}, nil},
		{"Maintenance.Snapshot", &pb.SnapshotRequest{}, p.snapshotBy},
		{"Maintenance.MoveLeader", &pb.MoveLeaderRequest{TargetID: id}, nil},
		{"Maintenance.Downgrade", &pb.DowngradeRequest{Version: "3.6"}, nil},
		{"Auth.AuthStatus", &pb.AuthStatusRequest{}, nil},
		{"Auth.Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "x"}, nil},
		{"Auth.UserList", &pb.AuthUserListRequest{}, nil},
		{"Health.Check", &healthpb.HealthCheckRequest{}, nil},
	} {
		c := call{rpc: x.rpc, req: x.req, member: n}
		var err error
		if x.send != nil {
			err = x.send(c)
		} else {
			_, err = p.do(c)
		}
		if err != nil {
			return err
		}
	}
	for _, c := range []call{
		{rpc: "Cluster.MemberList", req: &pb.MemberListRequest{Linearizable: true}},
		{rpc: "Cluster.MemberPromote", req: &pb.MemberPromoteRequest{ID: id}},
		{rpc: "Cluster.MemberList", req: &pb.MemberListRequest{Linearizable: true}},
		{rpc: "Cluster.MemberPromote", req: &pb.MemberPromoteRequest{ID: id}},
		{rpc: "KV.Put", req: &pb.PutRequest{Key: k, Value: []byte("of four")}},
		{rpc: "Cluster.MemberRemove", req: &pb.MemberRemoveRequest{ID: id}},
		{rpc: "Cluster.MemberList", req: &pb.MemberListRequest{Linearizable: true}},
	} {
		c.req = proto.Clone(c.req)
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	return nil
}

func (s *side) servers() []*proc.Server {
	var servers []*proc.Server
	for _, m := range s.members {
		servers = append(servers, m.srv)
	}
	return servers
}

// waitLearner waits until a learner has applied what the others have, and has published itself.
func (p *pair) waitLearner(side int, m *member) error {
	deadline := time.Now().Add(2 * callTimeout)
	for {
		ctx, cancel, err := p.asRoot(side)
		if err != nil {
			return err
		}
		resp, err := pb.NewKVClient(m.conn).Range(ctx, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
		published := false
		if err == nil {
			var list *pb.MemberListResponse
			list, err = pb.NewClusterClient(p.sides[side].members[0].conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			for _, listed := range list.GetMembers() {
				published = published || listed.IsLearner && len(listed.ClientURLs) > 0
			}
		}
		ready := false
		if err == nil && published && resp.Header.Revision == p.revision {
			var st *pb.StatusResponse
			st, err = pb.NewMaintenanceClient(m.conn).Status(ctx, &pb.StatusRequest{})
			ready = err == nil && st.StorageVersion != "" && st.Leader != 0
		}
		cancel()
		if ready {
			return nil
		}
		switch code := status.Code(err); code {
		case codes.OK, codes.Unavailable:
		case codes.Unauthenticated, codes.InvalidArgument:
			// A snapshot holds no simple tokens, and until it has come there are no users.
			p.auth.root = nil
		default:
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the learner does not catch up: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
