package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"kvd.dev/interop/proc"
)

// callTimeout ends a call that a server never answers; it is far above any answer time on a loaded machine.
const callTimeout = 30 * time.Second

// errStop ends a run: enough differences, or a server is gone.
var errStop = errors.New("stopped")

// side is one of the two clusters: 0 is the reference, 1 is under test.
type side struct {
	label   string
	members []*member
	names   *names
}

// member is one server of a side with the connections to it.
type member struct {
	srv  *proc.Server
	conn *grpc.ClientConn
	// as are connections with client certificates of other common names.
	as        map[string]*grpc.ClientConn
	keepAlive pb.Lease_LeaseKeepAliveClient

	keepAliveCancel context.CancelFunc
}

// end is where one side's half of a call goes.
type end struct {
	side int
	s    *side
	m    *member
	conn *grpc.ClientConn
}

// pair sends the same requests to both servers one by one and compares every answer.
type pair struct {
	config
	sides [2]*side
	cov   *coverage
	rng   *rand.Rand
	out   io.Writer
	tls   *proc.TLSFiles

	requests  int // sent so far
	diffs     int
	sabotaged string

	// What the reference's answers tell about the state; only used to aim requests.
	revision  int64
	compacted int64   // newest compacted revision
	compacts  []int64 // all compacted revisions
	settled   []bool  // per member: no compaction is running in the background
	leases    []*leaseState
	chosen    int64 // leases whose id the servers chose, so far
	tainted   bool  // keys are attached to such a lease, so stored bytes and HashKV differ
	expiries  int   // expiry scenarios run
	fragments int   // fragment scenarios run
	directed  int   // directed cases sent
	cases     []func() error
	// The same for cases that need auth to be on.
	authDirected int
	ofAuth       []func() error
	restarted    int // restarts done
	streams      []*watchStream
	streamSeq    int
	alarms       alarmState
	added        int  // members added so far
	alone        bool // only the first member is left, without a leader
	auth         authState

	// changes counts what may have changed something; seen is, per member, how much of it that member has surely applied.
	changes int
	seen    []int
}

// call is one unary request. The hooks are optional.
type call struct {
	rpc string
	req proto.Message
	md  metadata.MD
	// who sends it; nil is someone who may do everything.
	who *caller
	// member is the number of the member that gets it, from 1 on; 0 draws one.
	member int
	// route overrides member for each side.
	route func(side int) int
	// inspect sees each server's normalised answer and returns what is wrong with it, or "".
	inspect func(side int, resp proto.Message) string
	// adopt sees each server's raw answer before it is normalised.
	adopt func(side int, resp proto.Message) string
	// lost allows the answer that there is no leader or quorum.
	lost bool
}

func scopeOf(rpc string) rpcScope {
	for _, s := range inScope {
		if s.name == rpc {
			return s
		}
	}
	panic("not in scope: " + rpc)
}

func (p *pair) context(md metadata.MD) (context.Context, context.CancelFunc) {
	return context.WithTimeout(metadata.NewOutgoingContext(context.Background(), md), callTimeout)
}

// anywhere draws the number of a member.
func (p *pair) anywhere() int { return 1 + p.rng.IntN(p.members) }

// endOf is member number n of a side as who reaches it.
func (p *pair) endOf(side, n int, who *caller) end {
	m := p.sides[side].members[n-1]
	conn := m.conn
	if who != nil && who.cert != "" {
		conn = m.as[who.cert]
	}
	return end{side, p.sides[side], m, conn}
}

// do sends the call to both servers, compares, and returns the reference's answer.
func (p *pair) do(c call) (answer, error) {
	scope := scopeOf(c.rpc)
	return p.exchange(c, func(ctx context.Context, e end, req proto.Message) (proto.Message, error) {
		resp := scope.resp.ProtoReflect().New().Interface()
		if err := e.conn.Invoke(ctx, scope.method, req, resp); err != nil {
			return nil, err
		}
		return resp, nil
	})
}

// exchange is do with the way of sending given.
func (p *pair) exchange(c call, send func(context.Context, end, proto.Message) (proto.Message, error)) (answer, error) {
	p.requests++
	if c.who == nil {
		var err error
		if c.who, err = p.privileged(); err != nil {
			return answer{}, err
		}
	}
	if c.member == 0 {
		c.member = p.anywhere()
	}
	if c.rpc == "Cluster.MemberPromote" && p.auth.on && p.members > 1 {
		// etcd's other members ask the leader without the caller's token and wait in vain (docs/differences.md).
		var err error
		if c.route, err = p.toLeader(); err != nil {
			return answer{}, err
		}
	}
	if err := p.catchUp(c); err != nil {
		return answer{}, err
	}
	var got [2]answer
	var complaint [2]string
	done := make(chan struct{}, 2)
	for i, s := range p.sides {
		req := s.names.toServer(c.req)
		n := c.member
		if c.route != nil {
			n = c.route(i)
		}
		go func() {
			ctx, cancel := p.context(c.who.metadata(i, c.md))
			defer cancel()
			got[i] = answerOf(send(ctx, p.endOf(i, n, c.who), req))
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	for tries := 0; p.members > 1 && dropped(c, got[0]) && tries < 3; tries++ {
		n := c.member
		if c.route != nil {
			n = c.route(0)
		}
		ctx, cancel := p.context(c.who.metadata(0, c.md))
		got[0] = answerOf(send(ctx, p.endOf(0, n, c.who), p.sides[0].names.toServer(c.req)))
		cancel()
	}
	if !readOnly[c.rpc] {
		p.changes++
	}
	for i, s := range p.sides {
		if got[i].resp == nil {
			continue
		}
		complaint[i] = membersOutOfOrder(got[i].resp)
		if c.adopt != nil && complaint[i] == "" {
			complaint[i] = c.adopt(i, got[i].resp)
		}
		normalise(got[i].resp, s.names)
		if c.route != nil {
			unplace(got[i].resp, c.route(i))
		}
		if i == 1 {
			p.sabotage(got[i].resp)
		}
		if c.inspect != nil && complaint[i] == "" {
			complaint[i] = c.inspect(i, got[i].resp)
		}
	}
	a, b := got[0], got[1]
	var original proto.Message
	if b.resp != nil {
		original = proto.Clone(b.resp)
	}
	// A complete cluster is never unavailable: one has crashed.
	same := equal(c.req, a, b) && (a.code != codes.Unavailable || c.lost)
	if same && original != nil && !proto.Equal(original, b.resp) {
		same = p.checkCut(c, a.resp, original)
		b.resp = original
	}
	before := p.revision
	p.learn(a.resp)
	if err := p.settleScore(c, a, b, same, complaint); err != nil {
		return a, err
	}
	if isWrite(c.req) {
		p.cov.writes++
		if a.resp != nil && p.revision > before {
			p.cov.effective++
		}
	}
	return a, p.learnAuth(c, a)
}

// dropped tells whether etcd's raft dropped a change of the members, as it does while its leader has yet to apply the one
// before. Nothing has changed then. It shows after the whole request timeout; the tested server must not do the same.
func dropped(c call, a answer) bool {
	return strings.HasPrefix(c.rpc, "Cluster.Member") && a.code == codes.Unavailable && a.text == "etcdserver: request timed out"
}

// settleScore records an exchange as coverage or as a difference.
func (p *pair) settleScore(c call, a, b answer, same bool, complaint [2]string) error {
	if !same || complaint[0] != "" || complaint[1] != "" {
		return p.differ(c.rpc, c.req, c.from(p), show(a)+note(complaint[0]), show(b)+note(complaint[1]))
	}
	p.cov.request(c.rpc, c.req)
	if a.resp != nil {
		p.cov.response(c.rpc, a.resp)
		return nil
	}
	name, _ := errorName(a.code, a.text)
	p.cov.failure(c.rpc, name)
	return nil
}

// from says who sent a call where, for messages.
func (c call) from(p *pair) string {
	var parts []string
	if c.who != nil && c.who.name != "" {
		parts = append(parts, "by "+c.who.name)
	}
	if p.members > 1 && c.member != 0 {
		parts = append(parts, fmt.Sprintf("to member %d", c.member))
	}
	if len(c.md) > 0 {
		parts = append(parts, fmt.Sprintf("metadata %q", c.md))
	}
	return strings.Join(parts, ", ")
}

// checkCut verifies what equal cannot: an answer cut by its limit inside a group of equal sort keys may hold any
// members of that group, but only members of it. The reference is asked for the uncut answer.
func (p *pair) checkCut(c call, a, b proto.Message) bool {
	r, ok := c.req.(*pb.RangeRequest)
	ra, isRange := a.(*pb.RangeResponse)
	if !ok || !isRange || !ra.More {
		return true
	}
	whole := proto.Clone(r).(*pb.RangeRequest)
	whole.Limit = 0
	ctx, cancel := p.context(c.who.metadata(0, nil))
	defer cancel()
	e := p.endOf(0, c.member, c.who)
	resp, err := pb.NewKVClient(e.conn).Range(ctx, e.s.names.toServer(whole).(*pb.RangeRequest))
	if err != nil {
		return false
	}
	normalise(resp, e.s.names)
	return subset(b.(*pb.RangeResponse).Kvs, resp.Kvs)
}

func isWrite(req proto.Message) bool {
	switch r := req.(type) {
	case *pb.PutRequest, *pb.DeleteRangeRequest:
		return true
	case *pb.TxnRequest:
		for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
			for _, op := range ops {
				if op.GetRequestRange() == nil {
					return true
				}
			}
		}
	}
	return false
}

// learn follows the store revision from the reference's headers.
func (p *pair) learn(resp proto.Message) {
	if resp == nil {
		return
	}
	if h, ok := resp.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		p.revision = max(p.revision, h.GetHeader().GetRevision())
	}
}

// differ prints one difference. It returns errStop when the run should end.
func (p *pair) differ(rpc string, req proto.Message, from, a, b string) error {
	p.diffs++
	fmt.Fprintf(p.out, "\nDIFFERENCE %d: %s, request %d, %s %s\n", p.diffs, p.config, p.requests, rpc, from)
	if req != nil {
		fmt.Fprintf(p.out, "  request  %s\n", text(req))
	}
	fmt.Fprintf(p.out, "  %-8s %s\n  %-8s %s\n", p.sides[0].label, a, p.sides[1].label, b)
	if p.showExited(0) || p.diffs >= p.config.diffsMax {
		return errStop
	}
	return nil
}

// showExited prints the end of the log of a server that is gone.
func (p *pair) showExited(limit time.Duration) bool {
	for _, s := range p.sides {
		members := s.members
		if p.alone {
			members = members[:1]
		}
		for _, m := range members {
			if m.srv.ExitsWithin(limit) {
				fmt.Fprintf(p.out, "%s has exited; end of its log:\n%s\n", m.srv.Label, m.srv.LogTail(60))
				return true
			}
		}
	}
	return false
}

func show(a answer) string {
	if a.resp == nil {
		return fmt.Sprintf("error %s: %s", a.code, clip(a.text))
	}
	return text(a.resp)
}

func note(complaint string) string {
	if complaint == "" {
		return ""
	}
	return "  <-- " + complaint
}

func text(m proto.Message) string {
	short := proto.Clone(m)
	eachField(short.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		if fd.Kind() == protoreflect.BytesKind && !fd.IsList() && len(v.Bytes()) > shownBytesMax {
			b := v.Bytes()
			m.Set(fd, protoreflect.ValueOfBytes(fmt.Appendf(nil, "%s… (%d bytes, crc32 %08x)", b[:16], len(b), crc32.ChecksumIEEE(b))))
		}
	})
	return string(m.ProtoReflect().Descriptor().Name()) + " {" + clip(prototext.MarshalOptions{}.Format(short)) + "}"
}

// shownBytesMax is the longest key or value that is printed whole.
const shownBytesMax = 64

// shownMax is the longest part of a message that is printed.
const shownMax = 3000

func clip(s string) string {
	if len(s) <= shownMax {
		return s
	}
	return fmt.Sprintf("%s … %d characters more", s[:shownMax], len(s)-shownMax)
}

// sabotage falsifies one field of an answer, to prove that a difference is found.
func (p *pair) sabotage(m proto.Message) {
	if p.config.sabotageAt == 0 || p.requests < p.config.sabotageAt || p.sabotaged != "" {
		return
	}
	fields := compared(m)
	if len(fields) == 0 {
		return
	}
	f := fields[p.rng.IntN(len(fields))]
	f.flip()
	p.sabotaged = fmt.Sprintf("request %d, field %s", p.requests, f.fd.FullName())
	fmt.Fprintf(p.out, "sabotage: falsified %s\n", p.sabotaged)
}

// leaf is one scalar field that holds a value and takes part in the comparison.
type leaf struct {
	m  protoreflect.Message
	fd protoreflect.FieldDescriptor
}

func compared(m proto.Message) []leaf {
	var leaves []leaf
	eachField(m.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		if !masked[fd.FullName()] && !fd.IsList() {
			leaves = append(leaves, leaf{m, fd})
		}
	})
	return leaves
}

func (l leaf) flip() {
	v := l.m.Get(l.fd)
	switch l.fd.Kind() {
	case protoreflect.BoolKind:
		v = protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.Int64Kind:
		v = protoreflect.ValueOfInt64(v.Int() + 7)
	case protoreflect.Uint64Kind:
		v = protoreflect.ValueOfUint64(v.Uint() + 7)
	case protoreflect.Uint32Kind:
		v = protoreflect.ValueOfUint32(uint32(v.Uint()) + 7)
	case protoreflect.BytesKind:
		v = protoreflect.ValueOfBytes(append([]byte("~"), v.Bytes()...))
	case protoreflect.StringKind:
		v = protoreflect.ValueOfString(v.String() + "~")
	case protoreflect.EnumKind:
		v = protoreflect.ValueOfEnum(v.Enum() + 1)
	default:
		panic("cannot falsify " + l.fd.FullName())
	}
	l.m.Set(l.fd, v)
}
