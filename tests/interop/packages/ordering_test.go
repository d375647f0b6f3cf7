package packages

import (
	"context"
	"errors"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/ordering"

	"kvd.dev/interop/proc"
)

var errOrderViolation = errors.New("an older revision")

// eachCluster runs the test on three members of each server.
func eachCluster(t *testing.T, test func(e *env, members []*proc.Server)) {
	for _, label := range []string{"etcd", "kvd"} {
		t.Run(label, func(t *testing.T) {
			members := proc.StartCluster(t, label, 3)
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			t.Cleanup(cancel)
			e := &env{T: t, ctx: ctx}
			for _, member := range members {
				e.urls = append(e.urls, member.URL())
			}
			e.cli, e.calls = e.client(e.urls...)
			test(e, members)
		})
	}
}

// older starts two servers, of which the second has seen fewer writes, and a client that has read from the first.
func (e *env) older(label string) (cli *clientv3.Client, secondURL string, revision int64) {
	e.Helper()
	first, second := proc.StartOne(e.T, label), proc.StartOne(e.T, label)
	e.cli, e.calls = e.client(first.URL())
	e.put("k", "old")
	revision = e.put("k", "new").Header.Revision
	behind, _ := e.client(second.URL())
	_, err := behind.Put(e.ctx, "k", "old")
	e.must(err)
	cli, _ = e.client(first.URL())
	return cli, second.URL(), revision
}

func each(t *testing.T, test func(e *env, label string)) {
	for _, label := range []string{"etcd", "kvd"} {
		t.Run(label, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			t.Cleanup(cancel)
			test(&env{T: t, ctx: ctx}, label)
		})
	}
}

// A server that is behind what the client saw is noticed.
func TestAnOlderAnswerIsNoticed(t *testing.T) {
	each(t, func(e *env, label string) {
		cli, older, revision := e.older(label)
		violations := 0
		kv := ordering.NewKV(cli.KV, func(_ clientv3.Op, _ clientv3.OpResponse, previous int64) error {
			violations++
			want(e, "the revision seen before", previous, revision)
			return errOrderViolation
		})
		resp, err := kv.Get(e.ctx, "k")
		e.must(err)
		want(e, "value", string(resp.Kvs[0].Value), "new")
		cli.SetEndpoints(older)
		e.await("the client has moved", func() bool {
			resp, err := cli.Get(e.ctx, "k")
			return err == nil && resp.Header.Revision < revision
		})
		_, err = kv.Get(e.ctx, "k", clientv3.WithSerializable())
		want(e, "an older answer", err, errOrderViolation)
		_, err = kv.Txn(e.ctx).Then(clientv3.OpGet("k", clientv3.WithSerializable())).Commit()
		want(e, "an older transaction", err, errOrderViolation)
		want(e, "violations", violations, 2)
	})
}

func TestNobodyHasANewerAnswer(t *testing.T) {
	each(t, func(e *env, label string) {
		cli, older, revision := e.older(label)
		kv := ordering.NewKV(cli.KV, ordering.NewOrderViolationSwitchEndpointClosure(cli))
		_, err := kv.Get(e.ctx, "k")
		e.must(err)
		cli.SetEndpoints(older)
		e.await("the client has moved", func() bool {
			resp, err := cli.Get(e.ctx, "k")
			return err == nil && resp.Header.Revision < revision
		})
		_, err = kv.Get(e.ctx, "k", clientv3.WithSerializable())
		want(e, "error", err, ordering.ErrNoGreaterRev)
	})
}

// Over members in step no read goes back, whichever answers.
func TestReadsOverAllMembersNeverGoBack(t *testing.T) {
	eachCluster(t, func(e *env, members []*proc.Server) {
		kv := ordering.NewKV(e.cli.KV, ordering.NewOrderViolationSwitchEndpointClosure(e.cli))
		answered := map[uint64]bool{}
		var newest int64
		for n := range 60 {
			if n%10 == 0 {
				e.put("k", "x")
			}
			resp, err := kv.Get(e.ctx, "k")
			e.must(err)
			answered[resp.Header.MemberId] = true
			if resp.Header.Revision < newest {
				e.Errorf("revision %d after %d", resp.Header.Revision, newest)
			}
			newest = resp.Header.Revision
		}
		want(e, "members that answered", len(answered), 3)
	})
}
