package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

func kv(key string, version int64) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Version: version}
}

func TestOrderAmongEqualSortKeysIsOpen(t *testing.T) {
	byVersion := &pb.RangeRequest{SortTarget: pb.RangeRequest_VERSION}
	byKey := &pb.RangeRequest{SortTarget: pb.RangeRequest_KEY}
	check := func(name string, want bool, req *pb.RangeRequest, more bool, a, b []*mvccpb.KeyValue) {
		t.Helper()
		ra, rb := &pb.RangeResponse{Kvs: a, More: more}, &pb.RangeResponse{Kvs: b, More: more}
		if got := equal(req, answer{resp: ra}, answer{resp: rb}); got != want {
			t.Errorf("%s: equal = %v, want %v", name, got, want)
		}
	}
	list := func(kvs ...*mvccpb.KeyValue) []*mvccpb.KeyValue { return kvs }
	check("swapped inside a group", true, byVersion, false, list(kv("a", 1), kv("b", 1), kv("c", 2)), list(kv("b", 1), kv("a", 1), kv("c", 2)))
	check("swapped across groups", false, byVersion, false, list(kv("a", 1), kv("c", 2)), list(kv("c", 2), kv("a", 1)))
	check("another pair in a whole group", false, byVersion, false, list(kv("a", 1), kv("b", 1)), list(kv("a", 1), kv("x", 1)))
	check("another pair in the cut group", true, byVersion, true, list(kv("a", 1), kv("b", 1)), list(kv("a", 1), kv("x", 1)))
	check("another pair before the cut group", false, byVersion, true, list(kv("a", 1), kv("b", 2)), list(kv("x", 1), kv("b", 2)))
	check("swapped when sorted by key", false, byKey, false, list(kv("a", 1), kv("b", 1)), list(kv("b", 1), kv("a", 1)))
	check("one pair less", false, byVersion, false, list(kv("a", 1), kv("b", 1)), list(kv("a", 1)))
}

func TestSubsetNeedsEachPairOnce(t *testing.T) {
	whole := []*mvccpb.KeyValue{kv("a", 1), kv("b", 1)}
	for _, c := range []struct {
		part []*mvccpb.KeyValue
		want bool
	}{
		{[]*mvccpb.KeyValue{kv("b", 1)}, true},
		{[]*mvccpb.KeyValue{kv("b", 1), kv("b", 1)}, false},
		{[]*mvccpb.KeyValue{kv("b", 2)}, false},
		{[]*mvccpb.KeyValue{kv("x", 1)}, false},
	} {
		if got := subset(c.part, whole); got != c.want {
			t.Errorf("subset(%v) = %v, want %v", c.part, got, c.want)
		}
	}
}

func TestErrorsMustMatchInCodeAndText(t *testing.T) {
	a := answer{code: codes.OutOfRange, text: "x"}
	for _, b := range []answer{{code: codes.NotFound, text: "x"}, {code: codes.OutOfRange, text: "y"}, {resp: &pb.PutResponse{}}} {
		if equal(&pb.PutRequest{}, a, b) {
			t.Errorf("%v was taken for %v", b, a)
		}
	}
}

func TestMergeChunkFindsBrokenStreams(t *testing.T) {
	chunk := func(last bool, keys ...string) *pb.RangeResponse {
		r := &pb.RangeResponse{}
		for _, k := range keys {
			r.Kvs = append(r.Kvs, kv(k, 1))
		}
		if last {
			r.Header = &pb.ResponseHeader{Revision: 5}
			r.Count = 9
		}
		return r
	}
	for name, c := range map[string]struct {
		chunks []*pb.RangeResponse
		broken bool
	}{
		"good":              {[]*pb.RangeResponse{chunk(false, "a", "b"), chunk(true, "c")}, false},
		"key twice":         {[]*pb.RangeResponse{chunk(false, "a", "b"), chunk(true, "b")}, true},
		"chunk after last":  {[]*pb.RangeResponse{chunk(true, "a"), chunk(true, "b")}, true},
		"count in a middle": {[]*pb.RangeResponse{{Count: 3}, chunk(true, "b")}, true},
	} {
		merged, complaint := &pb.RangeResponse{}, ""
		for _, chunk := range c.chunks {
			complaint += mergeChunk(merged, chunk, true)
		}
		if (complaint != "") != c.broken {
			t.Errorf("%s: complaint %q", name, complaint)
		}
	}
}

func TestLeaseNamesGoBothWays(t *testing.T) {
	l := newNames()
	l.bindLease(7, 12345)
	sent := l.toServer(&pb.TxnRequest{Compare: []*pb.Compare{{TargetUnion: &pb.Compare_Lease{Lease: 7}}}}).(*pb.TxnRequest)
	if got := sent.Compare[0].GetLease(); got != 12345 {
		t.Errorf("sent lease %d", got)
	}
	resp := &pb.PutResponse{PrevKv: &mvccpb.KeyValue{Lease: 12345}}
	normalise(resp, l)
	if resp.PrevKv.Lease != 7 {
		t.Errorf("normalised to %d", resp.PrevKv.Lease)
	}
}

// filled returns a message of the same type with every scalar set, one element per list, recursing depth levels.
func filled(msg proto.Message) proto.Message {
	switch msg.(type) {
	case *pb.RangeStreamResponse:
		return &pb.RangeStreamResponse{RangeResponse: filled(&pb.RangeResponse{}).(*pb.RangeResponse)}
	case *pb.TxnResponse:
		return &pb.TxnResponse{Header: header(), Succeeded: true, Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponseRange{ResponseRange: filled(&pb.RangeResponse{}).(*pb.RangeResponse)}},
			{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: header(), PrevKv: kv("k", 2)}}},
			{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Header: header(), Deleted: 1, PrevKvs: []*mvccpb.KeyValue{kv("k", 2)}}}},
			{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{Succeeded: true}}},
		}}
	case *pb.RangeResponse:
		return &pb.RangeResponse{Header: header(), More: true, Count: 4, Kvs: []*mvccpb.KeyValue{
			{Key: []byte("k"), Value: []byte("v"), CreateRevision: 1, ModRevision: 2, Version: 2, Lease: 3}}}
	}
	return nil
}

func header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 1, MemberId: 2, Revision: 3, RaftTerm: 4}
}

// Every single falsified field must be found, except those that normalise masks.
func TestEveryFalsifiedFieldIsFound(t *testing.T) {
	rangeOf := &pb.RangeRequest{Key: []byte("k")}
	cases := []struct{ req, resp proto.Message }{
		{rangeOf, filled(&pb.RangeResponse{})},
		{rangeOf, filled(&pb.RangeStreamResponse{})},
		{&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(rangeOf), putOp(&pb.PutRequest{}), {}, {}}}, filled(&pb.TxnResponse{})},
		{&pb.PutRequest{}, &pb.PutResponse{Header: header(), PrevKv: kv("k", 1)}},
		{&pb.LeaseTimeToLiveRequest{}, &pb.LeaseTimeToLiveResponse{Header: header(), ID: 5, TTL: 100, GrantedTTL: 200}},
		{&pb.StatusRequest{}, &pb.StatusResponse{Header: header(), Version: "3.7.1", StorageVersion: "3.7.0", DbSizeQuota: 9,
			DowngradeInfo: &pb.DowngradeInfo{Enabled: true, TargetVersion: "3.6.0"}}},
		{&pb.HashKVRequest{}, &pb.HashKVResponse{Header: header(), Hash: 1, CompactRevision: 2, HashRevision: 3}},
	}
	for _, c := range cases {
		normalise(c.resp, newNames())
		n := len(compared(c.resp))
		if n == 0 {
			t.Errorf("%T: nothing is compared", c.resp)
		}
		for i := range n {
			a, b := proto.Clone(c.resp), proto.Clone(c.resp)
			field := compared(b)
			field[i].flip()
			if equal(c.req, answer{resp: a}, answer{resp: b}) {
				t.Errorf("%T: falsified %s was not found", c.resp, field[i].fd.FullName())
			}
		}
	}
}

func TestUnsetAndMaskedDiffer(t *testing.T) {
	a, b := &pb.PutResponse{Header: header()}, &pb.PutResponse{Header: header()}
	b.Header.ClusterId = 0
	normalise(a, newNames())
	normalise(b, newNames())
	if equal(&pb.PutRequest{}, answer{resp: a}, answer{resp: b}) {
		t.Error("a missing cluster id was not found")
	}
}

func TestScopeTablesNameWhatExists(t *testing.T) {
	known := map[string]bool{}
	for _, s := range inScope {
		for _, item := range wanted(s) {
			known[s.name+" "+item] = true
		}
	}
	for item := range notInScope {
		if !known[item] {
			t.Errorf("notInScope names %q, which no RPC in scope has", item)
		}
	}
	for item := range itemNeeds {
		if !known[item] {
			t.Errorf("itemNeeds names %q, which no RPC in scope has", item)
		}
	}
	named := map[string]bool{}
	for _, e := range scopedErrors {
		named[e.name] = true
		if outOfScopeErrors[e.name] != "" {
			t.Errorf("%s is in scope and out of it", e.name)
		}
	}
	for _, s := range inScope {
		for _, item := range s.errors {
			if _, name := needs(item); !named[name] {
				t.Errorf("%s must answer %q, which is in no table", s.name, name)
			}
		}
	}
}

// etcdBin is the real server that build.sh makes.
func etcdBin(t *testing.T) string {
	bin, err := filepath.Abs("../bin/etcd")
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		fmt.Println("SKIPPED differ: bin/etcd is missing, run build.sh")
		t.Skip("bin/etcd is missing")
	}
	return bin
}

func TestEtcdDoesNotDifferFromItself(t *testing.T) {
	bin := etcdBin(t)
	for _, c := range []config{
		{members: 1, auth: authOff, requests: 2000, seed: 11},
		{members: 1, auth: authJWT, tls: true, requests: 600, seed: 12, partial: true},
		{members: 3, auth: authSimple, requests: 400, seed: 13, partial: true},
	} {
		c.etcdBin, c.kvdBin, c.etcdArgs, c.kvdArgs, c.diffsMax = bin, bin, "--unsafe-no-fsync", "--unsafe-no-fsync", 3
		var out bytes.Buffer
		res, err := run(c, &out)
		if err != nil || res.diffs > 0 || len(res.missing) > 0 {
			t.Fatalf("%v, %v\n%s", err, res.missing, tail(out.String()))
		}
	}
}

func TestSabotageIsFound(t *testing.T) {
	bin := etcdBin(t)
	for i, at := range []int{20, 70, 150, 230, 310, 390} {
		var out bytes.Buffer
		c := config{etcdBin: bin, kvdBin: bin, etcdArgs: "--unsafe-no-fsync", kvdArgs: "--unsafe-no-fsync",
			requests: 600, seed: uint64(100 + i), diffsMax: 1, sabotageAt: at, partial: true}
		if i%2 == 1 {
			c.auth = authSimple
		}
		res, err := run(c, &out)
		if err != nil {
			t.Fatal(err)
		}
		if res.sabotaged == "" || res.ok() || !strings.Contains(out.String(), "DIFFERENCE 1") {
			t.Errorf("sabotage at request %d (%s) was not found", at, res.sabotaged)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-6000):] }
