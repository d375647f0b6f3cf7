// Package services calls the Lock and Election services of a real etcd and of the server in KVD_BIN with etcd's own stubs
// and compares what they answer, line by line.
package services

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.uber.org/zap"
	"google.golang.org/grpc/status"

	"kvd.dev/interop/proc"
)

// testTimeout bounds each test on each server.
const testTimeout = 60 * time.Second

func TestMain(m *testing.M) { proc.MainOfPair(m) }

// side is one of the two servers, with what was seen of it.
type side struct {
	*testing.T
	ctx      context.Context
	cli      *clientv3.Client
	lock     lpb.LockClient
	election epb.ElectionClient
	seen     []string
}

// compare runs the same story on both servers and compares what each saw.
func compare(t *testing.T, story func(s *side)) {
	var seen [][]string
	for _, server := range proc.StartPair(t) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{server.URL()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer cli.Close()
		conn, err := server.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := &side{T: t, ctx: ctx, cli: cli, lock: lpb.NewLockClient(conn), election: epb.NewElectionClient(conn)}
		story(s)
		if len(s.seen) == 0 {
			t.Fatalf("%s: the story saw nothing", server.Label)
		}
		seen = append(seen, s.seen)
	}
	for n := range max(len(seen[0]), len(seen[1])) {
		if got, want := line(seen[1], n), line(seen[0], n); got != want {
			t.Errorf("line %d\n etcd: %s\n kvd:  %s", n, want, got)
		}
	}
}

func line(lines []string, n int) string {
	if n < len(lines) {
		return lines[n]
	}
	return "(nothing)"
}

// see notes something that both servers must show alike.
func (s *side) see(format string, args ...any) {
	s.seen = append(s.seen, fmt.Sprintf(format, args...))
}

func (s *side) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// lease grants one with a chosen id that lasts for the test.
func (s *side) lease(id int64) int64 {
	s.Helper()
	_, err := pb.NewLeaseClient(s.cli.ActiveConnection()).LeaseGrant(s.ctx, &pb.LeaseGrantRequest{ID: id, TTL: 600})
	s.must(err)
	return id
}

// keys notes all keys below a prefix, oldest first.
func (s *side) keys(prefix string) {
	s.Helper()
	resp, err := s.cli.Get(s.ctx, prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	s.must(err)
	var keys []string
	for _, kv := range resp.Kvs {
		keys = append(keys, fmt.Sprintf("%s=%q lease %x create %d mod %d", kv.Key, kv.Value, kv.Lease, kv.CreateRevision, kv.ModRevision))
	}
	s.see("keys of %s at %d: %s", prefix, resp.Header.Revision, strings.Join(keys, ", "))
}

// until waits for a change below prefix that fulfils a condition, counting from the first revision.
func (s *side) until(prefix string, what string, is func(*clientv3.Event) bool) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	for resp := range s.cli.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		s.must(resp.Err())
		for _, event := range resp.Events {
			if is(event) {
				return
			}
		}
	}
	s.Fatalf("%s was not seen", what)
}

// appears waits until key exists.
func (s *side) appears(key string) {
	s.Helper()
	s.until(key, key+" put", func(e *clientv3.Event) bool { return e.IsCreate() && string(e.Kv.Key) == key })
}

// goes waits until key is deleted.
func (s *side) goes(key string) {
	s.Helper()
	s.until(key, key+" deleted", func(e *clientv3.Event) bool { return e.Type == clientv3.EventTypeDelete && string(e.Kv.Key) == key })
}

// header shows what of a header both servers agree on.
func header(h *pb.ResponseHeader) string {
	if h == nil {
		return "no header"
	}
	return fmt.Sprintf("header at %d, ids %t", h.Revision, h.ClusterId != 0 && h.MemberId != 0 && h.RaftTerm != 0)
}

func failure(err error) string {
	st, _ := status.FromError(err)
	return fmt.Sprintf("%s: %s", st.Code(), st.Message())
}
