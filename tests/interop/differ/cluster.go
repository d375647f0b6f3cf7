package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvd.dev/interop/proc"
)

// readOnly RPCs change nothing that another request could see.
var readOnly = map[string]bool{
	"KV.Range": true, "KV.RangeStream": true, "Lease.LeaseTimeToLive": true, "Lease.LeaseLeases": true,
	"Cluster.MemberList": true, "Maintenance.Status": true, "Maintenance.Hash": true, "Maintenance.HashKV": true,
	"Maintenance.Snapshot": true, "Health.Check": true,
}

// answersInOrder tells whether any member's answer to a request follows from all requests before it. Other answers tell
// what the asked member has applied so far.
func answersInOrder(c call) bool {
	switch r := c.req.(type) {
	case *pb.RangeRequest:
		return !r.Serializable
	case *pb.TxnRequest:
		return isWrite(r)
	case *pb.PutRequest, *pb.DeleteRangeRequest, *pb.CompactionRequest, *pb.LeaseGrantRequest, *pb.LeaseRevokeRequest:
		return true
	}
	return false
}

// catchUp lets the member that is asked, on both sides, apply all that was acknowledged, if its answer depends on that:
// with auth every answer does, since tokens and users are looked up where a call comes in.
func (p *pair) catchUp(c call) error {
	if p.members == 1 || p.alone || p.config.auth == authOff && answersInOrder(c) {
		return nil
	}
	switch c.req.(type) {
	case *pb.LeaseTimeToLiveRequest, *pb.LeaseKeepAliveRequest:
		return p.catchUpAll() // the leader answers
	case *pb.MemberAddRequest, *pb.MemberRemoveRequest, *pb.MemberUpdateRequest, *pb.MemberPromoteRequest:
		return p.catchUpAll() // raft drops a change while its leader has one to apply
	}
	if c.route != nil {
		return p.catchUpAll()
	}
	return p.catchUpAt(c.member)
}

func (p *pair) catchUpAll() error {
	for n := range p.members {
		if err := p.catchUpAt(n + 1); err != nil {
			return err
		}
	}
	return nil
}

// catchUpAt is a linearizable read of one member on each side, which waits until it has applied everything.
func (p *pair) catchUpAt(n int) error {
	if p.members == 1 || n > p.members || p.seen[n-1] == p.changes {
		return nil // one beyond the members is a learner, which has no linearizable reads
	}
	failed := make(chan error, len(p.sides))
	for i, s := range p.sides {
		ctx, cancel, err := p.asRoot(i)
		if err != nil {
			return err
		}
		go func() {
			defer cancel()
			_, err := pb.NewKVClient(s.members[n-1].conn).Range(ctx, &pb.RangeRequest{Key: []byte("no such key")})
			if err != nil {
				err = fmt.Errorf("%s: member %d does not catch up: %w", s.label, n, err)
			}
			failed <- err
		}()
	}
	var first error
	for range p.sides {
		if err := <-failed; err != nil {
			first = err
		}
	}
	p.seen[n-1] = p.changes
	return first
}

// leader is the number of the member that leads a side.
func (p *pair) leader(side int) (int, error) {
	ctx, cancel, err := p.asRoot(side)
	if err != nil {
		return 0, err
	}
	defer cancel()
	s := p.sides[side]
	resp, err := pb.NewMaintenanceClient(s.members[0].conn).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return 0, err
	}
	n := int(s.names.member[resp.Leader]) - firstMember + 1
	if n < 1 || n > p.members {
		return 0, fmt.Errorf("%s: member %x leads, which is none", s.label, resp.Leader)
	}
	return n, nil
}

// start starts both sides and connects to all members.
func (p *pair) start(dir string) error {
	common := []string{"--watch-progress-notify-interval=1s", "--bcrypt-cost=4", "--auth-token-ttl=86400"}
	if p.config.auth == authJWT {
		flag, err := tokenKeys(dir)
		if err != nil {
			return err
		}
		common = append(common, flag)
	}
	if p.members > 1 {
		// Nobody is elected because the machine has other things to do.
		common = append(common, "--heartbeat-interval=200", "--election-timeout=2000")
	}
	if p.config.tls {
		files, err := proc.MakeTLS(dir)
		if err != nil {
			return err
		}
		p.tls = files
	}
	started := make(chan error, len(p.sides))
	for i, o := range []proc.Options{
		{Label: "etcd", Bin: p.etcdBin, Args: strings.Fields(p.etcdArgs), TLS: p.tls},
		{Label: "kvd", Bin: p.kvdBin, Args: strings.Fields(p.kvdArgs), TLS: p.tls},
	} {
		o.Args = append(append([]string(nil), common...), o.Args...)
		if i == 1 && p.engine != "" {
			o.Args = append(o.Args, "--storage-engine="+p.engine)
		}
		p.sides[i] = &side{label: o.Label}
		go func() { started <- p.sides[i].start(o, p.members) }()
	}
	var first error
	for range p.sides {
		if err := <-started; err != nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	return p.connect()
}

func (s *side) start(o proc.Options, members int) error {
	var servers []*proc.Server
	if members == 1 {
		srv, err := proc.Start(o)
		if err != nil {
			return err
		}
		servers = append(servers, srv)
	} else {
		var err error
		if servers, err = proc.StartSeveral(o, members); err != nil {
			return err
		}
	}
	for _, srv := range servers {
		s.members = append(s.members, &member{srv: srv})
	}
	s.names = newNames(servers...)
	return nil
}

func (p *pair) close() {
	for _, s := range p.sides {
		if s == nil {
			continue
		}
		for _, m := range s.members {
			m.disconnect()
			m.srv.Close()
		}
	}
}

func (m *member) disconnect() {
	if m.keepAlive != nil {
		m.keepAliveCancel()
		m.keepAlive = nil
	}
	if m.conn != nil {
		_ = m.conn.Close()
	}
	for _, conn := range m.as {
		_ = conn.Close()
	}
	m.conn, m.as = nil, map[string]*grpc.ClientConn{}
}

// connect opens the connections to all members and waits until those are complete.
func (p *pair) connect() error {
	for _, s := range p.sides {
		for _, m := range s.members {
			if err := p.dial(m); err != nil {
				return err
			}
		}
	}
	for i, s := range p.sides {
		if err := p.learnMembers(i); err != nil {
			return fmt.Errorf("%s: %w", s.label, err)
		}
		for n, m := range s.members {
			err := p.waitReady(i, m)
			if err == nil {
				err = p.waitHealthy(i, n+1)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.label, err)
			}
		}
	}
	return nil
}

// dial opens the connections to a member, one for each client certificate.
func (p *pair) dial(m *member) error {
	var err error
	if m.conn, err = m.srv.Dial(); err != nil {
		return err
	}
	m.as = map[string]*grpc.ClientConn{}
	if p.tls == nil {
		return nil
	}
	for _, name := range certNames {
		common := name
		if name == unnamed {
			common = ""
		}
		config, err := p.tls.ClientNamed(common)
		if err != nil {
			return err
		}
		if m.as[name], err = m.srv.DialAs(config); err != nil {
			return err
		}
	}
	return nil
}

// waitHealthy waits until no member takes another for one that has only just come: etcd refuses changes of the members for
// the first seconds. A learner with a URL that is taken is refused for that afterwards.
func (p *pair) waitHealthy(side, n int) error {
	deadline := time.Now().Add(callTimeout)
	for p.members > 1 {
		ctx, cancel, err := p.asRoot(side)
		if err != nil {
			return err
		}
		m := p.sides[side].members[n-1]
		_, err = pb.NewClusterClient(m.conn).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{m.srv.PeerURL()}, IsLearner: true})
		cancel()
		if status.Code(err) == codes.FailedPrecondition {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("member %d never takes the cluster for healthy: %w", n, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// learnMembers notes the ids of a side's members by their ports.
func (p *pair) learnMembers(side int) error {
	s := p.sides[side]
	deadline := time.Now().Add(callTimeout)
	for {
		ctx, cancel, err := p.asRoot(side)
		if err != nil {
			return err
		}
		resp, err := pb.NewClusterClient(s.members[0].conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		cancel()
		if err != nil {
			return err
		}
		known := 0
		for _, listed := range resp.Members {
			for n, m := range s.members {
				// Client URLs are there once the member has published them.
				if strings.Join(listed.PeerURLs, ",") == m.srv.PeerURL() && len(listed.ClientURLs) > 0 {
					s.names.bindMember(uint64(firstMember+n), listed.ID)
					known++
				}
			}
		}
		if known == len(s.members) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("only %d members have published themselves: %v", known, resp.Members)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// waitReady waits for what a member decides a moment after it serves: its storage version, a few seconds after the
// first election. A server that never reports one is compared as it is.
func (p *pair) waitReady(side int, m *member) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		ctx, cancel, err := p.asRoot(side)
		if err != nil {
			return err
		}
		resp, err := pb.NewMaintenanceClient(m.conn).Status(ctx, &pb.StatusRequest{})
		cancel()
		if err != nil {
			return err
		}
		if strings.HasPrefix(resp.StorageVersion, "3.7") && resp.Leader != 0 || time.Now().After(deadline) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// restart kills both sides and starts them again: everything acknowledged must still be there, leases with their
// whole time.
func (p *pair) restart() error {
	p.restarted++
	for len(p.streams) > 0 {
		if err := p.closeStream(p.streams[0]); err != nil {
			return err
		}
	}
	// An unfinished compaction would go on after the start on one server and not on the other.
	for n := range p.members {
		if err := p.finishCompaction(n + 1); err != nil {
			return err
		}
	}
	killed := time.Now()
	// Simple tokens end with the process; which of the last ones come back from the log is each server's own.
	p.auth.root, p.auth.old, p.auth.current = nil, nil, map[string]*caller{}
	started := make(chan error, len(p.sides))
	for _, s := range p.sides {
		var servers []*proc.Server
		for _, m := range s.members {
			m.disconnect()
			m.srv.Kill()
			servers = append(servers, m.srv)
		}
		go func() { started <- proc.RunAll(servers) }()
	}
	for range p.sides {
		if err := <-started; err != nil {
			return err
		}
	}
	if err := p.connect(); err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	p.changes++
	for _, l := range p.leases {
		if err := p.checkRestored(l, time.Since(killed)); err != nil {
			return err
		}
	}
	return p.compareAll()
}

// tokenKeys makes a key for JSON Web Tokens and returns the flag that names it.
func tokenKeys(dir string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	files := map[string]*pem.Block{"token.key": {Type: "EC PRIVATE KEY", Bytes: private}, "token.pub": {Type: "PUBLIC KEY", Bytes: public}}
	for name, block := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return "", err
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	return "--auth-token=jwt,priv-key=" + at("token.key") + ",pub-key=" + at("token.pub") + ",sign-method=ES256,ttl=24h", nil
}
