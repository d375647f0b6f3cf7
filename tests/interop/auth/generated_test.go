package auth

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sort"
	"strconv"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// number reads an environment variable.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// generator draws users, roles, permissions and requests from small sets, so that they meet.
type generator struct {
	*rand.Rand
	*pair
	users, roles []string
}

// AUTH_REQUESTS requests by users whose permissions change meanwhile, from AUTH_SEED on.
func TestGeneratedRequestsAreAnsweredAsByEtcd(t *testing.T) {
	seed, requests := number("AUTH_SEED", 1), number("AUTH_REQUESTS", 3000)
	p := startPair(t)
	p.enable()
	g := &generator{
		Rand:  rand.New(rand.NewPCG(uint64(seed), 0)),
		pair:  p,
		users: []string{"u0", "u1", "u2", "u3", "root"},
		roles: []string{"r0", "r1", "r2", "root"},
	}
	for _, user := range g.users[:4] {
		p.ok("root", "add "+user, userAdd(user, user))
		_ = p.login(user, user)
	}
	for _, role := range g.roles[:3] {
		p.ok("root", "add "+role, roleAdd(role))
	}
	for n := 0; n < requests && !t.Failed(); n++ {
		what, call := g.request()
		user := g.caller()
		if _, err := p.do(user, what, call); err != nil && len(user) == 2 {
			// Like a client: a token that ended is replaced.
			if g.IntN(4) == 0 {
				_ = p.login(user, user)
			}
		}
		if g.IntN(200) == 0 {
			_ = p.login("root", "toor")
		}
	}
	t.Logf("seed %d: %d calls", seed, p.calls)
	for text, count := range p.texts {
		t.Logf("%5d %s", count, text)
	}
	if p.texts[permissionDenied] == 0 || p.texts[userEmpty] == 0 {
		t.Error("nothing was ever refused")
	}
}

func (g *generator) caller() string {
	switch n := g.IntN(20); {
	case n == 0:
		return nobody
	case n == 1:
		return forger
	case n < 6:
		return "root"
	default:
		return g.users[g.IntN(4)]
	}
}

func (g *generator) request() (string, call) {
	if g.IntN(3) == 0 {
		return g.change()
	}
	var req proto.Message
	var send call
	switch g.IntN(12) {
	case 0, 1:
		r := g.rangeRequest()
		req, send = r, func(c caller) (proto.Message, error) { return c.kv().Range(c.ctx, r) }
	case 2:
		r := g.rangeRequest()
		req, send = r, func(c caller) (proto.Message, error) { return rangeStream(c, r) }
	case 3, 4:
		r := g.putRequest()
		req, send = r, putOf(r)
	case 5:
		r := g.deleteRequest()
		req, send = r, func(c caller) (proto.Message, error) { return c.kv().DeleteRange(c.ctx, r) }
	case 6, 7, 8:
		r := g.txn(2)
		req, send = r, func(c caller) (proto.Message, error) { return c.kv().Txn(c.ctx, r) }
	case 9:
		key, end := g.keys()
		r := &pb.WatchCreateRequest{Key: key, RangeEnd: end}
		req, send = r, func(c caller) (proto.Message, error) { return watch(c, r) }
	case 10:
		return g.leaseCall()
	default:
		names := make([]string, 0, len(adminCalls))
		for name := range adminCalls {
			// Takes long on one of the two.
			if name != "defragment" && name != "hash" {
				names = append(names, name)
			}
		}
		sort.Strings(names)
		name := names[g.IntN(len(names))]
		return name, adminCalls[name]
	}
	return fmt.Sprintf("%T %v", req, req), send
}

func (g *generator) change() (string, call) {
	user, role := g.users[g.IntN(len(g.users))], g.roles[g.IntN(len(g.roles))]
	kind := authpb.Permission_Type(g.IntN(3))
	key := string(g.key())
	end := endOf(role, key)
	switch g.IntN(16) {
	case 0:
		return "add " + user, userAdd(user, user)
	case 1:
		return "delete " + user, userDelete(user)
	case 2:
		if user == "root" {
			return "get root", userGet(user)
		}
		return "password " + user, userPassword(user, user)
	case 3, 4, 5:
		return "grant " + role + " to " + user, grantRole(user, role)
	case 6:
		return "revoke " + role + " of " + user, revokeRole(user, role)
	case 7:
		return "add role " + role, roleAdd(role)
	case 8:
		if g.IntN(4) == 0 {
			return "delete role " + role, roleDelete(role)
		}
		return "list roles", roleList
	case 9, 10, 11, 12:
		return fmt.Sprintf("grant %v %q %q to %s", kind, key, end, role), grantPermission(role, kind, key, end)
	case 13:
		return fmt.Sprintf("revoke %q %q of %s", key, end, role), revokePermission(role, key, end)
	case 14:
		return "get role " + role, roleGet(role)
	default:
		if g.IntN(2) == 0 {
			return "list users", userList
		}
		return "get " + user, userGet(user)
	}
}

// endOf gives each role one end for a key. With several, etcd finds the first of the key's permissions only, and which one
// that is its sort leaves open from thirteen permissions on.
func endOf(role, key string) string {
	switch role {
	case "r1":
		return string([]byte{key[0] + 1})
	case "r2":
		if len(key) == 1 {
			return "\x00"
		}
		return key + "b"
	default:
		return ""
	}
}

func (g *generator) key() []byte {
	letters := "abc"
	key := []byte{letters[g.IntN(3)]}
	if g.IntN(3) == 0 {
		key = append(key, letters[g.IntN(3)])
	}
	return key
}

func (g *generator) end() []byte {
	switch g.IntN(6) {
	case 0, 1, 2:
		return nil
	case 3:
		return []byte{0}
	default:
		return append(g.key(), "\x00a"[:g.IntN(3)]...)
	}
}

// keys are those of a request. Of a range that holds no key etcd looks at whatever part of its tree of permissions it
// happens to visit, so there is none.
func (g *generator) keys() ([]byte, []byte) {
	key, end := g.key(), g.end()
	if len(end) > 0 && string(end) != "\x00" && string(end) <= string(key) {
		end = nil
	}
	return key, end
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	key, end := g.keys()
	return &pb.RangeRequest{Key: key, RangeEnd: end, Serializable: g.IntN(2) == 0, CountOnly: g.IntN(4) == 0, Limit: int64(g.IntN(3))}
}

func (g *generator) putRequest() *pb.PutRequest {
	put := &pb.PutRequest{Key: g.key(), Value: []byte{byte(g.IntN(256))}, PrevKv: g.IntN(3) == 0}
	if g.IntN(3) == 0 {
		put.Lease = int64(1 + g.IntN(4))
	}
	return put
}

func (g *generator) deleteRequest() *pb.DeleteRangeRequest {
	key, end := g.keys()
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: g.IntN(3) == 0}
}

func (g *generator) txn(depth int) *pb.TxnRequest {
	txn := &pb.TxnRequest{Success: g.ops(depth), Failure: g.ops(depth)}
	if g.IntN(2) == 0 {
		key, end := g.keys()
		compare := &pb.Compare{Key: key, RangeEnd: end, Target: pb.Compare_VERSION, Result: pb.Compare_CompareResult(g.IntN(3))}
		compare.TargetUnion = &pb.Compare_Version{Version: int64(g.IntN(3))}
		txn.Compare = append(txn.Compare, compare)
	}
	return txn
}

func (g *generator) ops(depth int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	for range g.IntN(3) {
		op := &pb.RequestOp{}
		switch n := g.IntN(5); {
		case n == 0 && depth > 0:
			op.Request = &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth - 1)}
		case n == 1:
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRequest()}
		case n < 4:
			op.Request = &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}
		default:
			op.Request = &pb.RequestOp_RequestPut{RequestPut: g.putRequest()}
		}
		ops = append(ops, op)
	}
	return ops
}

func (g *generator) leaseCall() (string, call) {
	id := int64(1 + g.IntN(4))
	switch g.IntN(6) {
	case 0, 1:
		return fmt.Sprintf("grant lease %d", id), func(c caller) (proto.Message, error) {
			return c.lease().LeaseGrant(c.ctx, &pb.LeaseGrantRequest{ID: id, TTL: 6000})
		}
	case 2:
		return fmt.Sprintf("revoke lease %d", id), func(c caller) (proto.Message, error) {
			return c.lease().LeaseRevoke(c.ctx, &pb.LeaseRevokeRequest{ID: id})
		}
	case 3:
		return fmt.Sprintf("keep lease %d", id), func(c caller) (proto.Message, error) { return keepAlive(c, id) }
	case 4:
		return fmt.Sprintf("look at lease %d", id), func(c caller) (proto.Message, error) {
			return c.lease().LeaseTimeToLive(c.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		}
	default:
		return "leases", func(c caller) (proto.Message, error) {
			return c.lease().LeaseLeases(c.ctx, &pb.LeaseLeasesRequest{})
		}
	}
}
