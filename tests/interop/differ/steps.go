package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// metadata is sometimes what a client sends that wants a leader.
func (p *pair) metadata() metadata.MD {
	switch {
	case p.chance(4):
		return metadata.Pairs("hasleader", "true")
	case p.chance(1):
		return metadata.Pairs("client-api-version", "3.7")
	}
	return nil
}

// step sends one generated request, or a few that belong together.
func (p *pair) step() error {
	if p.directed < len(p.cases) && p.requests >= p.directed*p.config.requests/len(p.cases) {
		return p.directedStep()
	}
	if p.auth.on && p.authDirected < len(p.ofAuth) && float64(p.authDirected) < p.authProgress()*float64(len(p.ofAuth)) {
		p.authDirected++
		return p.ofAuth[p.authDirected-1]()
	}
	switch n := p.rng.IntN(1000); {
	case n < 660:
		return p.plainStep()
	case n < 730 && p.config.auth != authOff:
		return p.authStep()
	case n < 790:
		return p.leaseStep()
	case n < 850:
		return p.watchStep()
	case n < 858:
		return p.compact()
	case n < 868:
		return p.hashKV()
	case n < 900:
		return p.serviceStep()
	case n < 940:
		return p.rareStep()
	default:
		return p.plainStep()
	}
}

// plainStep sends something to the KV service.
func (p *pair) plainStep() error {
	switch n := p.rng.IntN(820); {
	case n < 280:
		return p.once("KV.Range", p.rangeRequest())
	case n < 340:
		return p.rangeStream(p.streamRequest())
	case n < 570:
		return p.once("KV.Put", p.putRequest())
	case n < 640:
		return p.once("KV.DeleteRange", p.deleteRequest())
	default:
		return p.once("KV.Txn", p.txnRequest(1))
	}
}

func (p *pair) rareStep() error {
	switch n := p.rng.IntN(130); {
	case n < 15:
		return p.once("Cluster.MemberList", &pb.MemberListRequest{Linearizable: p.chance(50)})
	case n < 30:
		return p.once("Maintenance.Status", &pb.StatusRequest{})
	case n < 35:
		return p.once("Maintenance.Hash", &pb.HashRequest{})
	case n < 38:
		return p.once("Maintenance.Defragment", &pb.DefragmentRequest{})
	case n < 50:
		req := &pb.AlarmRequest{Alarm: pb.AlarmType(p.rng.IntN(3))}
		if p.chance(30) {
			req.MemberID = p.rng.Uint64()
		}
		if p.chance(10) {
			req.Alarm = 9
		}
		return p.once("Maintenance.Alarm", req)
	case n < 62:
		return p.once("Health.Check", &healthpb.HealthCheckRequest{Service: pick(p, "", "", "no such service", "etcdserverpb.KV")})
	case n < 68:
		return p.unknownMethod()
	case n < 76:
		return p.badClientVersion()
	case n < 84:
		return p.oversized()
	case n < 87:
		return p.snapshot()
	case n < 97:
		return p.once("Maintenance.Downgrade", p.downgradeRequest())
	case n < 99:
		return p.moveLeader()
	case n < 101:
		return p.offLeader(call{rpc: "Maintenance.MoveLeader", req: &pb.MoveLeaderRequest{TargetID: firstMember}})
	case n < 103:
		return p.alarmWindow(pick(p, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT))
	default:
		rpc, req := p.clusterRequest()
		return p.once(rpc, req)
	}
}

// fewScenarios runs a slow scenario unless it has already run most times.
func (p *pair) fewScenarios(ran *int, most int, scenario func() error) error {
	if *ran >= most {
		return nil
	}
	*ran++
	return scenario()
}

// generated is a call by some caller with some metadata.
func (p *pair) generated(rpc string, req proto.Message) (call, error) {
	c := call{rpc: rpc, req: req, md: p.metadata()}
	var err error
	if c.who, err = p.anyone(); err != nil {
		return c, err
	}
	if p.auth.on && !c.who.root {
		straighten(req)
	}
	return c, nil
}

func (p *pair) once(rpc string, req proto.Message) error {
	c, err := p.generated(rpc, req)
	if err != nil {
		return err
	}
	_, err = p.do(c)
	return err
}

func (p *pair) rangeStream(req *pb.RangeRequest) error {
	c, err := p.generated("KV.RangeStream", req)
	if err != nil {
		return err
	}
	return p.rangeStreamBy(c)
}

func (p *pair) rangeStreamBy(c call) error {
	var broken [2]string
	c.inspect = func(side int, _ proto.Message) string { return broken[side] }
	_, err := p.exchange(c, func(ctx context.Context, e end, req proto.Message) (proto.Message, error) {
		stream, err := pb.NewKVClient(e.conn).RangeStream(ctx, req.(*pb.RangeRequest))
		if err != nil {
			return nil, err
		}
		merged := &pb.RangeResponse{}
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return &pb.RangeStreamResponse{RangeResponse: merged}, nil
			}
			if err != nil {
				return nil, err
			}
			if complaint := mergeChunk(merged, chunk.RangeResponse, req.(*pb.RangeRequest).SortTarget == pb.RangeRequest_KEY); complaint != "" {
				broken[e.side] = complaint
			}
		}
	})
	return err
}

// mergeChunk adds a chunk and returns which rule of the stream it breaks, or "". Where chunks are cut is left open.
func mergeChunk(merged, chunk *pb.RangeResponse, byKey bool) string {
	var complaint string
	if merged.Header != nil {
		complaint = "a chunk after the one with the header"
	}
	if chunk.GetHeader() == nil && (chunk.GetMore() || chunk.GetCount() != 0) {
		complaint = "more or count before the last chunk"
	}
	for _, kv := range chunk.GetKvs() {
		if n := len(merged.Kvs); byKey && n > 0 && bytes.Compare(merged.Kvs[n-1].Key, kv.Key) >= 0 {
			complaint = "keys do not rise"
		}
		merged.Kvs = append(merged.Kvs, kv)
	}
	merged.Header, merged.More, merged.Count = chunk.GetHeader(), chunk.GetMore(), chunk.GetCount()
	return complaint
}

func (p *pair) compact() error {
	// A compaction takes away previous values and history that watches have not delivered yet.
	if err := p.settleAll(); err != nil {
		return err
	}
	req := &pb.CompactionRequest{Physical: p.chance(40)}
	switch n := p.rng.IntN(100); {
	case n < 45:
		req.Revision = p.compacted + p.rng.Int64N(max(1, p.revision-p.compacted))
	case n < 60:
		req.Revision = p.revision
	case n < 75:
		req.Revision = p.compacted - p.rng.Int64N(4)
	case n < 90:
		req.Revision = p.revision + 1 + p.rng.Int64N(100)
	default:
		req.Revision = pick[int64](p, 0, -1, math.MaxInt64, math.MinInt64)
	}
	return p.compactTo(req)
}

func (p *pair) compactTo(req *pb.CompactionRequest) error {
	c, err := p.generated("KV.Compact", req)
	if err != nil {
		return err
	}
	c.member = p.anywhere()
	return p.compactBy(c)
}

func (p *pair) compactBy(c call) error {
	req := c.req.(*pb.CompactionRequest)
	a, err := p.do(c)
	if a.resp != nil {
		p.compacted = req.Revision
		p.compacts = append(p.compacts, req.Revision)
		for i := range p.settled {
			p.settled[i] = req.Physical && i == c.member-1
		}
	}
	return err
}

// finishCompaction waits for a member's compaction in the background: a physical one waits for those before it, even when it
// is refused.
func (p *pair) finishCompaction(member int) error {
	if p.settled[member-1] {
		return nil
	}
	p.settled[member-1] = true
	req := &pb.CompactionRequest{Revision: p.compacted, Physical: true}
	return p.compactBy(call{rpc: "KV.Compact", req: req, member: member})
}

// hashKV compares hashes of some member.
func (p *pair) hashKV() error {
	req := &pb.HashKVRequest{}
	switch n := p.rng.IntN(100); {
	case n < 35:
	case n < 80:
		req.Revision = p.someRevision()
	case len(p.compacts) > 0:
		req.Revision = pick(p, p.compacts[max(0, len(p.compacts)-14):]...)
	}
	c, err := p.generated("Maintenance.HashKV", req)
	if err != nil {
		return err
	}
	c.member = p.anywhere()
	return p.hashKVBy(c)
}

// hashKVBy compares hashes; those depend on what a compaction has already removed, so it must have ended.
func (p *pair) hashKVBy(c call) error {
	if err := p.finishCompaction(c.member); err != nil {
		return err
	}
	c.inspect = func(_ int, resp proto.Message) string {
		if p.tainted {
			resp.(*pb.HashKVResponse).Hash = 1
		}
		return ""
	}
	_, err := p.do(c)
	return err
}

func (p *pair) unknownMethod() error {
	return p.callUnknown(pick(p, "/etcdserverpb.KV/Frobnicate", "/etcdserverpb.Watch/Range", "/etcdserverpb.NoService/Range", "/kvd.Unknown/Call"))
}

// callUnknown calls what no server has.
func (p *pair) callUnknown(method string) error {
	_, err := p.exchange(call{rpc: "KV.Range", req: &pb.RangeRequest{Key: []byte("k")}}, func(ctx context.Context, e end, req proto.Message) (proto.Message, error) {
		resp := &pb.RangeResponse{}
		if err := e.conn.Invoke(ctx, method, req, resp); err != nil {
			return nil, err
		}
		return resp, nil
	})
	return err
}

// oversized sends what exceeds the proposal limit or the gRPC message limit.
func (p *pair) oversized() error {
	return p.oversizedBy(pick(p, requestBytesMax, messageBytesMax), p.rng.IntN(4))
}

func (p *pair) oversizedBy(limit, kind int) error {
	big := make([]byte, limit+64<<10)
	c := call{rpc: "KV.Put", req: &pb.PutRequest{Key: []byte("k"), Value: big}}
	switch kind {
	case 0:
		c.rpc, c.req = "KV.DeleteRange", &pb.DeleteRangeRequest{Key: big}
	case 1:
		c.rpc, c.req = "KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: []byte("k"), Value: big})}}
	case 2:
		c.rpc, c.req = "KV.Range", &pb.RangeRequest{Key: big} // reads have only the gRPC limit
	}
	_, err := p.do(c)
	return err
}

// badClientVersion sends metadata that is not UTF-8, which a Go gRPC client refuses to send.
func (p *pair) badClientVersion() error {
	req := &pb.RangeRequest{Key: []byte("k")}
	c := call{rpc: "KV.Range", req: req}
	_, err := p.exchange(c, func(ctx context.Context, e end, req proto.Message) (proto.Message, error) {
		code, message, err := rawCall(ctx, e.m.srv, scopeOf(c.rpc).method, req, map[string]string{"client-api-version": "\xff\xfe"})
		if err != nil {
			return nil, status.Error(codes.Internal, fmt.Sprintf("raw call: %v", err))
		}
		if code == codes.OK {
			return &pb.RangeResponse{}, nil
		}
		return nil, status.Error(code, message)
	})
	return err
}

// prelude sends what only makes sense on a fresh store.
func (p *pair) prelude() error {
	for _, c := range []call{
		{rpc: "Maintenance.HashKV", req: &pb.HashKVRequest{}},
		{rpc: "KV.Range", req: &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}},
		{rpc: "KV.Compact", req: &pb.CompactionRequest{Revision: -1}},
		{rpc: "KV.Compact", req: &pb.CompactionRequest{Revision: 0, Physical: true}},
		{rpc: "KV.Compact", req: &pb.CompactionRequest{Revision: 0, Physical: true}},
		{rpc: "Maintenance.HashKV", req: &pb.HashKVRequest{}},
		{rpc: "Lease.LeaseLeases", req: &pb.LeaseLeasesRequest{}},
		{rpc: "KV.DeleteRange", req: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}},
	} {
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	if p.downgrade {
		if err := p.downgradeScenario(); err != nil {
			return err
		}
	}
	return p.authPrelude()
}

// finale compares everything once more.
func (p *pair) finale() error {
	for len(p.streams) > 0 {
		if err := p.closeStream(p.streams[0]); err != nil {
			return err
		}
	}
	if err := p.compareAll(); err != nil {
		return err
	}
	return p.leaderless()
}

// compareAll compares all pairs, all history since the compaction, all leases and the hash, on every member.
func (p *pair) compareAll() error {
	for n := range p.members {
		if err := p.compareMember(n + 1); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) compareMember(n int) error {
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Serializable: true}
	if _, err := p.do(call{rpc: "KV.Range", req: all, member: n}); err != nil {
		return err
	}
	who, err := p.privileged()
	if err != nil {
		return err
	}
	ws, err := p.openStreamOf(who, n, nil)
	if err != nil || ws == nil {
		return err
	}
	history := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: max(1, p.compacted), PrevKv: true}
	if err := p.createWatch(ws, history); err != nil {
		return err
	}
	if err := p.closeStream(ws); err != nil {
		return err
	}
	if err := p.listLeasesBy(call{rpc: "Lease.LeaseLeases", req: &pb.LeaseLeasesRequest{}, member: n}); err != nil {
		return err
	}
	return p.hashKVBy(call{rpc: "Maintenance.HashKV", req: &pb.HashKVRequest{}, member: n})
}
