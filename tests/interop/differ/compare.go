package main

import (
	"bytes"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// answer is what one server said to one request.
type answer struct {
	resp proto.Message // nil when the call failed
	code codes.Code
	text string
}

func answerOf(resp proto.Message, err error) answer {
	if err != nil {
		s := status.Convert(err)
		return answer{code: s.Code(), text: s.Message()}
	}
	return answer{resp: resp}
}

// equal compares two normalised answers to req. It may copy unspecified orders from a to b first.
func equal(req proto.Message, a, b answer) bool {
	if a.resp == nil || b.resp == nil {
		return a.resp == nil && b.resp == nil && a.code == b.code && a.text == b.text
	}
	switch ra := a.resp.(type) {
	case *pb.RangeResponse:
		reconcileRange(req.(*pb.RangeRequest), ra, b.resp.(*pb.RangeResponse))
	case *pb.RangeStreamResponse:
		reconcileRange(req.(*pb.RangeRequest), ra.RangeResponse, b.resp.(*pb.RangeStreamResponse).RangeResponse)
	case *pb.TxnResponse:
		reconcileTxn(req.(*pb.TxnRequest), ra, b.resp.(*pb.TxnResponse))
	case *pb.LeaseTimeToLiveResponse:
		rb := b.resp.(*pb.LeaseTimeToLiveResponse)
		// The remaining time runs on while the two are asked; -1 says the lease is gone and is exact.
		if d := ra.TTL - rb.TTL; ra.TTL > 0 && rb.TTL > 0 && -1 <= d && d <= 1 {
			rb.TTL = ra.TTL
		}
	}
	return proto.Equal(a.resp, b.resp)
}

func reconcileTxn(req *pb.TxnRequest, a, b *pb.TxnResponse) {
	ops := req.Failure
	if a.Succeeded {
		ops = req.Success
	}
	if len(ops) != len(a.Responses) || len(ops) != len(b.Responses) {
		return
	}
	for i, op := range ops {
		if r := op.GetRequestRange(); r != nil {
			ra, rb := a.Responses[i].GetResponseRange(), b.Responses[i].GetResponseRange()
			if ra != nil && rb != nil {
				reconcileRange(r, ra, rb)
			}
		}
		if t := op.GetRequestTxn(); t != nil {
			ra, rb := a.Responses[i].GetResponseTxn(), b.Responses[i].GetResponseTxn()
			if ra != nil && rb != nil {
				reconcileTxn(t, ra, rb)
			}
		}
	}
}

// reconcileRange accepts another order among pairs whose sort keys are equal: etcd's sort is not stable. Sort keys must
// be equal position by position; a group of equal keys must hold the same pairs, except the last one of an answer cut
// by the limit, where any member may have been cut.
func reconcileRange(req *pb.RangeRequest, a, b *pb.RangeResponse) {
	if req.SortTarget == pb.RangeRequest_KEY || len(a.Kvs) != len(b.Kvs) {
		return // keys are unique, so their order is fully specified
	}
	// The sort key of VALUE is not in a keys_only answer: everything is then one group.
	hidden := req.SortTarget == pb.RangeRequest_VALUE && req.KeysOnly
	same := func(x, y *mvccpb.KeyValue) bool { return hidden || compareBy(req.SortTarget, x, y) == 0 }
	for i := range a.Kvs {
		if !same(a.Kvs[i], b.Kvs[i]) {
			return
		}
	}
	for start := 0; start < len(a.Kvs); {
		end := start + 1
		for end < len(a.Kvs) && same(a.Kvs[start], a.Kvs[end]) {
			end++
		}
		cut := end == len(a.Kvs) && a.More
		if cut || sameMultiset(a.Kvs[start:end], b.Kvs[start:end]) {
			copy(b.Kvs[start:end], a.Kvs[start:end])
		}
		start = end
	}
}

func compareBy(target pb.RangeRequest_SortTarget, x, y *mvccpb.KeyValue) int {
	switch target {
	case pb.RangeRequest_VERSION:
		return compareInt(x.Version, y.Version)
	case pb.RangeRequest_CREATE:
		return compareInt(x.CreateRevision, y.CreateRevision)
	case pb.RangeRequest_MOD:
		return compareInt(x.ModRevision, y.ModRevision)
	case pb.RangeRequest_VALUE:
		return bytes.Compare(x.Value, y.Value)
	default:
		return bytes.Compare(x.Key, y.Key)
	}
}

func compareInt(x, y int64) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func sameMultiset(a, b []*mvccpb.KeyValue) bool {
	byKey := func(kvs []*mvccpb.KeyValue) []*mvccpb.KeyValue {
		out := append([]*mvccpb.KeyValue(nil), kvs...)
		sort.SliceStable(out, func(i, j int) bool { return bytes.Compare(out[i].Key, out[j].Key) < 0 })
		return out
	}
	sa, sb := byKey(a), byKey(b)
	for i := range sa {
		if !proto.Equal(sa[i], sb[i]) {
			return false
		}
	}
	return true
}

// subset reports whether every pair of part is in whole, each at most once.
func subset(part, whole []*mvccpb.KeyValue) bool {
	byKey := map[string]*mvccpb.KeyValue{}
	for _, kv := range whole {
		byKey[string(kv.Key)] = kv
	}
	for _, kv := range part {
		if !proto.Equal(kv, byKey[string(kv.Key)]) {
			return false
		}
		delete(byKey, string(kv.Key))
	}
	return true
}

func sortBytes(list [][]byte) {
	sort.Slice(list, func(i, j int) bool { return bytes.Compare(list[i], list[j]) < 0 })
}
