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
	if p.requests >= (p.directed+1)*directedEvery {
		return p.directedStep()
	}
	switch n := p.rng.IntN(1000); {
	case n < 280:
		return p.once("KV.Range", p.rangeRequest())
	case n < 340:
		return p.rangeStream(p.streamRequest())
	case n < 570:
		return p.once("KV.Put", p.putRequest())
	case n < 640:
		return p.once("KV.DeleteRange", p.deleteRequest())
	case n < 820:
		return p.once("KV.Txn", p.txnRequest(1))
	case n < 890:
		return p.leaseStep()
	case n < 942:
		return p.watchStep()
	case n < 950:
		return p.compact()
	case n < 960:
		return p.hashKV()
	default:
		return p.rareStep()
	}
}

func (p *pair) rareStep() error {
	switch n := p.rng.IntN(100); {
	case n < 20:
		return p.once("Cluster.MemberList", &pb.MemberListRequest{Linearizable: p.chance(50)})
	case n < 35:
		return p.once("Maintenance.Status", &pb.StatusRequest{})
	case n < 40:
		return p.once("Maintenance.Hash", &pb.HashRequest{})
	case n < 44:
		return p.once("Maintenance.Defragment", &pb.DefragmentRequest{})
	case n < 60:
		req := &pb.AlarmRequest{Alarm: pb.AlarmType(p.rng.IntN(3))}
		if p.chance(30) {
			req.MemberID = p.rng.Uint64()
		}
		if p.chance(10) {
			req.Alarm = 9
		}
		return p.once("Maintenance.Alarm", req)
	case n < 72:
		return p.once("Health.Check", &healthpb.HealthCheckRequest{Service: pick(p, "", "", "no such service", "etcdserverpb.KV")})
	case n < 80:
		return p.unknownMethod()
	case n < 88:
		return p.badClientVersion()
	default:
		return p.oversized()
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

func (p *pair) once(rpc string, req proto.Message) error {
	_, err := p.do(call{rpc: rpc, req: req, md: p.metadata()})
	return err
}

func (p *pair) rangeStream(req *pb.RangeRequest) error {
	const rpc = "KV.RangeStream"
	var broken [2]string
	c := call{rpc: rpc, req: req, md: p.metadata(), inspect: func(side int, _ proto.Message) string { return broken[side] }}
	_, err := p.exchange(c, func(ctx context.Context, s *side, req proto.Message) (proto.Message, error) {
		stream, err := pb.NewKVClient(s.conn).RangeStream(ctx, req.(*pb.RangeRequest))
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
				broken[p.index(s)] = complaint
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

func (p *pair) index(s *side) int {
	if p.sides[0] == s {
		return 0
	}
	return 1
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
	a, err := p.do(call{rpc: "KV.Compact", req: req, md: p.metadata()})
	if a.resp != nil {
		p.compacted = req.Revision
		p.compacts = append(p.compacts, req.Revision)
		p.settled = req.Physical
	}
	return err
}

// finishCompaction waits for the compaction in the background: a physical one waits for those before it, even when it
// is refused.
func (p *pair) finishCompaction() error {
	if p.settled {
		return nil
	}
	p.settled = true
	return p.compactTo(&pb.CompactionRequest{Revision: p.compacted, Physical: true})
}

// hashKV compares hashes; those depend on what a compaction has already removed, so it must have ended.
func (p *pair) hashKV() error {
	if err := p.finishCompaction(); err != nil {
		return err
	}
	req := &pb.HashKVRequest{}
	switch n := p.rng.IntN(100); {
	case n < 35:
	case n < 80:
		req.Revision = p.someRevision()
	case len(p.compacts) > 0:
		req.Revision = pick(p, p.compacts[max(0, len(p.compacts)-14):]...)
	}
	inspect := func(_ int, resp proto.Message) string {
		if p.tainted {
			resp.(*pb.HashKVResponse).Hash = 1
		}
		return ""
	}
	_, err := p.do(call{rpc: "Maintenance.HashKV", req: req, md: p.metadata(), inspect: inspect})
	return err
}

func (p *pair) unknownMethod() error {
	return p.callUnknown(pick(p, "/etcdserverpb.KV/Frobnicate", "/etcdserverpb.Watch/Range", "/etcdserverpb.NoService/Range", "/kvd.Unknown/Call"))
}

// callUnknown calls what no server has.
func (p *pair) callUnknown(method string) error {
	req := &pb.RangeRequest{Key: []byte("k")}
	c := call{rpc: "KV.Range", req: req}
	p.requests++
	var got [2]answer
	for i, s := range p.sides {
		ctx, cancel := p.context(nil)
		resp := &pb.RangeResponse{}
		err := s.conn.Invoke(ctx, method, req, resp)
		cancel()
		got[i] = answerOf(resp, err)
	}
	if !equal(req, got[0], got[1]) {
		return p.differ(method, req, nil, show(got[0]), show(got[1]))
	}
	name, _ := errorName(got[0].code, got[0].text)
	p.cov.failure(c.rpc, name)
	return nil
}

// oversized sends what exceeds the proposal limit or the gRPC message limit.
func (p *pair) oversized() error {
	return p.oversizedBy(pick(p, requestBytesMax, messageBytesMax), p.rng.IntN(4))
}

func (p *pair) oversizedBy(limit, kind int) error {
	big := make([]byte, limit+64<<10)
	switch kind {
	case 0:
		return p.once("KV.DeleteRange", &pb.DeleteRangeRequest{Key: big})
	case 1:
		return p.once("KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: []byte("k"), Value: big})}})
	case 2:
		return p.once("KV.Range", &pb.RangeRequest{Key: big}) // reads have only the gRPC limit
	default:
		return p.once("KV.Put", &pb.PutRequest{Key: []byte("k"), Value: big})
	}
}

// badClientVersion sends metadata that is not UTF-8, which a Go gRPC client refuses to send.
func (p *pair) badClientVersion() error {
	req := &pb.RangeRequest{Key: []byte("k")}
	c := call{rpc: "KV.Range", req: req}
	_, err := p.exchange(c, func(ctx context.Context, s *side, req proto.Message) (proto.Message, error) {
		code, message, err := rawCall(ctx, s.srv.Addr(), scopeOf(c.rpc).method, req, map[string]string{"client-api-version": "\xff\xfe"})
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
	p.settled = true
	return nil
}

// finale compares everything once more.
func (p *pair) finale() error {
	for len(p.streams) > 0 {
		if err := p.closeStream(p.streams[0]); err != nil {
			return err
		}
	}
	return p.compareAll()
}

// compareAll compares all pairs, all history since the compaction, all leases and the hash.
func (p *pair) compareAll() error {
	if err := p.once("KV.Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
		return err
	}
	ws, err := p.openStream()
	if err != nil || ws == nil {
		return err
	}
	all := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: max(1, p.compacted), PrevKv: true}
	if err := p.createWatch(ws, all); err != nil {
		return err
	}
	if err := p.closeStream(ws); err != nil {
		return err
	}
	if err := p.listLeases(); err != nil {
		return err
	}
	return p.hashKV()
}
