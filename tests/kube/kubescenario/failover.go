package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const sameStep = "the members hold the same"

// failoverErrors are the kinds of lines with which a kube-apiserver comments on the loss of a member and of the
// leader. Each was seen with three members of etcd 3.7.3 in this scenario; others are the store's fault.
var failoverErrors = []*regexp.Regexp{
	regexp.MustCompile(`addrConn\.createTransport failed to connect .*(connection refused|connection reset by peer|EOF)`),
	// A request that was under way to the dead member.
	regexp.MustCompile(`code = Unavailable desc = error reading from server: (EOF|.*connection reset by peer)`),
	// A request that nobody could commit, in three words.
	regexp.MustCompile(`etcdserver: (leader changed|request timed out(, possibly due to previous leader failure)?)(["}\\]|$| \d+ms)`),
}

func isFailoverError(line string) bool {
	return slices.ContainsFunc(failoverErrors, func(r *regexp.Regexp) bool { return r.MatchString(line) })
}

// killLeader kills the leader under load and sees the load go on without it. In the middle of the run the dead
// member is replaced by one with an empty folder, otherwise it comes back. It returns how long the load stood still.
func (s *scenario) killLeader(ctx context.Context, progress func(writes int) error, round int, servers []*apiserver) (still time.Duration, err error) {
	leader, err := s.leader(ctx)
	if err != nil {
		return 0, err
	}
	killed := time.Now()
	defer s.store.excuseKinds("", isFailoverError)()
	leader.process.kill()
	if err := progress(1); err != nil {
		return 0, fmt.Errorf("without %s, which led: %w", leader.name, err)
	}
	still = time.Since(killed)
	if err := progress(100); err != nil {
		return still, fmt.Errorf("without %s, which led: %w", leader.name, err)
	}
	if round == s.kills/2 {
		if leader, err = s.replace(ctx, leader); err != nil {
			return still, err
		}
	}
	if err := leader.launch(); err != nil {
		return still, err
	}
	if err := leader.waitReady(ctx); err != nil {
		return still, err
	}
	return still, s.recovered(killed, servers...)
}

// leader is the member that leads, as it says itself.
func (s *scenario) leader(ctx context.Context) (leader *member, err error) {
	err = waitFor(ctx, 20*time.Second, 50*time.Millisecond, func() error {
		for _, m := range s.store.members {
			status, err := s.status(ctx, m)
			if err == nil && status.Leader == status.Header.MemberId {
				leader = m
				return nil
			}
		}
		return errors.New("no member says that it leads")
	})
	return leader, err
}

func (s *scenario) status(ctx context.Context, m *member) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.etcd.Status(ctx, m.clientURL)
}

// replace removes a dead member and adds one with an empty folder, which serves clients at the same address.
func (s *scenario) replace(ctx context.Context, dead *member) (*member, error) {
	list, err := s.etcd.MemberList(ctx)
	if err != nil {
		return nil, err
	}
	index := slices.IndexFunc(list.Members, func(m *etcdserverpb.Member) bool { return m.Name == dead.name })
	if index < 0 {
		return nil, fmt.Errorf("the member list lacks %s", dead.name)
	}
	if err := s.change(ctx, func() error {
		_, err := s.etcd.MemberRemove(ctx, list.Members[index].ID)
		return err
	}); err != nil {
		return nil, fmt.Errorf("remove %s: %w", dead.name, err)
	}
	fresh, err := s.store.newMember(dead.clientURL)
	if err != nil {
		return nil, err
	}
	if err := s.change(ctx, func() error {
		_, err := s.etcd.MemberAdd(ctx, []string{fresh.peerURL})
		return err
	}); err != nil {
		return nil, fmt.Errorf("add %s: %w", fresh.name, err)
	}
	s.store.members[slices.Index(s.store.members, dead)] = fresh
	fresh.configure("existing")
	return fresh, nil
}

// change repeats a change of the members while the store says that it is not sure enough of the others yet.
func (s *scenario) change(ctx context.Context, ask func() error) error {
	return waitFor(ctx, 20*time.Second, 200*time.Millisecond, func() error {
		err := ask()
		if err != nil && !errors.Is(err, rpctypes.ErrUnhealthy) {
			return fatalError{err}
		}
		return err
	})
}

// membersHoldTheSame compares the history of all keys over the members.
func (s *scenario) membersHoldTheSame() (detail string, err error) {
	err = waitFor(s.ctx, 30*time.Second, 100*time.Millisecond, func() error {
		now, err := s.etcd.Get(s.ctx, "-", clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		var first *clientv3.HashKVResponse
		for _, m := range s.store.members {
			hash, err := s.etcd.HashKV(s.ctx, m.clientURL, now.Header.Revision)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", m.name, err)
			case first == nil:
				first = hash
			case hash.CompactRevision != first.CompactRevision:
				return fmt.Errorf("%s is compacted at %d, not %d", m.name, hash.CompactRevision, first.CompactRevision)
			case hash.Hash != first.Hash:
				return fatalError{fmt.Errorf("at revision %d %s has the hash %x, %s has %x", now.Header.Revision, m.name, hash.Hash, s.store.members[0].name, first.Hash)}
			}
		}
		detail = fmt.Sprintf("hash %x at revision %d on %d members", first.Hash, now.Header.Revision, len(s.store.members))
		return nil
	})
	return detail, err
}
