package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// alarmState says whether an alarm that this run raised keeps writers out.
type alarmState struct {
	raised bool
}

// alarmWindow raises an alarm, sends some requests and takes it back.
func (p *pair) alarmWindow(kind pb.AlarmType) error {
	// Nothing can be put meanwhile, so a watch cannot be fenced.
	if err := p.settleAll(); err != nil {
		return err
	}
	for n := range p.members {
		if err := p.finishCompaction(n + 1); err != nil {
			return err
		}
	}
	member := pick[uint64](p, firstMember, firstMember, 0, 77)
	alarm := func(action pb.AlarmRequest_AlarmAction, id uint64) error {
		req := &pb.AlarmRequest{Action: action, MemberID: id, Alarm: kind}
		_, err := p.do(call{rpc: "Maintenance.Alarm", req: req})
		return err
	}
	p.alarms.raised = true
	if err := alarm(pb.AlarmRequest_ACTIVATE, member); err != nil {
		return err
	}
	k := []byte("k/a/0")
	refused := []probe{
		{"KV.Put", &pb.PutRequest{Key: k, Value: k}, nil},
		{"KV.DeleteRange", &pb.DeleteRangeRequest{Key: []byte("k/a/6")}, nil},
		{"KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: k})}}, nil},
		{"KV.Txn", &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: k}}}}}, nil},
		{"KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: k})}}, nil},
		{"KV.Range", &pb.RangeRequest{Key: k}, nil},
		{"KV.Compact", &pb.CompactionRequest{Revision: p.compacted}, nil},
		{"Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: 0x70001, TTL: leaseTTLMin}, nil},
		{"Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: 0x70001}, nil},
		{"Maintenance.Status", &pb.StatusRequest{}, nil},
		{"Maintenance.Alarm", &pb.AlarmRequest{}, nil},
		{"Maintenance.Alarm", &pb.AlarmRequest{Alarm: kind}, nil},
		{"Maintenance.Alarm", &pb.AlarmRequest{Alarm: pb.AlarmType_NOSPACE + pb.AlarmType_CORRUPT - kind}, nil},
	}
	for _, x := range refused {
		if _, err := p.do(call{rpc: x.rpc, req: x.req}); err != nil {
			return err
		}
	}
	if p.auth.on {
		for _, name := range []string{"nothing", "both"} {
			who, err := p.user(name)
			if err != nil {
				return err
			}
			for _, x := range refused[:6] {
				if _, err := p.do(call{rpc: x.rpc, req: proto.Clone(x.req), who: who}); err != nil {
					return err
				}
			}
		}
	}
	for range 12 {
		if err := p.plainStep(); err != nil {
			return err
		}
	}
	// Of another kind, of another member, twice; then the one that is there, and once more.
	for _, id := range []uint64{99, member} {
		if err := alarm(pb.AlarmRequest_ACTIVATE, id); err != nil {
			return err
		}
	}
	if _, err := p.do(call{rpc: "Maintenance.Status", req: &pb.StatusRequest{}}); err != nil {
		return err
	}
	other := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: member}
	if _, err := p.do(call{rpc: "Maintenance.Alarm", req: other}); err != nil {
		return err
	}
	for _, id := range []uint64{99, member, member} {
		if err := alarm(pb.AlarmRequest_DEACTIVATE, id); err != nil {
			return err
		}
	}
	p.alarms.raised = false
	_, err := p.do(call{rpc: "KV.Put", req: &pb.PutRequest{Key: k, Value: []byte("after the alarm")}})
	return err
}

// snapshot streams a backup. The files differ, so each server's is checked alone: the sizes left, and the sum at the end.
func (p *pair) snapshot() error {
	c, err := p.generated("Maintenance.Snapshot", &pb.SnapshotRequest{})
	if err != nil {
		return err
	}
	return p.snapshotBy(c)
}

func (p *pair) snapshotBy(c call) error {
	var broken [2]string
	c.inspect = func(side int, _ proto.Message) string { return broken[side] }
	_, err := p.exchange(c, func(ctx context.Context, e end, req proto.Message) (proto.Message, error) {
		stream, err := pb.NewMaintenanceClient(e.conn).Snapshot(ctx, req.(*pb.SnapshotRequest))
		if err != nil {
			return nil, err
		}
		return receiveSnapshot(stream, &broken[e.side])
	})
	return err
}

func receiveSnapshot(stream pb.Maintenance_SnapshotClient, broken *string) (proto.Message, error) {
	all := &pb.SnapshotResponse{}
	sum := sha256.New()
	var last []byte
	total := uint64(0)
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		all.Header, all.Version = part.Header, part.Version
		if last != nil {
			sum.Write(last)
		}
		if last == nil {
			total = part.RemainingBytes + uint64(len(part.Blob))
		}
		last = part.Blob
		switch {
		case part.RemainingBytes == 0 && len(part.Blob) == sha256.Size && total == 0:
		case part.RemainingBytes > total:
			*broken = "remaining bytes grow"
		default:
			if part.RemainingBytes > 0 || total > 0 {
				if want := total - uint64(len(part.Blob)); part.RemainingBytes != want {
					*broken = fmt.Sprintf("%d bytes remain after %d of %d", part.RemainingBytes, len(part.Blob), total)
				}
			}
		}
		total = part.RemainingBytes
	}
	if !bytes.Equal(sum.Sum(nil), last) {
		*broken = "the last message is not the sum of those before"
	}
	all.Blob, all.RemainingBytes = last, 1
	return all, nil
}

// toLeader is the route to the member that leads, on each side.
func (p *pair) toLeader() (func(side int) int, error) {
	var at [2]int
	for i := range p.sides {
		var err error
		if at[i], err = p.leader(i); err != nil {
			return nil, err
		}
	}
	return func(side int) int { return at[side] }, nil
}

// unplace names the member that answered the same on both sides, where those are not of the same number.
func unplace(resp proto.Message, n int) {
	if h, ok := resp.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		if header := h.GetHeader(); header.GetMemberId() == uint64(firstMember+n-1) {
			header.MemberId = firstMember
		}
	}
}

// onLeader sends a call to the member that leads, on each side.
func (p *pair) onLeader(c call) error {
	var err error
	if c.route, err = p.toLeader(); err != nil {
		return err
	}
	_, err = p.do(c)
	return err
}

// offLeader sends a call to a member that does not lead.
func (p *pair) offLeader(c call) error {
	if p.members == 1 {
		return nil
	}
	var at [2]int
	for i := range p.sides {
		n, err := p.leader(i)
		if err != nil {
			return err
		}
		at[i] = n%p.members + 1
	}
	c.route = func(side int) int { return at[side] }
	_, err := p.do(c)
	return err
}

// moveLeader makes some member lead, on both sides.
func (p *pair) moveLeader() error {
	target := firstMember + uint64(p.rng.IntN(p.members))
	if err := p.onLeader(call{rpc: "Maintenance.MoveLeader", req: &pb.MoveLeaderRequest{TargetID: target}}); err != nil {
		return err
	}
	// A member that leads since now gives every lease its whole time.
	return p.renewAll()
}

func (p *pair) downgradeRequest() *pb.DowngradeRequest {
	r := &pb.DowngradeRequest{Version: pick(p, "3.6", "3.6.0", "3.6.5", "3.5", "3.7", "3.7.0", "3.8", "4.0", "2.6", "", "x", "3", "3.6.0.1", "v3.6", "3.6-rc")}
	if p.chance(10) {
		r.Action = pick(p, pb.DowngradeRequest_CANCEL, pb.DowngradeRequest_DowngradeAction(9))
	}
	if p.chance(20) {
		// Only what is refused: see downgradeScenario for the other.
		r.Action, r.Version = pb.DowngradeRequest_ENABLE, pick(p, "3.5", "3.7", "4.0", "", "x")
	}
	return r
}

// downgradeScenario enables a downgrade, looks at it and takes it back. What the members then do by themselves takes each
// side its own time, so the run goes on when both are back. It comes first in a run: etcd reads its log for what the older
// version does not know, and ends at an enum value that nobody knows.
func (p *pair) downgradeScenario() error {
	send := func(action pb.DowngradeRequest_DowngradeAction, version string) error {
		_, err := p.do(call{rpc: "Maintenance.Downgrade", req: &pb.DowngradeRequest{Action: action, Version: version}})
		return err
	}
	steps := []func() error{
		func() error { return send(pb.DowngradeRequest_VALIDATE, "3.6.0") },
		func() error { return send(pb.DowngradeRequest_ENABLE, "3.6.0") },
		func() error { return send(pb.DowngradeRequest_ENABLE, "3.6.0") },
		func() error { return p.statusMidway() },
		func() error { return p.awaitStorage("3.6") },
		func() error { return p.statusMidway() },
		func() error { return send(pb.DowngradeRequest_VALIDATE, "3.6.0") },
		func() error { return send(pb.DowngradeRequest_CANCEL, "") },
		func() error { return p.awaitStorage("3.7") },
		func() error { return send(pb.DowngradeRequest_CANCEL, "3.6") },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// statusMidway compares Status but for the storage version, which each member changes in its own time.
func (p *pair) statusMidway() error {
	inspect := func(_ int, resp proto.Message) string {
		resp.(*pb.StatusResponse).StorageVersion = "open"
		return ""
	}
	_, err := p.do(call{rpc: "Maintenance.Status", req: &pb.StatusRequest{}, inspect: inspect})
	return err
}

// awaitStorage waits until all members have a storage version.
func (p *pair) awaitStorage(version string) error {
	deadline := time.Now().Add(2 * callTimeout)
	for i, s := range p.sides {
		for _, m := range s.members {
			for {
				ctx, cancel, err := p.asRoot(i)
				if err != nil {
					return err
				}
				resp, err := pb.NewMaintenanceClient(m.conn).Status(ctx, &pb.StatusRequest{})
				cancel()
				if err != nil {
					return err
				}
				downgrading := resp.GetDowngradeInfo().GetEnabled()
				if len(resp.StorageVersion) > 3 && resp.StorageVersion[:3] == version && downgrading == (version == "3.6") {
					break
				}
				if time.Now().After(deadline) {
					return p.differ("Maintenance.Downgrade", nil, s.label, "storage version "+version, "storage version "+resp.StorageVersion)
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
	}
	return nil
}

// clusterRequest draws a change of the members that is refused, or changes nothing.
func (p *pair) clusterRequest() (string, proto.Message) {
	id := pick[uint64](p, firstMember, firstMember+uint64(p.members)-1, 5, 0)
	urls := [][]string{nil, {""}, {"http://PEER1"}, {"not a url"}, {"http://127.0.0.1"}, {"http://127.0.0.1:1/path"},
		{"http://127.0.0.1:1", "http://PEER1"}, {"http://127.0.0.1:1", "http://127.0.0.1:1", "x"}, {"http://host with space:1"}}
	switch n := p.rng.IntN(100); {
	case n < 35:
		return "Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: pick(p, urls...), IsLearner: p.chance(50)}
	case n < 50:
		return "Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: pick[uint64](p, 5, 0, 1<<63)}
	case n < 80:
		// A member that is there must stay reachable. What is no URL is not sent: etcd takes it and breaks (README).
		r := &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{fmt.Sprintf("http://PEER%d", id-firstMember+1)}}
		if id < firstMember {
			r.PeerURLs = pick(p, []string{"http://127.0.0.1:1"}, []string{"http://PEER1"}, []string{"http://127.0.0.1:2", "http://127.0.0.1:1"})
		}
		return "Cluster.MemberUpdate", r
	default:
		return "Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: id}
	}
}

// adds is a MemberAdd that succeeds; the new member's id is each side's own.
func (p *pair) adds(url string, learner bool) (uint64, error) {
	p.added++
	name := uint64(200 + p.added)
	adopt := func(side int, resp proto.Message) string {
		p.sides[side].names.bindMember(name, resp.(*pb.MemberAddResponse).Member.GetID())
		return ""
	}
	_, err := p.do(call{rpc: "Cluster.MemberAdd", req: &pb.MemberAddRequest{PeerURLs: []string{url}, IsLearner: learner}, adopt: adopt})
	return name, err
}

// memberScenario adds members that never start, as far as that leaves the cluster a quorum, and removes them.
func (p *pair) memberScenario() error {
	send := func(rpc string, req proto.Message) error {
		_, err := p.do(call{rpc: rpc, req: req})
		return err
	}
	list := func() error {
		for _, linearizable := range []bool{true, false} {
			if err := send("Cluster.MemberList", &pb.MemberListRequest{Linearizable: linearizable}); err != nil {
				return err
			}
		}
		return nil
	}
	const url = "http://127.0.0.1:1"
	id, err := p.adds(url, true)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		list,
		func() error { return send("Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{url}}) },
		func() error {
			return send("Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{url}, IsLearner: true})
		},
		func() error {
			return send("Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2"}, IsLearner: true})
		},
		func() error { return send("Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: id}) },
		func() error {
			return p.onLeader(call{rpc: "Maintenance.MoveLeader", req: &pb.MoveLeaderRequest{TargetID: id}})
		},
		func() error {
			return send("Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{"http://127.0.0.1:3", "http://127.0.0.1:2", "http://localhost:3"}})
		},
		func() error {
			return send("Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{"http://PEER1"}})
		},
		list,
		func() error { return send("Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: id}) },
		func() error { return send("Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: id}) },
		func() error { return send("Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: id}) },
		func() error {
			return send("Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{url}})
		},
		list,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return p.voterScenario(send, list)
}

// voterScenario adds voters to three members until that is refused. A fourth and a fifth leave three of five.
func (p *pair) voterScenario(send func(string, proto.Message) error, list func() error) error {
	if p.members < 3 {
		return nil
	}
	var added []uint64
	for _, url := range []string{"http://127.0.0.1:4", "http://127.0.0.1:5"} {
		id, err := p.adds(url, false)
		if err != nil {
			return err
		}
		added = append(added, id)
	}
	for _, step := range []func() error{
		list,
		func() error {
			return send("Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:6"}})
		},
		func() error { return send("Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: firstMember}) },
		func() error { return send("Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: added[0]}) },
		func() error { return send("KV.Put", &pb.PutRequest{Key: []byte("k/a/0"), Value: []byte("of five")}) },
		func() error { return send("Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: added[1]}) },
		func() error { return send("Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: added[0]}) },
		list,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
