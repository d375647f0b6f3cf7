package main

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// directedStep sends the next case of a fixed list, which is spread over the run: what the generator draws too seldom to be
// sure of in a short one.
func (p *pair) directedStep() error {
	next := p.cases[p.directed]
	p.directed++
	return next()
}

func (p *pair) directedCases() []func() error {
	stream := func(change func(*pb.RangeRequest)) func() error {
		return func() error {
			r := &pb.RangeRequest{Key: []byte("k/"), RangeEnd: []byte("k0")}
			change(r)
			return p.rangeStreamBy(call{rpc: "KV.RangeStream", req: r})
		}
	}
	asRoot := func(rpc string, req proto.Message) func() error {
		return func() error { _, err := p.do(call{rpc: rpc, req: req}); return err }
	}
	// Cases that need compacted revisions.
	compacted := func(do func() error) func() error {
		return func() error {
			if p.compacted < 3 {
				if err := p.compactSome(); err != nil {
					return err
				}
			}
			return do()
		}
	}
	txn := func(op *pb.RequestOp) func() error {
		return asRoot("KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op}})
	}
	onStream := func(do func(ws *watchStream) error) func() error {
		return func() error {
			if len(p.streams) == 0 {
				if ws, err := p.openStream(); err != nil || ws == nil {
					return err
				}
			}
			if p.auth.on { // a stream of one who may
				who, err := p.privileged()
				if err != nil {
					return err
				}
				ws, err := p.openStreamOf(who, p.anywhere(), nil)
				if err != nil || ws == nil {
					return err
				}
				if err := do(ws); err != nil || ws.gone {
					return err
				}
				return p.closeStream(ws)
			}
			return do(pick(p, p.streams...))
		}
	}
	watch := func(req *pb.WatchCreateRequest) func() error {
		return onStream(func(ws *watchStream) error { return p.createWatch(ws, req) })
	}
	k, key := []byte("k"), []byte("k/a/0")
	return []func() error{
		stream(func(r *pb.RangeRequest) { r.Key = nil }),
		stream(func(r *pb.RangeRequest) { r.SortOrder = 3 }),
		stream(func(r *pb.RangeRequest) { r.SortTarget = -1 }),
		stream(func(r *pb.RangeRequest) { r.SortOrder, r.SortTarget = pb.RangeRequest_DESCEND, pb.RangeRequest_KEY }),
		stream(func(r *pb.RangeRequest) { r.MinModRevision = 1 }),
		stream(func(r *pb.RangeRequest) { r.MaxModRevision = p.revision }),
		stream(func(r *pb.RangeRequest) { r.MinCreateRevision = 1 }),
		stream(func(r *pb.RangeRequest) { r.MaxCreateRevision = p.revision }),
		stream(func(r *pb.RangeRequest) { r.Revision = p.revision + 1 }),
		compacted(stream(func(r *pb.RangeRequest) { r.Revision = p.compacted - 1 })),
		stream(func(r *pb.RangeRequest) { r.KeysOnly, r.Limit, r.Serializable = true, 15, true }),
		stream(func(r *pb.RangeRequest) { r.CountOnly, r.Limit = true, 2 }),
		stream(func(r *pb.RangeRequest) { r.SortOrder, r.SortTarget = pb.RangeRequest_ASCEND, pb.RangeRequest_VERSION }),
		stream(func(r *pb.RangeRequest) { r.SortOrder, r.SortTarget = pb.RangeRequest_ASCEND, pb.RangeRequest_CREATE }),
		stream(func(r *pb.RangeRequest) { r.SortOrder, r.SortTarget = pb.RangeRequest_ASCEND, pb.RangeRequest_MOD }),
		stream(func(r *pb.RangeRequest) { r.SortOrder, r.SortTarget = pb.RangeRequest_ASCEND, pb.RangeRequest_VALUE }),
		asRoot("KV.Range", &pb.RangeRequest{}),
		asRoot("KV.Put", &pb.PutRequest{}),
		asRoot("KV.Put", &pb.PutRequest{Key: key, Lease: 5, IgnoreLease: true}),
		asRoot("KV.Put", &pb.PutRequest{Key: key, Value: k, IgnoreValue: true}),
		asRoot("KV.Put", &pb.PutRequest{Key: []byte("never put"), IgnoreValue: true}),
		asRoot("KV.DeleteRange", &pb.DeleteRangeRequest{}),
		txn(putOp(&pb.PutRequest{Key: key, Lease: 5, IgnoreLease: true})),
		txn(putOp(&pb.PutRequest{Key: key, Value: k, IgnoreValue: true})),
		txn(putOp(&pb.PutRequest{Key: key, Lease: -0x7fff})),
		txn(rangeOp(&pb.RangeRequest{Key: key, Revision: -1})),
		compacted(func() error { return txn(rangeOp(&pb.RangeRequest{Key: key, Revision: p.compacted - 1}))() }),
		compacted(func() error { return asRoot("KV.Range", &pb.RangeRequest{Key: key, Revision: p.compacted - 1})() }),
		compacted(func() error { return asRoot("KV.Compact", &pb.CompactionRequest{Revision: p.compacted - 1})() }),
		txn(rangeOp(&pb.RangeRequest{Key: key, SortTarget: 5})),
		func() error { return txn(rangeOp(&pb.RangeRequest{Key: key, Revision: p.revision + 1}))() },
		func() error { return p.oversizedBy(requestBytesMax, 0) },
		func() error { return p.oversizedBy(messageBytesMax, 0) },
		func() error { return p.oversizedBy(requestBytesMax, 1) },
		func() error { return p.oversizedBy(messageBytesMax, 1) },
		func() error { return p.oversizedBy(requestBytesMax, 2) },
		func() error { return p.oversizedBy(messageBytesMax, 2) },
		func() error { return p.oversizedBy(requestBytesMax, 3) },
		func() error { return p.oversizedBy(messageBytesMax, 3) },
		asRoot("Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: 0x70000, TTL: leaseTTLMax + 1}),
		asRoot("Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: 0x70000}),
		func() error {
			const id = 0x70002
			for _, c := range []call{
				{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: id, TTL: leaseTTLMin}},
				{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: id, TTL: leaseTTLMin}},
				{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: id}},
			} {
				if _, err := p.do(c); err != nil {
					return err
				}
			}
			return nil
		},
		func() error {
			many := &pb.TxnRequest{}
			for range opsMax + 1 {
				many.Success = append(many.Success, rangeOp(&pb.RangeRequest{Key: key}))
			}
			return asRoot("KV.Txn", many)()
		},
		asRoot("Lease.LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 0x70000, Keys: true}),
		p.listLeases,
		watch(&pb.WatchCreateRequest{Key: key, Filters: []pb.WatchCreateRequest_FilterType{7}, ProgressNotify: true}),
		watch(&pb.WatchCreateRequest{Key: key, Filters: []pb.WatchCreateRequest_FilterType{0}, ProgressNotify: true}),
		watch(&pb.WatchCreateRequest{Key: key, Filters: []pb.WatchCreateRequest_FilterType{1}, Fragment: true}),
		watch(&pb.WatchCreateRequest{Key: []byte("k/"), RangeEnd: k, StartRevision: 1}),
		watch(&pb.WatchCreateRequest{Key: []byte("k/"), StartRevision: -1}),
		watch(&pb.WatchCreateRequest{Key: []byte("k/b"), RangeEnd: []byte("k/a")}),
		compacted(onStream(func(ws *watchStream) error {
			return p.createWatch(ws, &pb.WatchCreateRequest{Key: k, StartRevision: p.compacted - 1})
		})),
		onStream(func(ws *watchStream) error {
			for range 2 { // the second one is a duplicate at the latest
				if err := p.createWatch(ws, &pb.WatchCreateRequest{Key: k, WatchId: 77}); err != nil || ws.gone {
					return err
				}
			}
			return p.cancelWatch(ws, 77)
		}),
		onStream(func(ws *watchStream) error {
			p.sendWatch(ws, &pb.WatchRequest{})
			p.cov.request("Watch.Watch", &pb.WatchRequest{})
			return nil
		}),
		p.badClientVersion,
		func() error { return p.callUnknown("/etcdserverpb.KV/Frobnicate") },
		func() error { return p.callUnknown("/kvd.Unknown/Call") },
		func() error { return p.fewScenarios(&p.expiries, 2, p.expiryScenario) },
		func() error { return p.fewScenarios(&p.fragments, 4, p.fragmentScenario) },
		asRoot("Maintenance.Defragment", &pb.DefragmentRequest{}),
		asRoot("Maintenance.Hash", &pb.HashRequest{}),
		asRoot("Maintenance.Status", &pb.StatusRequest{}),
		asRoot("Maintenance.Alarm", &pb.AlarmRequest{Alarm: pb.AlarmType_NOSPACE, MemberID: 5}),
		asRoot("Maintenance.Alarm", &pb.AlarmRequest{Alarm: pb.AlarmType_CORRUPT}),
		asRoot("Maintenance.Alarm", &pb.AlarmRequest{Alarm: 9}),
		asRoot("Maintenance.Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE}),
		asRoot("Maintenance.Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE}),
		func() error { return p.alarmWindow(pb.AlarmType_NOSPACE) },
		func() error { return p.alarmWindow(pb.AlarmType_CORRUPT) },
		func() error { return p.snapshotBy(call{rpc: "Maintenance.Snapshot", req: &pb.SnapshotRequest{}}) },
		asRoot("Maintenance.Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.5"}),
		asRoot("Maintenance.Downgrade", &pb.DowngradeRequest{Version: "x"}),
		asRoot("Maintenance.Downgrade", &pb.DowngradeRequest{Version: "3.7"}),
		asRoot("Maintenance.Downgrade", &pb.DowngradeRequest{Version: "3.6"}),
		asRoot("Maintenance.Downgrade", &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL, Version: "x"}),
		asRoot("Maintenance.Downgrade", &pb.DowngradeRequest{Action: 9}),
		p.moveLeader,
		func() error {
			return p.onLeader(call{rpc: "Maintenance.MoveLeader", req: &pb.MoveLeaderRequest{TargetID: 5}})
		},
		func() error {
			return p.offLeader(call{rpc: "Maintenance.MoveLeader", req: &pb.MoveLeaderRequest{TargetID: firstMember}})
		},
		p.memberScenario,
		p.learnerScenario,
		asRoot("Cluster.MemberAdd", &pb.MemberAddRequest{}),
		asRoot("Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://PEER1"}}),
		asRoot("Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1"}, IsLearner: true}),
		asRoot("Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: firstMember, PeerURLs: []string{"http://PEER1"}}),
		asRoot("Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: 5, PeerURLs: []string{"http://PEER1"}}),
		asRoot("Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: 5, PeerURLs: []string{"http://127.0.0.1:1"}}),
		asRoot("Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: firstMember}),
		asRoot("Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: 5}),
		asRoot("Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: 5}),
		p.observeScenario,
		p.leasedKeys,
		asRoot("KV.Range", &pb.RangeRequest{Key: key, SortOrder: 3}),
		asRoot("KV.Range", &pb.RangeRequest{Key: key, SortTarget: -1}),
		func() error { return asRoot("KV.Range", &pb.RangeRequest{Key: key, Revision: p.revision + 1})() },
		txn(rangeOp(&pb.RangeRequest{Key: key, SortOrder: -1})),
		txn(rangeOp(&pb.RangeRequest{})),
		txn(&pb.RequestOp{}),
		asRoot("KV.Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: key, Target: 9}, {Key: key, Result: 9}}}),
		asRoot("KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: key}), putOp(&pb.PutRequest{Key: key})}}),
		p.queueScenario(true),
		p.queueScenario(false),
		asRoot("Lock.Lock", &lpb.LockRequest{Name: []byte("k/a/nolease"), Lease: 0x99999}),
		asRoot("Lock.Unlock", &lpb.UnlockRequest{}),
		asRoot("Election.Campaign", &epb.CampaignRequest{Name: []byte("k/a/nolease"), Lease: 0x99999}),
		asRoot("Election.Proclaim", &epb.ProclaimRequest{Value: k}),
		asRoot("Election.Resign", &epb.ResignRequest{}),
		asRoot("Election.Leader", &epb.LeaderRequest{}),
		asRoot("Election.Leader", &epb.LeaderRequest{Name: []byte("nobody stands here")}),
		asRoot("Election.Proclaim", &epb.ProclaimRequest{Leader: &epb.LeaderKey{Name: k, Key: []byte("k/1"), Rev: 7, Lease: 0x99999}, Value: k}),
		asRoot("Election.Resign", &epb.ResignRequest{Leader: &epb.LeaderKey{Name: k, Key: []byte("k/1"), Rev: 7, Lease: 0x99999}}),
		func() error {
			return p.hashKVBy(call{rpc: "Maintenance.HashKV", req: &pb.HashKVRequest{Revision: p.revision + 1}, member: p.anywhere()})
		},
		compacted(func() error {
			return p.hashKVBy(call{rpc: "Maintenance.HashKV", req: &pb.HashKVRequest{Revision: p.compacted - 1}, member: p.anywhere()})
		}),
		func() error {
			req := &pb.CompactionRequest{Revision: p.revision + 1, Physical: true}
			return p.compactBy(call{rpc: "KV.Compact", req: req, member: p.anywhere()})
		},
		asRoot("Health.Check", &healthpb.HealthCheckRequest{Service: "no such service"}),
		asRoot("Health.Check", &healthpb.HealthCheckRequest{}),
	}
}

// compactSome leaves at least two compacted revisions.
func (p *pair) compactSome() error {
	for range 4 {
		if _, err := p.do(call{rpc: "KV.Put", req: &pb.PutRequest{Key: []byte("k/b/0"), Value: []byte("compacted")}}); err != nil {
			return err
		}
	}
	if err := p.settleAll(); err != nil {
		return err
	}
	req := &pb.CompactionRequest{Revision: p.revision - 1}
	return p.compactBy(call{rpc: "KV.Compact", req: req, member: p.anywhere()})
}

// leasedKeys puts keys with a lease and shows them in every answer that holds pairs.
func (p *pair) leasedKeys() error {
	const id = int64(0x70004)
	prefix := []byte("k/a/leased/")
	put := func(n int) *pb.PutRequest {
		return &pb.PutRequest{Key: fmt.Appendf(nil, "%s%02d", prefix, n), Value: []byte("v"), Lease: id, PrevKv: true}
	}
	within := &pb.RangeRequest{Key: prefix, RangeEnd: prefixEnd(prefix), Limit: 2}
	remove := &pb.DeleteRangeRequest{Key: prefix, RangeEnd: prefixEnd(prefix), PrevKv: true}
	few := &pb.DeleteRangeRequest{Key: put(0).Key, RangeEnd: put(3).Key, PrevKv: true}
	calls := []call{{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: id, TTL: leaseTTLMin}}}
	for n := range 12 {
		calls = append(calls, call{rpc: "KV.Put", req: put(n)})
	}
	calls = append(calls,
		call{rpc: "KV.Put", req: put(1)},
		call{rpc: "KV.Range", req: within},
		call{rpc: "KV.RangeStream", req: within},
		call{rpc: "KV.RangeStream", req: &pb.RangeRequest{Key: prefix, RangeEnd: prefixEnd(prefix), Limit: 11}},
		call{rpc: "Lease.LeaseTimeToLive", req: &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}},
		call{rpc: "KV.Txn", req: &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: put(1).Key, Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{Lease: id}}},
			Success: []*pb.RequestOp{putOp(put(7)), rangeOp(within), {Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: few}}},
		}},
		call{rpc: "KV.DeleteRange", req: remove},
		call{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: id}})
	for _, c := range calls {
		var err error
		if c.rpc == "KV.RangeStream" {
			err = p.rangeStreamBy(c)
		} else {
			_, err = p.do(c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
