package auth

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Texts of errors that auth gives. Source: etcd API v3.7, rpctypes.
const (
	rootUserNotExist     = "etcdserver: root user does not exist"
	rootRoleNotExist     = "etcdserver: root user does not have root role"
	userAlreadyExist     = "etcdserver: user name already exists"
	userEmpty            = "etcdserver: user name is empty"
	userNotFound         = "etcdserver: user name not found"
	roleAlreadyExist     = "etcdserver: role name already exists"
	roleNotFound         = "etcdserver: role name not found"
	roleEmpty            = "etcdserver: role name is empty"
	authFailed           = "etcdserver: authentication failed, invalid user ID or password"
	permissionNotGiven   = "etcdserver: permission not given"
	permissionDenied     = "etcdserver: permission denied"
	roleNotGranted       = "etcdserver: role is not granted to the user"
	permissionNotGranted = "etcdserver: permission is not granted to the role"
	authNotEnabled       = "etcdserver: authentication is not enabled"
	invalidAuthToken     = "etcdserver: invalid auth token"
	invalidAuthMgmt      = "etcdserver: invalid auth management"
	noPasswordUser       = "auth: authentication failed, password was given for no password user"
	passwordTooLong      = "bcrypt: password length exceeds 72 bytes"
)

var allTexts = []string{rootUserNotExist, rootRoleNotExist, userAlreadyExist, userEmpty, userNotFound, roleAlreadyExist,
	roleNotFound, roleEmpty, authFailed, permissionNotGiven, permissionDenied, roleNotGranted, permissionNotGranted,
	authNotEnabled, invalidAuthToken, invalidAuthMgmt, noPasswordUser, passwordTooLong}

type call = func(c caller) (proto.Message, error)

func userAdd(name, password string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().UserAdd(c.ctx, &pb.AuthUserAddRequest{Name: name, Password: password})
	}
}

func userAddNoPassword(name string) call {
	return func(c caller) (proto.Message, error) {
		options := &authpb.UserAddOptions{NoPassword: true}
		return c.auth().UserAdd(c.ctx, &pb.AuthUserAddRequest{Name: name, Options: options})
	}
}

func userDelete(name string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().UserDelete(c.ctx, &pb.AuthUserDeleteRequest{Name: name})
	}
}

func userGet(name string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().UserGet(c.ctx, &pb.AuthUserGetRequest{Name: name})
	}
}

func userList(c caller) (proto.Message, error) {
	return c.auth().UserList(c.ctx, &pb.AuthUserListRequest{})
}

func userPassword(name, password string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().UserChangePassword(c.ctx, &pb.AuthUserChangePasswordRequest{Name: name, Password: password})
	}
}

func grantRole(user, role string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().UserGrantRole(c.ctx, &pb.AuthUserGrantRoleRequest{User: user, Role: role})
	}
}

func revokeRole(user, role string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().UserRevokeRole(c.ctx, &pb.AuthUserRevokeRoleRequest{Name: user, Role: role})
	}
}

func roleAdd(name string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().RoleAdd(c.ctx, &pb.AuthRoleAddRequest{Name: name})
	}
}

func roleDelete(name string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().RoleDelete(c.ctx, &pb.AuthRoleDeleteRequest{Role: name})
	}
}

func roleGet(name string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().RoleGet(c.ctx, &pb.AuthRoleGetRequest{Role: name})
	}
}

func roleList(c caller) (proto.Message, error) {
	return c.auth().RoleList(c.ctx, &pb.AuthRoleListRequest{})
}

func grantPermission(role string, kind authpb.Permission_Type, key, end string) call {
	return func(c caller) (proto.Message, error) {
		perm := &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}
		return c.auth().RoleGrantPermission(c.ctx, &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: perm})
	}
}

func revokePermission(role, key, end string) call {
	return func(c caller) (proto.Message, error) {
		return c.auth().RoleRevokePermission(c.ctx, &pb.AuthRoleRevokePermissionRequest{Role: role, Key: []byte(key), RangeEnd: []byte(end)})
	}
}

func authEnable(c caller) (proto.Message, error) {
	return c.auth().AuthEnable(c.ctx, &pb.AuthEnableRequest{})
}

func authDisable(c caller) (proto.Message, error) {
	return c.auth().AuthDisable(c.ctx, &pb.AuthDisableRequest{})
}

func authStatus(c caller) (proto.Message, error) {
	return c.auth().AuthStatus(c.ctx, &pb.AuthStatusRequest{})
}

// enable makes root and enables auth.
func (p *pair) enable() {
	p.Helper()
	p.ok(nobody, "add root", userAdd("root", "toor"))
	p.ok(nobody, "grant root", grantRole("root", "root"))
	p.ok(nobody, "enable", authEnable)
	if err := p.login("root", "toor"); err != nil {
		p.Fatal(err)
	}
}

// user makes a user and a role of the same name.
func (p *pair) user(name string) {
	p.Helper()
	p.ok("root", "add role "+name, roleAdd(name))
	p.ok("root", "add user "+name, userAdd(name, name+"-password"))
	p.ok("root", "grant "+name, grantRole(name, name))
	if err := p.login(name, name+"-password"); err != nil {
		p.Fatal(err)
	}
}

// Every text that auth can give, one by one, and the state around it.
func TestEveryRefusalIsEtcds(t *testing.T) {
	p := startPair(t)
	p.ok(nobody, "status", authStatus)
	p.ok(nobody, "disable while disabled", authDisable)
	if err := p.login("root", "toor"); err == nil {
		t.Error("login while disabled")
	}
	p.refused(nobody, rootUserNotExist, "enable", authEnable)
	p.refused(nobody, userEmpty, "add nameless", userAdd("", "x"))
	p.refused(nobody, passwordTooLong, "add", userAdd("long", strings.Repeat("x", 73)))
	p.ok(nobody, "add with the longest password", userAdd("long", strings.Repeat("x", 72)))
	p.ok(nobody, "add root", userAdd("root", "toor"))
	p.refused(nobody, userAlreadyExist, "add root again", userAdd("root", "toor"))
	p.refused(nobody, rootRoleNotExist, "enable", authEnable)
	p.refused(nobody, roleNotFound, "get the root role", roleGet("root"))
	p.ok(nobody, "grant root", grantRole("root", "root"))
	p.ok(nobody, "grant root again", grantRole("root", "root"))
	p.ok(nobody, "get root", userGet("root"))
	p.ok(nobody, "enable", authEnable)
	p.ok(nobody, "status", authStatus)
	p.refused(nobody, userEmpty, "enable again", authEnable)
	p.refused(forger, invalidAuthToken, "enable again", authEnable)
	p.refused(forger, invalidAuthToken, "status", authStatus)
	for _, password := range []string{"", "wrong"} {
		if err := p.login("root", password); err == nil {
			t.Error("login with a wrong password")
		}
	}
	if err := p.login("ghost", "x"); err == nil {
		t.Error("login of nobody")
	}
	if err := p.login("root", "toor"); err != nil {
		t.Fatal(err)
	}
	p.ok("root", "enable again", authEnable)
	p.ok("root", "status", authStatus)
	p.refused(nobody, userEmpty, "list users", userList)
	p.ok("root", "list users", userList)
	p.ok("root", "add role", roleAdd("reader"))
	p.refused("root", roleAlreadyExist, "add role again", roleAdd("reader"))
	p.refused("root", roleEmpty, "add role", roleAdd(""))
	p.ok("root", "list roles", roleList)
	p.refused("root", roleNotFound, "get role", roleGet("ghost"))
	p.refused("root", roleNotFound, "delete role", roleDelete("ghost"))
	p.refused("root", invalidAuthMgmt, "delete root role", roleDelete("root"))
	p.refused("root", invalidAuthMgmt, "delete root", userDelete("root"))
	p.refused("root", invalidAuthMgmt, "revoke root", revokeRole("root", "root"))
	p.ok("root", "add root role", roleAdd("root"))
	p.ok("root", "get root role", roleGet("root"))
	p.refused("root", userNotFound, "get user", userGet("ghost"))
	p.refused("root", userNotFound, "delete user", userDelete("ghost"))
	p.refused("root", userNotFound, "password", userPassword("ghost", "x"))
	p.refused("root", userNotFound, "grant", grantRole("ghost", "reader"))
	p.refused("root", userNotFound, "revoke", revokeRole("ghost", "reader"))
	p.refused("root", roleNotFound, "grant", grantRole("long", "ghost"))
	p.refused("root", roleNotGranted, "revoke", revokeRole("long", "reader"))
	p.refused("root", permissionNotGiven, "grant nothing", func(c caller) (proto.Message, error) {
		return c.auth().RoleGrantPermission(c.ctx, &pb.AuthRoleGrantPermissionRequest{Name: "reader"})
	})
	p.refused("root", invalidAuthMgmt, "grant no key", grantPermission("reader", authpb.READ, "", "b"))
	p.refused("root", invalidAuthMgmt, "grant no range", grantPermission("reader", authpb.READ, "b", "a"))
	p.refused("root", invalidAuthMgmt, "grant no range", grantPermission("reader", authpb.READ, "b", "b"))
	p.refused("root", roleNotFound, "grant", grantPermission("ghost", authpb.READ, "a", ""))
	p.refused("root", permissionNotGranted, "revoke", revokePermission("reader", "a", ""))
	p.refused("root", roleNotFound, "revoke", revokePermission("ghost", "a", ""))
	p.ok("root", "grant", grantPermission("reader", authpb.READ, "a", "c"))
	p.ok("root", "grant another type", grantPermission("reader", authpb.READWRITE, "a", "c"))
	p.ok("root", "grant from", grantPermission("reader", authpb.WRITE, "a", "\x00"))
	p.ok("root", "get role", roleGet("reader"))
	p.ok("root", "add without password", userAddNoPassword("nopassword"))
	if err := p.login("nopassword", ""); err == nil {
		t.Error("login of a user without a password")
	}
	p.ok("root", "password of one without", userPassword("nopassword", "x"))
	if err := p.login("nopassword", "x"); err == nil {
		t.Error("login of a user without a password")
	}
	p.ok("root", "empty password", userAdd("empty", ""))
	if err := p.login("empty", ""); err != nil {
		t.Error(err)
	}
	p.user("alice")
	p.ok("alice", "get oneself", userGet("alice"))
	p.ok("alice", "get own role", roleGet("alice"))
	p.refused("alice", permissionDenied, "get another", userGet("root"))
	p.refused("alice", permissionDenied, "get another role", roleGet("reader"))
	p.refused("alice", permissionDenied, "list users", userList)
	p.refused("alice", permissionDenied, "list roles", roleList)
	p.refused("alice", permissionDenied, "add", userAdd("x", "x"))
	p.refused("alice", permissionDenied, "enable", authEnable)
	p.refused("alice", permissionDenied, "disable", authDisable)
	p.ok("alice", "status", authStatus)
	// A new password, and the end of a user, end tokens.
	p.ok("root", "password", userPassword("alice", "new"))
	p.refused("alice", invalidAuthToken, "get oneself", userGet("alice"))
	if err := p.login("alice", "alice-password"); err == nil {
		t.Error("login with the old password")
	}
	if err := p.login("alice", "new"); err != nil {
		t.Fatal(err)
	}
	p.refused("root", noPasswordUser, "hash as given", func(c caller) (proto.Message, error) {
		return c.auth().UserChangePassword(c.ctx, &pb.AuthUserChangePasswordRequest{Name: "alice", HashedPassword: "####"})
	})
	p.ok("root", "no password given", userPassword("alice", ""))
	if err := p.login("alice", ""); err == nil {
		t.Error("login without a hash")
	}
	p.ok("root", "delete", userDelete("alice"))
	p.refused("alice", invalidAuthToken, "get oneself", userGet("alice"))
	p.ok("root", "delete role", roleDelete("reader"))
	p.ok("root", "disable", authDisable)
	p.ok("root", "status", authStatus)
	p.ok(forger, "list while disabled", userList)
	p.ok(nobody, "revoke while disabled", revokeRole("root", "root"))
	p.ok(nobody, "delete while disabled", userDelete("root"))
	p.ok(nobody, "status", authStatus)
	for _, text := range allTexts {
		if p.texts[text] == 0 {
			t.Errorf("neither server ever said %q", text)
		}
	}
	t.Logf("%d calls, %d texts", p.calls, len(p.texts))
}

// Each kind of call by root, a user who may, one who may not, nobody, and with a bad token.
func TestEachCallAsksForItsPermission(t *testing.T) {
	p := startPair(t)
	p.enable()
	for _, name := range []string{"reader", "writer", "both", "nothing"} {
		p.user(name)
	}
	p.ok("root", "grant", grantPermission("reader", authpb.READ, "a", "c"))
	p.ok("root", "grant", grantPermission("writer", authpb.WRITE, "a", "c"))
	p.ok("root", "grant", grantPermission("both", authpb.READWRITE, "a", "b"))
	p.ok("root", "grant", grantPermission("both", authpb.READWRITE, "b", "c"))
	users := []string{"root", "reader", "writer", "both", "nothing", nobody, forger}
	for _, key := range []string{"a", "b", "d"} {
		p.ok("root", "put", putOf(&pb.PutRequest{Key: []byte(key), Value: []byte("secret")}))
	}
	grant := func(id int64) call {
		return func(c caller) (proto.Message, error) {
			return c.lease().LeaseGrant(c.ctx, &pb.LeaseGrantRequest{ID: id, TTL: 6000})
		}
	}
	for id := int64(1); id <= 4; id++ {
		p.ok("root", "grant", grant(id))
	}
	p.ok("root", "put on 1", putOf(&pb.PutRequest{Key: []byte("a"), Value: []byte("secret"), Lease: 1}))
	p.ok("root", "put on 2", putOf(&pb.PutRequest{Key: []byte("d"), Value: []byte("secret"), Lease: 2}))
	nest := func(depth int, op *pb.RequestOp) *pb.TxnRequest {
		txn := &pb.TxnRequest{Failure: []*pb.RequestOp{op}}
		for range depth {
			inner := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}
			txn = &pb.TxnRequest{Success: []*pb.RequestOp{inner}}
		}
		return txn
	}
	ops := map[string]*pb.RequestOp{}
	reads := map[string]*pb.RangeRequest{
		"get":        {Key: []byte("a")},
		"get d":      {Key: []byte("d")},
		"range":      {Key: []byte("a"), RangeEnd: []byte("c")},
		"range past": {Key: []byte("a"), RangeEnd: []byte("c\x00")},
		"range from": {Key: []byte("a"), RangeEnd: []byte("\x00")},
		"range none": {Key: []byte("aa"), RangeEnd: []byte("a")},
		"none of d":  {Key: []byte("d"), RangeEnd: []byte("a")},
		"all":        {Key: []byte("\x00"), RangeEnd: []byte("\x00")},
		"count":      {Key: []byte("a"), RangeEnd: []byte("d"), CountOnly: true},
		"serial":     {Key: []byte("a"), RangeEnd: []byte("d"), Serializable: true},
	}
	for name, req := range reads {
		ops[name] = &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: req}}
		for _, user := range users {
			_, _ = p.do(user, name, func(c caller) (proto.Message, error) { return c.kv().Range(c.ctx, req) })
			_, _ = p.do(user, "stream "+name, func(c caller) (proto.Message, error) { return rangeStream(c, req) })
			_, _ = p.do(user, "watch "+name, func(c caller) (proto.Message, error) {
				return watch(c, &pb.WatchCreateRequest{Key: req.Key, RangeEnd: req.RangeEnd})
			})
			_, _ = p.do(user, "compare "+name, func(c caller) (proto.Message, error) {
				compare := &pb.Compare{Key: req.Key, RangeEnd: req.RangeEnd, TargetUnion: &pb.Compare_Version{}}
				return c.kv().Txn(c.ctx, &pb.TxnRequest{Compare: []*pb.Compare{compare}})
			})
		}
	}
	for _, user := range users {
		_, _ = p.do(user, "watch from the past", func(c caller) (proto.Message, error) {
			return watch(c, &pb.WatchCreateRequest{Key: []byte("d"), StartRevision: -1})
		})
		_, _ = p.do(user, "watch without key", func(c caller) (proto.Message, error) {
			return watch(c, &pb.WatchCreateRequest{})
		})
		_, _ = p.do(user, "watch everything", func(c caller) (proto.Message, error) {
			return watch(c, &pb.WatchCreateRequest{RangeEnd: []byte("\x00")})
		})
	}
	puts := map[string]*pb.PutRequest{
		"put":            {Key: []byte("a"), Value: []byte("1")},
		"put d":          {Key: []byte("d"), Value: []byte("1")},
		"put prev":       {Key: []byte("a"), Value: []byte("2"), PrevKv: true},
		"put own lease":  {Key: []byte("b"), Value: []byte("3"), Lease: 1},
		"put d's lease":  {Key: []byte("b"), Value: []byte("3"), Lease: 2},
		"put free lease": {Key: []byte("b"), Value: []byte("3"), Lease: 3},
		"put no lease":   {Key: []byte("b"), Value: []byte("3"), Lease: 99},
		"ignore value":   {Key: []byte("b"), IgnoreValue: true, PrevKv: true},
	}
	for name, req := range puts {
		ops[name] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: req}}
		for _, user := range users {
			_, _ = p.do(user, name, putOf(req))
		}
	}
	deletes := map[string]*pb.DeleteRangeRequest{
		"delete":      {Key: []byte("aa")},
		"delete d":    {Key: []byte("dd")},
		"delete all":  {Key: []byte("c"), RangeEnd: []byte("\x00")},
		"delete prev": {Key: []byte("aa"), RangeEnd: []byte("ab"), PrevKv: true},
	}
	for name, req := range deletes {
		ops[name] = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: req}}
		for _, user := range users {
			_, _ = p.do(user, name, func(c caller) (proto.Message, error) { return c.kv().DeleteRange(c.ctx, req) })
		}
	}
	// In a branch that is not taken, at each depth, alone and beside a put of one's own.
	for name, op := range ops {
		for depth := range 3 {
			for _, user := range users {
				txn := nest(depth, op)
				_, _ = p.do(user, fmt.Sprintf("txn %d %s", depth, name), func(c caller) (proto.Message, error) {
					return c.kv().Txn(c.ctx, txn)
				})
				own := &pb.PutRequest{Key: []byte("b"), Value: []byte("own")}
				txn = proto.Clone(txn).(*pb.TxnRequest)
				txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: own}})
				_, _ = p.do(user, fmt.Sprintf("put and txn %d %s", depth, name), func(c caller) (proto.Message, error) {
					return c.kv().Txn(c.ctx, txn)
				})
			}
		}
	}
	for _, user := range users {
		for id := int64(1); id <= 5; id++ {
			for _, keys := range []bool{false, true} {
				_, _ = p.do(user, fmt.Sprintf("time to live %d %v", id, keys), func(c caller) (proto.Message, error) {
					return c.lease().LeaseTimeToLive(c.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
				})
			}
			_, _ = p.do(user, fmt.Sprintf("keep alive %d", id), func(c caller) (proto.Message, error) { return keepAlive(c, id) })
		}
		_, _ = p.do(user, "leases", func(c caller) (proto.Message, error) {
			return c.lease().LeaseLeases(c.ctx, &pb.LeaseLeasesRequest{})
		})
		for _, id := range []int64{4, 2, 77} {
			if user != "root" {
				_, _ = p.do(user, fmt.Sprintf("revoke %d", id), func(c caller) (proto.Message, error) {
					return c.lease().LeaseRevoke(c.ctx, &pb.LeaseRevokeRequest{ID: id})
				})
			}
		}
		_, _ = p.do(user, "grant", grant(int64(100+len(user))))
		for name, call := range adminCalls {
			_, _ = p.do(user, name, call)
		}
	}
	t.Logf("%d calls, %d texts", p.calls, len(p.texts))
}

func putOf(req *pb.PutRequest) call {
	return func(c caller) (proto.Message, error) { return c.kv().Put(c.ctx, req) }
}

// adminCalls are the calls without keys; those that would change the pair for good ask for what cannot be.
var adminCalls = map[string]call{
	"status": func(c caller) (proto.Message, error) { return c.maint().Status(c.ctx, &pb.StatusRequest{}) },
	"alarm get": func(c caller) (proto.Message, error) {
		return c.maint().Alarm(c.ctx, &pb.AlarmRequest{})
	},
	"alarm activate": func(c caller) (proto.Message, error) {
		return c.maint().Alarm(c.ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE})
	},
	"alarm deactivate": func(c caller) (proto.Message, error) {
		req := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 1, Alarm: pb.AlarmType_NOSPACE}
		return c.maint().Alarm(c.ctx, req)
	},
	"defragment": func(c caller) (proto.Message, error) { return c.maint().Defragment(c.ctx, &pb.DefragmentRequest{}) },
	"hash":       func(c caller) (proto.Message, error) { return c.maint().Hash(c.ctx, &pb.HashRequest{}) },
	"hashkv":     func(c caller) (proto.Message, error) { return c.maint().HashKV(c.ctx, &pb.HashKVRequest{}) },
	"move leader": func(c caller) (proto.Message, error) {
		return c.maint().MoveLeader(c.ctx, &pb.MoveLeaderRequest{TargetID: 1})
	},
	"compact": func(c caller) (proto.Message, error) {
		return c.kv().Compact(c.ctx, &pb.CompactionRequest{Revision: 1 << 40})
	},
	"member list": func(c caller) (proto.Message, error) {
		return c.cluster().MemberList(c.ctx, &pb.MemberListRequest{Linearizable: true})
	},
	"member add": func(c caller) (proto.Message, error) {
		return c.cluster().MemberAdd(c.ctx, &pb.MemberAddRequest{PeerURLs: []string{"nonsense"}})
	},
	"member remove": func(c caller) (proto.Message, error) {
		return c.cluster().MemberRemove(c.ctx, &pb.MemberRemoveRequest{ID: 1})
	},
	"member update": func(c caller) (proto.Message, error) {
		return c.cluster().MemberUpdate(c.ctx, &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}})
	},
	"member promote": func(c caller) (proto.Message, error) {
		return c.cluster().MemberPromote(c.ctx, &pb.MemberPromoteRequest{ID: 1})
	},
}
