package services

import (
	"context"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
)

func concurrencyLease(id int64) clientv3.LeaseID { return clientv3.LeaseID(id) }

type campaigned struct {
	leader *epb.LeaderKey
	shown  string
}

func (s *side) campaign(ctx context.Context, name, value string, lease int64) campaigned {
	resp, err := s.election.Campaign(ctx, &epb.CampaignRequest{Name: []byte(name), Lease: lease, Value: []byte(value)})
	if err != nil {
		return campaigned{shown: failure(err)}
	}
	l := resp.Leader
	return campaigned{l, fmt.Sprintf("%s %s rev %d lease %x %s", l.Name, l.Key, l.Rev, l.Lease, header(resp.Header))}
}

func (s *side) proclaim(leader *epb.LeaderKey, value string) string {
	resp, err := s.election.Proclaim(s.ctx, &epb.ProclaimRequest{Leader: leader, Value: []byte(value)})
	if err != nil {
		return failure(err)
	}
	return header(resp.Header)
}

func (s *side) resign(leader *epb.LeaderKey) string {
	resp, err := s.election.Resign(s.ctx, &epb.ResignRequest{Leader: leader})
	if err != nil {
		return failure(err)
	}
	return header(resp.Header)
}

func shown(resp *epb.LeaderResponse, err error) string {
	if err != nil {
		return failure(err)
	}
	return fmt.Sprintf("%s=%q create %d mod %d %s", resp.Kv.Key, resp.Kv.Value, resp.Kv.CreateRevision, resp.Kv.ModRevision, header(resp.Header))
}

func (s *side) leader(name string) string {
	return shown(s.election.Leader(s.ctx, &epb.LeaderRequest{Name: []byte(name)}))
}

// candidate begins a campaign that has to wait, and returns when its key stands in the queue.
func (s *side) candidate(ctx context.Context, name, value string, lease int64, key string) <-chan campaigned {
	s.Helper()
	answer := make(chan campaigned, 1)
	go func() { answer <- s.campaign(ctx, name, value, lease) }()
	s.appears(key)
	return answer
}

func TestElection(t *testing.T) {
	compare(t, func(s *side) {
		s.lease(1)
		s.lease(2)
		s.see("nobody: %s", s.leader("e"))
		first := s.campaign(s.ctx, "e", "one", 1)
		s.see("first %s", first.shown)
		s.see("leader %s", s.leader("e"))
		s.see("proclaim %s", s.proclaim(first.leader, "uno"))
		s.see("leader %s", s.leader("e"))
		s.see("again %s", s.campaign(s.ctx, "e", "uno", 1).shown)
		s.see("another value %s", s.campaign(s.ctx, "e", "eins", 1).shown)
		s.see("leader %s", s.leader("e"))
		two := s.candidate(s.ctx, "e", "two", 2, "e/2")
		s.keys("e/")
		s.see("resign %s", s.resign(first.leader))
		second := <-two
		s.see("second %s", second.shown)
		s.see("leader %s", s.leader("e"))
		s.see("proclaim after resigning: %s", s.proclaim(first.leader, "late"))
		s.see("resign again %s", s.resign(first.leader))
		s.see("resign %s", s.resign(second.leader))
		s.see("nobody: %s", s.leader("e"))
	})
}

func TestElectionRefusals(t *testing.T) {
	compare(t, func(s *side) {
		s.see("unknown lease: %s", s.campaign(s.ctx, "r", "x", 0x99).shown)
		s.see("proclaim nothing: %s", s.proclaim(nil, "x"))
		s.see("resign nothing: %s", s.resign(nil))
		s.see("proclaim a key that is not there: %s", s.proclaim(&epb.LeaderKey{Name: []byte("r"), Key: []byte("r/1"), Rev: 7, Lease: s.lease(1)}, "x"))
		s.see("proclaim without a key: %s", s.proclaim(&epb.LeaderKey{Lease: 1}, "x"))
		s.see("no candidates: %s", s.leader(""))
		s.see("candidate without a name: %s", s.campaign(s.ctx, "", "x", 1).shown)
	})
}

// A candidate that goes away leaves the queue.
func TestACandidateLeaves(t *testing.T) {
	compare(t, func(s *side) {
		for _, id := range []int64{1, 2, 3} {
			s.lease(id)
		}
		first := s.campaign(s.ctx, "l", "one", 1)
		s.see("first %s", first.shown)
		ctx, cancel := context.WithCancel(s.ctx)
		two := s.candidate(ctx, "l", "two", 2, "l/2")
		three := s.candidate(s.ctx, "l", "three", 3, "l/3")
		cancel()
		s.see("second %s", (<-two).shown)
		s.goes("l/2")
		s.see("resign %s", s.resign(first.leader))
		s.see("third %s", (<-three).shown)
	})
}

func TestObserve(t *testing.T) {
	compare(t, func(s *side) {
		s.lease(1)
		s.lease(2)
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		stream, err := s.election.Observe(ctx, &epb.LeaderRequest{Name: []byte("o")})
		s.must(err)
		next := func(what string) { s.see("%s: %s", what, shown(stream.Recv())) }
		first := s.campaign(s.ctx, "o", "one", 1)
		next("first")
		for _, value := range []string{"uno", "", "eins"} {
			s.proclaim(first.leader, value)
			next("proclaimed")
		}
		two := s.candidate(s.ctx, "o", "two", 2, "o/2")
		s.resign(first.leader)
		second := <-two
		next("second")
		// Between leaders nobody is observed.
		s.resign(second.leader)
		third := s.campaign(s.ctx, "o", "three", 1)
		next("third")
		late, err := s.election.Observe(ctx, &epb.LeaderRequest{Name: []byte("o")})
		s.must(err)
		s.see("late: %s", shown(late.Recv()))
		s.resign(third.leader)
	})
}

// Candidates of the service and of the client's election stand in one queue.
func TestElectionAndTheClients(t *testing.T) {
	compare(t, func(s *side) {
		session, err := concurrency.NewSession(s.cli, concurrency.WithLease(concurrencyLease(s.lease(1))))
		s.must(err)
		election := concurrency.NewElection(session, "c")
		s.must(election.Campaign(s.ctx, "client"))
		s.see("leader %s", s.leader("c"))
		two := s.candidate(s.ctx, "c", "service", s.lease(2), "c/2")
		s.must(election.Resign(s.ctx))
		second := <-two
		s.see("service %s", second.shown)
		resp, err := election.Leader(s.ctx)
		s.must(err)
		s.see("the client sees %s=%q", resp.Kvs[0].Key, resp.Kvs[0].Value)
		s.see("resign %s", s.resign(second.leader))
		_, err = election.Leader(s.ctx)
		s.see("then %v", err)
	})
}
