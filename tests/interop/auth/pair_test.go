// Package auth compares users, roles, permissions and tokens of the server in KVD_BIN with those of a real etcd.
//
// Every request goes to both, under the same user, and the two answers must be equal: code and text of an error, and all of
// a response but what names the server, the moment or a token.
package auth

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"kvd.dev/interop/proc"
)

// callTimeout bounds one call; none should come near it.
const callTimeout = 30 * time.Second

// nobody calls without a token, forger with one that nobody gave out.
const (
	nobody = ""
	forger = "forger"
)

// pair is etcd and kvd, in this order, and the tokens that users have there.
type pair struct {
	*testing.T
	servers [2]*proc.Server
	conns   [2]*grpc.ClientConn
	tokens  map[string][2]string
	// texts counts the error texts that both servers gave.
	texts map[string]int
	calls int
}

func startPair(t *testing.T, args ...string) *pair {
	t.Helper()
	kvd := os.Getenv("KVD_BIN")
	if kvd == "" {
		t.Skip("KVD_BIN not set")
	}
	etcd, err := filepath.Abs("../bin/etcd")
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{T: t, tokens: map[string][2]string{}, texts: map[string]int{}}
	args = append([]string{"--bcrypt-cost=4"}, args...)
	for i, opts := range []proc.Options{{Label: "etcd", Bin: etcd}, {Label: "kvd", Bin: kvd}} {
		opts.Args = append(args, strings.Fields(os.Getenv("KVD_ARGS"))...)
		if i == 0 {
			opts.Args = args
		}
		srv, err := proc.Start(opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(srv.Close)
		p.servers[i] = srv
		if p.conns[i], err = srv.Dial(); err != nil {
			t.Fatal(err)
		}
		conn := p.conns[i]
		t.Cleanup(func() { _ = conn.Close() })
	}
	return p
}

// caller is one server as one user sees it.
type caller struct {
	ctx  context.Context
	conn *grpc.ClientConn
}

func (c caller) kv() pb.KVClient             { return pb.NewKVClient(c.conn) }
func (c caller) auth() pb.AuthClient         { return pb.NewAuthClient(c.conn) }
func (c caller) lease() pb.LeaseClient       { return pb.NewLeaseClient(c.conn) }
func (c caller) maint() pb.MaintenanceClient { return pb.NewMaintenanceClient(c.conn) }
func (c caller) cluster() pb.ClusterClient   { return pb.NewClusterClient(c.conn) }

// do makes the same call on both servers and returns etcd's answer; differing answers fail the test.
func (p *pair) do(user, what string, call func(c caller) (proto.Message, error)) (proto.Message, error) {
	p.Helper()
	p.calls++
	var answers [2]string
	var first proto.Message
	var firstErr error
	for i := range p.conns {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		switch user {
		case nobody:
		case forger:
			ctx = metadata.AppendToOutgoingContext(ctx, "token", "nevergivenouttoyou.1")
		default:
			ctx = metadata.AppendToOutgoingContext(ctx, "token", p.tokens[user][i])
		}
		msg, err := call(caller{ctx, p.conns[i]})
		cancel()
		if i == 0 {
			first, firstErr = msg, err
		}
		answers[i] = describe(msg, err)
		if err != nil {
			if i == 0 {
				p.texts[status.Convert(err).Message()]++
			}
		}
	}
	if answers[0] != answers[1] {
		p.Errorf("call %d by %q: %s\n etcd %s\n kvd  %s", p.calls, user, what, answers[0], answers[1])
	}
	return first, firstErr
}

// ok is do for calls that have to succeed.
func (p *pair) ok(user, what string, call func(c caller) (proto.Message, error)) proto.Message {
	p.Helper()
	msg, err := p.do(user, what, call)
	if err != nil {
		p.Errorf("%s by %q: %v", what, user, err)
	}
	return msg
}

// refused is do for calls that have to fail with a text.
func (p *pair) refused(user, text, what string, call func(c caller) (proto.Message, error)) {
	p.Helper()
	_, err := p.do(user, what, call)
	if err == nil || status.Convert(err).Message() != text {
		p.Errorf("%s by %q: %v, want %q", what, user, err, text)
	}
}

// login gets a token on both servers.
func (p *pair) login(user, password string) error {
	p.Helper()
	var tokens [2]string
	i := 0
	_, err := p.do(nobody, "authenticate "+user, func(c caller) (proto.Message, error) {
		resp, err := c.auth().Authenticate(c.ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		if err == nil {
			tokens[i] = resp.Token
		}
		i++
		return resp, err
	})
	if err == nil {
		p.tokens[user] = tokens
	}
	return err
}

// describe is what has to be equal of an answer.
func describe(msg proto.Message, err error) string {
	if err != nil {
		s := status.Convert(err)
		return fmt.Sprintf("error %v %q", s.Code(), s.Message())
	}
	if msg == nil {
		return "nothing"
	}
	msg = proto.Clone(msg)
	forget(msg)
	text, err := prototext.MarshalOptions{Multiline: false}.Marshal(msg)
	if err != nil {
		return err.Error()
	}
	// The spaces between fields are not stable.
	return strings.Join(strings.Fields(string(text)), " ")
}

// forget clears what no two servers have in common.
func forget(msg proto.Message) {
	if withHeader, ok := msg.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		if header := withHeader.GetHeader(); header != nil {
			header.ClusterId, header.MemberId, header.RaftTerm = 0, 0, 0
		}
	}
	switch m := msg.(type) {
	case *pb.AuthenticateResponse:
		m.Token = ""
	case *pb.StatusResponse:
		*m = pb.StatusResponse{Version: strings.Join(strings.Split(m.Version, ".")[:2], ".")}
	case *pb.MemberListResponse:
		for i, member := range m.Members {
			m.Members[i] = &pb.Member{Name: member.Name}
		}
	case *pb.LeaseTimeToLiveResponse:
		m.TTL = min(m.TTL, 1)
		sort.Slice(m.Keys, func(i, j int) bool { return string(m.Keys[i]) < string(m.Keys[j]) })
	case *pb.LeaseLeasesResponse:
		sort.Slice(m.Leases, func(i, j int) bool { return m.Leases[i].ID < m.Leases[j].ID })
	case *pb.HashResponse:
		m.Hash = 0
	}
}

// rangeStream gathers the chunks of a RangeStream into the answer of a Range.
func rangeStream(c caller, req *pb.RangeRequest) (proto.Message, error) {
	stream, err := c.kv().RangeStream(c.ctx, req)
	if err != nil {
		return nil, err
	}
	all := &pb.RangeResponse{}
	for {
		chunk, err := stream.Recv()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		proto.Merge(all, chunk.RangeResponse)
	}
}

// watch returns the first response of a watch.
func watch(c caller, req *pb.WatchCreateRequest) (proto.Message, error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stream, err := pb.NewWatchClient(c.conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	create := &pb.WatchRequest_CreateRequest{CreateRequest: req}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: create}); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// keepAlive renews a lease once.
func keepAlive(c caller, id int64) (proto.Message, error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stream, err := c.lease().LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return resp, nil
}
