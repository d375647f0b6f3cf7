package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"sort"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// How callers prove who they are.
const (
	authOff    = "off"
	authSimple = "simple"
	authJWT    = "jwt"
)

// caller is whoever sends a request. Each side has its own token.
type caller struct {
	name   string // for messages; nobody has none
	tokens [2]string
	key    string // of the metadata; "" is token
	prefix string
	cert   string // common name of another client certificate
	root   bool
	given  int // mutations of users and roles when the token was given
}

func (c *caller) metadata(side int, md metadata.MD) metadata.MD {
	if c == nil || c.tokens[side] == "" {
		return md
	}
	out := metadata.Join(md)
	key := c.key
	if key == "" {
		key = "token"
	}
	out.Set(key, c.prefix+c.tokens[side])
	return out
}

// forged is a caller with a token that nobody gave out.
func forged(token string) *caller {
	return &caller{name: "a forger", tokens: [2]string{token, token}}
}

var nobody = &caller{}

// unnamed is the common name of the certificate without one; "" would be the connection's own.
const unnamed = "(none)"

// certNames are the common names of the client certificates that a run with TLS has beside its own.
var certNames = []string{"root", "reader", "both", "u0", unnamed}

type permission struct{ key, end string }

// authState is what the reference's answers tell about users and roles.
type authState struct {
	on        bool
	passwords map[string]string // of users that have one
	roles     map[string][]permission
	current   map[string]*caller // with the newest token of a user
	old       []*caller          // with tokens that ended
	root      *caller            // always works while auth is on
	mutations int
}

func newAuthState() authState {
	return authState{passwords: map[string]string{}, roles: map[string][]permission{}, current: map[string]*caller{}}
}

var (
	fixedUsers = []string{"reader", "writer", "both", "all", "nothing"}
	looseUsers = []string{"u0", "u1", "u2"}
	looseRoles = []string{"r0", "r1"}
)

// permissionsMax: beyond twelve etcd's sort of a role's permissions is not stable.
const permissionsMax = 11

func rootPassword(n int) string { return fmt.Sprintf("toor%d", n) }

// privileged is someone who may do everything.
func (p *pair) privileged() (*caller, error) {
	if !p.auth.on {
		return nobody, nil
	}
	if p.auth.root != nil && (p.config.auth == authSimple || p.auth.root.given == p.auth.mutations) {
		return p.auth.root, nil
	}
	root := &caller{name: "root", root: true, given: p.auth.mutations}
	for i := range p.sides {
		ctx, cancel := p.context(nil)
		req := &pb.AuthenticateRequest{Name: "root", Password: p.auth.passwords["root"]}
		resp, err := pb.NewAuthClient(p.endOf(i, 1, nil).conn).Authenticate(ctx, req)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%s: root cannot log in: %w", p.sides[i].label, err)
		}
		root.tokens[i] = resp.Token
	}
	p.auth.root = root
	return root, nil
}

// retire moves a user's token to the old ones.
func (p *pair) retire(user string) {
	if c := p.auth.current[user]; c != nil {
		delete(p.auth.current, user)
		gone := *c
		gone.name, gone.root = "an old token of "+user, false
		p.auth.old = append(p.auth.old, &gone)
		p.auth.old = p.auth.old[max(0, len(p.auth.old)-8):]
	}
}

// anyone draws who sends the next request.
func (p *pair) anyone() (*caller, error) {
	if p.config.auth == authOff {
		return nobody, nil
	}
	if !p.auth.on {
		switch n := p.rng.IntN(100); {
		case n < 90:
			return nobody, nil
		case n < 95 && len(p.auth.old) > 0:
			return pick(p, p.auth.old...), nil
		default:
			return p.forger(), nil
		}
	}
	n := p.rng.IntN(100)
	if p.config.tls && n < 12 {
		name := pick(p, certNames...)
		return &caller{name: "certificate " + name, cert: name}, nil
	}
	switch {
	case n < 50:
		return p.privileged()
	case n < 88:
		return p.user(pick(p, append(p.knownUsers(), "all", "both", "writer")...))
	case n < 92:
		return nobody, nil
	case n < 95 || len(p.auth.old) == 0:
		return p.forger(), nil
	default:
		return pick(p, p.auth.old...), nil
	}
}

func (p *pair) forger() *caller {
	return forged(pick(p, "nevergivenouttoyou.1", "garbage", "Bearer ", "abcdefghijklmnop.x", "a.b.c", "eyJhbGciOiJFUzI1NiJ9.e30.AAAA"))
}

func (p *pair) knownUsers() []string {
	users := make([]string, 0, len(p.auth.passwords))
	for user := range p.auth.passwords {
		if user != "root" {
			users = append(users, user)
		}
	}
	sort.Strings(users)
	return users
}

// user is a caller with the newest token of a user, which is first fetched if there is none or, mostly, if it is old.
func (p *pair) user(name string) (*caller, error) {
	c := p.auth.current[name]
	if c != nil && (c.given == p.auth.mutations || p.chance(25)) {
		return c, nil
	}
	c, err := p.login(name, p.auth.passwords[name])
	if err != nil || c != nil {
		return c, err
	}
	return nobody, nil
}

// login compares a login and returns the caller, nil if it is refused.
func (p *pair) login(name, password string) (*caller, error) {
	fresh := &caller{name: name, given: p.auth.mutations}
	if p.chance(30) {
		fresh.key = "authorization"
		fresh.prefix = pick(p, "", "Bearer ")
	}
	adopt := func(side int, resp proto.Message) string {
		fresh.tokens[side] = resp.(*pb.AuthenticateResponse).Token
		return ""
	}
	req := &pb.AuthenticateRequest{Name: name, Password: password}
	a, err := p.do(call{rpc: "Auth.Authenticate", req: req, who: nobody, adopt: adopt})
	if err != nil || a.resp == nil {
		return nil, err
	}
	p.retire(name)
	p.auth.current[name] = fresh
	return fresh, nil
}

// learnAuth follows users and roles.
func (p *pair) learnAuth(c call, a answer) error {
	if a.resp == nil {
		return nil
	}
	s := &p.auth
	switch r := c.req.(type) {
	case *pb.AuthEnableRequest:
		s.on = true
		return nil
	case *pb.AuthDisableRequest:
		s.on = false
		p.forgetTokens()
	case *pb.AuthUserAddRequest:
		if !r.GetOptions().GetNoPassword() {
			s.passwords[r.Name] = r.Password
		}
	case *pb.AuthUserDeleteRequest:
		delete(s.passwords, r.Name)
		p.retire(r.Name)
	case *pb.AuthUserChangePasswordRequest:
		s.passwords[r.Name] = r.Password
		p.retire(r.Name)
		if r.Name == "root" {
			s.root = nil
		}
	case *pb.AuthRoleAddRequest:
		s.roles[r.Name] = nil
	case *pb.AuthRoleDeleteRequest:
		delete(s.roles, r.Role)
	case *pb.AuthRoleGrantPermissionRequest:
		perm := permission{string(r.GetPerm().GetKey()), string(r.GetPerm().GetRangeEnd())}
		if !slices.Contains(s.roles[r.Name], perm) {
			s.roles[r.Name] = append(s.roles[r.Name], perm)
		}
	case *pb.AuthRoleRevokePermissionRequest:
		perm := permission{string(r.Key), string(r.RangeEnd)}
		s.roles[r.Role] = slices.DeleteFunc(s.roles[r.Role], func(x permission) bool { return x == perm })
	case *pb.AuthUserGrantRoleRequest, *pb.AuthUserRevokeRoleRequest:
	default:
		return nil
	}
	s.mutations++
	return nil
}

// forgetTokens is called when all of them end.
func (p *pair) forgetTokens() {
	p.auth.root = nil
	users := make([]string, 0, len(p.auth.current))
	for user := range p.auth.current {
		users = append(users, user)
	}
	sort.Strings(users)
	for _, user := range users {
		p.retire(user)
	}
}

// straighten makes a range that holds no key a single key: what those may is not specified (docs/differences.md).
func straighten(req proto.Message) {
	eachField(req.ProtoReflect(), func(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		key := m.Descriptor().Fields().ByName("key")
		if fd.Name() != "range_end" || key == nil || m.Descriptor().FullName() == "authpb.Permission" {
			return
		}
		end := string(v.Bytes())
		if end != "\x00" && end <= string(m.Get(key).Bytes()) {
			m.Clear(fd)
		}
	})
}

// authPrelude sends what only makes sense before there is any user.
func (p *pair) authPrelude() error {
	if p.config.auth == authOff {
		return nil
	}
	for _, c := range []call{
		{rpc: "Auth.AuthStatus", req: &pb.AuthStatusRequest{}},
		{rpc: "Auth.Authenticate", req: &pb.AuthenticateRequest{Name: "root", Password: "x"}},
		{rpc: "Auth.AuthDisable", req: &pb.AuthDisableRequest{}},
		{rpc: "Auth.AuthEnable", req: &pb.AuthEnableRequest{}},
		{rpc: "Auth.UserList", req: &pb.AuthUserListRequest{}},
		{rpc: "Auth.RoleList", req: &pb.AuthRoleListRequest{}},
		{rpc: "Auth.UserAdd", req: &pb.AuthUserAddRequest{Name: "root", Password: rootPassword(0)}},
		{rpc: "Auth.AuthEnable", req: &pb.AuthEnableRequest{}},
		{rpc: "Auth.RoleGet", req: &pb.AuthRoleGetRequest{Role: "root"}},
		{rpc: "Auth.UserGrantRole", req: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		{rpc: "Auth.UserGet", req: &pb.AuthUserGetRequest{Name: "root"}},
	} {
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	return nil
}

// Auth is on for two parts of a run, from and until these parts of the requests.
var authParts = [2][2]float64{{0.08, 0.45}, {0.52, 0.97}}

func (p *pair) part() float64 { return float64(p.requests) / float64(p.config.requests) }

// authProgress is how much of the time with auth has passed; it ends a little before that does.
func (p *pair) authProgress() float64 {
	passed, all := 0.0, 0.0
	for _, on := range authParts {
		passed += max(0, min(p.part(), on[1])-on[0])
		all += on[1] - on[0]
	}
	return 1.6 * passed / all
}

// authPhase turns auth on and off on the way through a run.
func (p *pair) authPhase() error {
	if p.config.auth == authOff {
		return nil
	}
	want := false
	for _, on := range authParts {
		want = want || on[0] < p.part() && p.part() < on[1]
	}
	if want == p.auth.on {
		return nil
	}
	if !want {
		_, err := p.do(call{rpc: "Auth.AuthDisable", req: &pb.AuthDisableRequest{}})
		return err
	}
	return p.enableAuth()
}

// enableAuth makes root, the users that a run always has and their roles, and turns auth on.
func (p *pair) enableAuth() error {
	grant := func(role string, kind authpb.Permission_Type, key, end string) call {
		perm := &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}
		return call{rpc: "Auth.RoleGrantPermission", req: &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: perm}}
	}
	password := rootPassword(p.rng.IntN(100))
	calls := []call{
		{rpc: "Auth.UserAdd", req: &pb.AuthUserAddRequest{Name: "root", Password: password}},
		{rpc: "Auth.UserChangePassword", req: &pb.AuthUserChangePasswordRequest{Name: "root", Password: password}},
		{rpc: "Auth.UserGrantRole", req: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}},
		{rpc: "Auth.AuthEnable", req: &pb.AuthEnableRequest{}},
	}
	for _, name := range fixedUsers {
		calls = append(calls,
			call{rpc: "Auth.UserAdd", req: &pb.AuthUserAddRequest{Name: name, Password: name}},
			call{rpc: "Auth.RoleAdd", req: &pb.AuthRoleAddRequest{Name: name}},
			call{rpc: "Auth.UserGrantRole", req: &pb.AuthUserGrantRoleRequest{User: name, Role: name}})
	}
	calls = append(calls,
		grant("reader", authpb.READ, "k/", "k0"),
		grant("writer", authpb.WRITE, "k/", "k0"),
		grant("both", authpb.READWRITE, "k/a/", "k/c/"),
		grant("both", authpb.READWRITE, "k/c/1", ""),
		grant("all", authpb.READWRITE, "\x00", "\x00"))
	for _, c := range calls {
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	if !p.auth.on {
		return fmt.Errorf("auth cannot be turned on")
	}
	return nil
}

// authStep sends something to the Auth service.
func (p *pair) authStep() error {
	who, err := p.anyone()
	if p.auth.on && p.chance(60) {
		who, err = p.privileged()
	}
	if err != nil {
		return err
	}
	rpc, req := p.authRequest()
	if rpc == "Auth.Authenticate" {
		r := req.(*pb.AuthenticateRequest)
		_, err := p.login(r.Name, r.Password)
		return err
	}
	_, err = p.do(call{rpc: rpc, req: req, md: p.metadata(), who: who})
	return err
}

func (p *pair) authRequest() (string, proto.Message) {
	user := pick(p, slices.Concat(fixedUsers, looseUsers, looseUsers, looseUsers, []string{"root", "ghost"})...)
	role := pick(p, slices.Concat(fixedUsers, looseRoles, looseRoles, looseRoles, looseRoles, []string{"root", "ghost"})...)
	if p.chance(2) {
		user = ""
	}
	if p.chance(2) {
		role = ""
	}
	n := p.rng.IntN(100)
	if 20 <= n && n < 32 && user == "nothing" || 46 <= n && n < 64 && role == "nothing" {
		user, role = "ghost", "ghost" // somebody may nothing throughout
	}
	switch {
	case n < 12:
		return "Auth.UserAdd", p.userAdd(user)
	case n < 15:
		return "Auth.UserDelete", &pb.AuthUserDeleteRequest{Name: user}
	case n < 20:
		return "Auth.UserChangePassword", p.changePassword(user)
	case n < 32:
		return "Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: user, Role: role}
	case n < 36:
		return "Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role}
	case n < 44:
		return "Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: role}
	case n < 46:
		return "Auth.RoleDelete", &pb.AuthRoleDeleteRequest{Role: role}
	case n < 64:
		return p.grantOrRevoke(role)
	case n < 70:
		return "Auth.RoleRevokePermission", p.revokePermission(role)
	case n < 77:
		return "Auth.UserGet", &pb.AuthUserGetRequest{Name: user}
	case n < 80:
		return "Auth.UserList", &pb.AuthUserListRequest{}
	case n < 87:
		return "Auth.RoleGet", &pb.AuthRoleGetRequest{Role: role}
	case n < 90:
		return "Auth.RoleList", &pb.AuthRoleListRequest{}
	case n < 93:
		return "Auth.AuthStatus", &pb.AuthStatusRequest{}
	case n < 94 && p.auth.on:
		return "Auth.AuthEnable", &pb.AuthEnableRequest{}
	default:
		password := p.auth.passwords[user]
		if p.chance(30) {
			password = pick(p, "", "wrong", user)
		}
		return "Auth.Authenticate", &pb.AuthenticateRequest{Name: user, Password: password}
	}
}

func (p *pair) userAdd(user string) *pb.AuthUserAddRequest {
	r := &pb.AuthUserAddRequest{Name: user, Password: pick(p, user, "secret", "")}
	if user == "root" {
		r.Password = rootPassword(p.rng.IntN(100))
		return r // a run needs it
	}
	switch n := p.rng.IntN(100); {
	case n < 8:
		r.Options = &authpb.UserAddOptions{NoPassword: true}
	case n < 12:
		r.Options = &authpb.UserAddOptions{}
	case n < 16:
		r.HashedPassword = hashOf(r.Password) // replaced by the server
	}
	return r
}

func (p *pair) changePassword(user string) *pb.AuthUserChangePasswordRequest {
	r := &pb.AuthUserChangePasswordRequest{Name: user, Password: pick(p, user, "secret")}
	if user == "root" {
		r.Password = rootPassword(p.rng.IntN(100))
		return r
	}
	if p.chance(15) {
		r.Password = ""
		r.HashedPassword = pick(p, "", "####", hashOf("secret"))
	}
	return r
}

// hashOf is a password as a client may send it hashed.
func hashOf(password string) string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		panic(err) // too long
	}
	return base64.StdEncoding.EncodeToString(hash)
}

func (p *pair) grantOrRevoke(role string) (string, proto.Message) {
	perms := p.auth.roles[role]
	if len(perms) >= permissionsMax {
		perm := pick(p, perms...)
		return "Auth.RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: role, Key: []byte(perm.key), RangeEnd: []byte(perm.end)}
	}
	r := &pb.AuthRoleGrantPermissionRequest{Name: role}
	if p.chance(3) {
		return "Auth.RoleGrantPermission", r
	}
	r.Perm = &authpb.Permission{PermType: authpb.Permission_Type(p.rng.IntN(3))}
	if p.chance(2) {
		r.Perm.PermType = 7
	}
	r.Perm.Key, r.Perm.RangeEnd = p.keyRange()
	return "Auth.RoleGrantPermission", r
}

func (p *pair) revokePermission(role string) *pb.AuthRoleRevokePermissionRequest {
	r := &pb.AuthRoleRevokePermissionRequest{Role: role}
	r.Key, r.RangeEnd = p.keyRange()
	if perms := p.auth.roles[role]; len(perms) > 0 && p.chance(70) && !slices.Contains(fixedUsers, role) {
		perm := pick(p, perms...)
		r.Key, r.RangeEnd = []byte(perm.key), []byte(perm.end)
	}
	return r
}

// byRoot sends calls that only make sense while auth is on.
func (p *pair) byRoot(calls ...call) func() error {
	return func() error {
		if !p.auth.on {
			return nil
		}
		for _, c := range calls {
			c.req = proto.Clone(c.req)
			if _, err := p.do(c); err != nil {
				return err
			}
		}
		return nil
	}
}

// authCases are the directed cases of a run with auth: each refusal by name, and each RPC by those who may not.
func (p *pair) authCases() []func() error {
	if p.config.auth == authOff {
		return nil
	}
	one := func(rpc string, req proto.Message) func() error { return p.byRoot(call{rpc: rpc, req: req}) }
	perm := func(role, key, end string, kind authpb.Permission_Type) proto.Message {
		return &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}}
	}
	const absent = "never added" // the generator adds what it names
	cases := []func() error{
		one("Auth.UserAdd", &pb.AuthUserAddRequest{Password: "x"}),
		one("Auth.UserAdd", &pb.AuthUserAddRequest{Name: "root", Password: "x"}),
		one("Auth.UserAdd", &pb.AuthUserAddRequest{Name: "long", Password: string(make([]byte, 73))}),
		one("Auth.UserDelete", &pb.AuthUserDeleteRequest{Name: absent}),
		one("Auth.UserDelete", &pb.AuthUserDeleteRequest{Name: "root"}),
		one("Auth.UserGet", &pb.AuthUserGetRequest{Name: absent}),
		one("Auth.UserGet", &pb.AuthUserGetRequest{Name: "reader"}),
		one("Auth.UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: absent, Password: "x"}),
		one("Auth.UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "u0", HashedPassword: "####"}),
		one("Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: absent, Role: "reader"}),
		one("Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "root", Role: absent}),
		one("Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: absent, Role: "reader"}),
		one("Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: absent}),
		one("Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"}),
		one("Auth.RoleAdd", &pb.AuthRoleAddRequest{}),
		one("Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: "reader"}),
		one("Auth.RoleDelete", &pb.AuthRoleDeleteRequest{Role: absent}),
		one("Auth.RoleDelete", &pb.AuthRoleDeleteRequest{Role: "root"}),
		one("Auth.RoleGet", &pb.AuthRoleGetRequest{Role: absent}),
		one("Auth.RoleGet", &pb.AuthRoleGetRequest{Role: "both"}),
		one("Auth.RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "reader"}),
		one("Auth.RoleGrantPermission", perm("reader", "", "b", authpb.READ)),
		one("Auth.RoleGrantPermission", perm("reader", "b", "a", authpb.READ)),
		one("Auth.RoleGrantPermission", perm(absent, "b", "", authpb.WRITE)),
		one("Auth.RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: "reader", Key: []byte("never"), RangeEnd: []byte("nevet")}),
		one("Auth.RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: absent, Key: []byte("a")}),
		p.byRoot(call{rpc: "Auth.RoleAdd", req: &pb.AuthRoleAddRequest{Name: "r9"}},
			call{rpc: "Auth.RoleGrantPermission", req: perm("r9", "a", "b", 7)},
			call{rpc: "Auth.RoleGrantPermission", req: perm("r9", "a", "b", authpb.READWRITE)},
			call{rpc: "Auth.RoleGet", req: &pb.AuthRoleGetRequest{Role: "r9"}},
			call{rpc: "Auth.RoleRevokePermission", req: &pb.AuthRoleRevokePermissionRequest{Role: "r9", Key: []byte("a"), RangeEnd: []byte("b")}},
			call{rpc: "Auth.RoleDelete", req: &pb.AuthRoleDeleteRequest{Role: "r9"}}),
		p.byRoot(call{rpc: "Auth.RoleAdd", req: &pb.AuthRoleAddRequest{Name: "root"}},
			call{rpc: "Auth.RoleGet", req: &pb.AuthRoleGetRequest{Role: "root"}}),
		p.byRoot(call{rpc: "Auth.UserAdd", req: &pb.AuthUserAddRequest{Name: "u9", Options: &authpb.UserAddOptions{NoPassword: true}}},
			call{rpc: "Auth.Authenticate", req: &pb.AuthenticateRequest{Name: "u9", Password: "x"}, who: nobody},
			call{rpc: "Auth.UserChangePassword", req: &pb.AuthUserChangePasswordRequest{Name: "u9", Password: "x", HashedPassword: hashOf("y")}},
			call{rpc: "Auth.Authenticate", req: &pb.AuthenticateRequest{Name: "u9", Password: "x"}, who: nobody},
			call{rpc: "Auth.UserDelete", req: &pb.AuthUserDeleteRequest{Name: "u9"}}),
		p.byRoot(call{rpc: "Auth.UserAdd", req: &pb.AuthUserAddRequest{Name: "u8", Password: "x", HashedPassword: hashOf("y"), Options: &authpb.UserAddOptions{}}},
			call{rpc: "Auth.Authenticate", req: &pb.AuthenticateRequest{Name: "u8", Password: "x"}, who: nobody},
			call{rpc: "Auth.Authenticate", req: &pb.AuthenticateRequest{Name: "u8", Password: "y"}, who: nobody},
			call{rpc: "Auth.UserGrantRole", req: &pb.AuthUserGrantRoleRequest{User: "u8", Role: "reader"}},
			call{rpc: "Auth.UserRevokeRole", req: &pb.AuthUserRevokeRoleRequest{Name: "u8", Role: "reader"}},
			call{rpc: "Auth.UserDelete", req: &pb.AuthUserDeleteRequest{Name: "u8"}}),
		one("Auth.Authenticate", &pb.AuthenticateRequest{Name: absent, Password: "x"}),
		one("Auth.AuthEnable", &pb.AuthEnableRequest{}),
		one("Auth.RoleList", &pb.AuthRoleListRequest{}),
		one("Auth.UserList", &pb.AuthUserListRequest{}),
		p.repairUsers,
		p.leasePermissions,
	}
	for _, probe := range p.probes() {
		cases = append(cases, func() error { return p.refusals(probe) })
	}
	return cases
}

// repairUsers gives the fixed users back what the generator may have taken.
func (p *pair) repairUsers() error {
	if !p.auth.on {
		return nil
	}
	return p.enableAuth()
}

// leasePermissions renews, looks at and revokes a lease with a key that its caller may not see.
func (p *pair) leasePermissions() error {
	if !p.auth.on {
		return nil
	}
	if err := p.enableAuth(); err != nil {
		return err
	}
	const id = int64(0x1ea5e)
	for _, c := range []call{
		{rpc: "Lease.LeaseGrant", req: &pb.LeaseGrantRequest{ID: id, TTL: leaseTTLMin}},
		{rpc: "KV.Put", req: &pb.PutRequest{Key: []byte("k/c/6"), Value: []byte("secret"), Lease: id}},
	} {
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	for _, name := range []string{"nothing", "both", "reader", "writer", "all"} {
		who, err := p.user(name)
		if err != nil {
			return err
		}
		for _, c := range []call{
			{rpc: "Lease.LeaseTimeToLive", req: &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}},
			{rpc: "Lease.LeaseTimeToLive", req: &pb.LeaseTimeToLiveRequest{ID: id}},
			{rpc: "Lease.LeaseLeases", req: &pb.LeaseLeasesRequest{}},
			{rpc: "KV.Put", req: &pb.PutRequest{Key: []byte("k/a/1"), Value: []byte("x"), Lease: id}},
			{rpc: "KV.Txn", req: &pb.TxnRequest{Success: []*pb.RequestOp{putOp(&pb.PutRequest{Key: []byte("k/a/1"), Lease: id})}}},
			{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: id}},
		} {
			c.who = who
			send := func() error { _, err := p.do(c); return err }
			if c.rpc == "Lease.LeaseLeases" {
				send = func() error { return p.listLeasesBy(c) }
			}
			if err := send(); err != nil {
				return err
			}
		}
		renew := call{rpc: "Lease.LeaseKeepAlive", req: &pb.LeaseKeepAliveRequest{ID: id}, who: who}
		if err := p.keepAliveBy(renew); err != nil {
			return err
		}
	}
	_, err := p.do(call{rpc: "Lease.LeaseRevoke", req: &pb.LeaseRevokeRequest{ID: id}})
	return err
}

// probe is one harmless request to an RPC.
type probe struct {
	rpc  string
	req  proto.Message
	send func(c call) error // nil for unary ones
}

func (p *pair) probes() []probe {
	k := []byte("k/a/0")
	return []probe{
		{"KV.Range", &pb.RangeRequest{Key: k}, nil},
		{"KV.Range", &pb.RangeRequest{Key: k, Serializable: true}, nil},
		{"KV.RangeStream", &pb.RangeRequest{Key: k}, p.rangeStreamBy},
		{"KV.Put", &pb.PutRequest{Key: k, Value: k, PrevKv: true}, nil},
		{"KV.DeleteRange", &pb.DeleteRangeRequest{Key: []byte("k/absent")}, nil},
		{"KV.Txn", &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: k})}}, nil},
		{"KV.Txn", &pb.TxnRequest{Failure: []*pb.RequestOp{putOp(&pb.PutRequest{Key: k})}}, nil},
		{"KV.Compact", &pb.CompactionRequest{Revision: -1}, nil},
		{"Watch.Watch", &pb.WatchCreateRequest{Key: k}, p.watchOnce},
		{"Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: 0x70000, TTL: leaseTTLMax + 1}, nil},
		{"Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: 0x70000}, nil},
		{"Lease.LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: 0x70000}, p.keepAliveBy},
		{"Lease.LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 0x70000, Keys: true}, nil},
		{"Lease.LeaseLeases", &pb.LeaseLeasesRequest{}, p.listLeasesBy},
		{"Cluster.MemberList", &pb.MemberListRequest{Linearizable: true}, nil},
		{"Cluster.MemberList", &pb.MemberListRequest{}, nil},
		{"Cluster.MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://PEER1"}}, nil},
		{"Cluster.MemberRemove", &pb.MemberRemoveRequest{ID: 5}, nil},
		{"Cluster.MemberUpdate", &pb.MemberUpdateRequest{ID: 5, PeerURLs: []string{"http://127.0.0.1:1"}}, nil},
		{"Cluster.MemberPromote", &pb.MemberPromoteRequest{ID: 5}, nil},
		{"Maintenance.Status", &pb.StatusRequest{}, nil},
		{"Maintenance.Hash", &pb.HashRequest{}, nil},
		{"Maintenance.HashKV", &pb.HashKVRequest{}, func(c call) error { c.member = 1; return p.hashKVBy(c) }},
		{"Maintenance.Defragment", &pb.DefragmentRequest{}, nil},
		{"Maintenance.Snapshot", &pb.SnapshotRequest{}, p.snapshotBy},
		{"Maintenance.Alarm", &pb.AlarmRequest{}, nil},
		{"Maintenance.Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 5, Alarm: pb.AlarmType_CORRUPT}, nil},
		{"Maintenance.MoveLeader", &pb.MoveLeaderRequest{TargetID: 5}, p.onLeader},
		{"Maintenance.Downgrade", &pb.DowngradeRequest{Version: "3.6"}, nil},
		{"Auth.AuthEnable", &pb.AuthEnableRequest{}, nil},
		{"Auth.AuthStatus", &pb.AuthStatusRequest{}, nil},
		{"Auth.UserAdd", &pb.AuthUserAddRequest{Name: "root", Password: "x"}, nil},
		{"Auth.UserGet", &pb.AuthUserGetRequest{Name: "root"}, nil},
		{"Auth.UserList", &pb.AuthUserListRequest{}, nil},
		{"Auth.UserDelete", &pb.AuthUserDeleteRequest{Name: "ghost"}, nil},
		{"Auth.UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "ghost", Password: "x"}, nil},
		{"Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "ghost", Role: "root"}, nil},
		{"Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: "ghost", Role: "root"}, nil},
		{"Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: "reader"}, nil},
		{"Auth.RoleGet", &pb.AuthRoleGetRequest{Role: "reader"}, nil},
		{"Auth.RoleList", &pb.AuthRoleListRequest{}, nil},
		{"Auth.RoleDelete", &pb.AuthRoleDeleteRequest{Role: "ghost"}, nil},
		{"Auth.RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "ghost", Perm: &authpb.Permission{Key: k}}, nil},
		{"Auth.RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: "ghost", Key: k}, nil},
	}
}

// refusals sends a probe as each of those who may not, and as the one with only rights to read.
func (p *pair) refusals(x probe) error {
	if !p.auth.on {
		return nil
	}
	callers := []*caller{nobody, p.forger()}
	if len(p.auth.old) > 0 {
		callers = append(callers, p.auth.old[len(p.auth.old)-1])
	}
	if p.config.tls {
		for _, name := range []string{unnamed, "reader", "root"} {
			callers = append(callers, &caller{name: "certificate " + name, cert: name})
		}
	}
	if p.config.auth == authJWT {
		stale, err := p.staleRoot()
		if err != nil {
			return err
		}
		callers = append(callers, stale)
	}
	for _, name := range []string{"nothing", "reader"} {
		who, err := p.user(name)
		if err != nil {
			return err
		}
		callers = append(callers, who)
	}
	for _, who := range callers {
		c := call{rpc: x.rpc, req: proto.Clone(x.req), who: who}
		if x.send != nil {
			if err := x.send(c); err != nil {
				return err
			}
			continue
		}
		if _, err := p.do(c); err != nil {
			return err
		}
	}
	return nil
}

// staleRoot is root with a token that names an older revision of users and roles.
func (p *pair) staleRoot() (*caller, error) {
	root, err := p.privileged()
	if err != nil {
		return nil, err
	}
	stale := *root
	stale.name, stale.root = "root with a token of before", false
	req := &pb.AuthUserChangePasswordRequest{Name: "both", Password: "both"}
	_, err = p.do(call{rpc: "Auth.UserChangePassword", req: req, who: root})
	return &stale, err
}

// watchOnce creates one watch on a stream of its own.
func (p *pair) watchOnce(c call) error {
	ws, err := p.openStreamOf(c.who, p.anywhere(), c.md)
	if err != nil || ws == nil {
		return err
	}
	if err := p.createWatch(ws, c.req.(*pb.WatchCreateRequest)); err != nil || ws.gone {
		return err
	}
	return p.closeStream(ws)
}

// asRoot is the context of a call of the test itself.
func (p *pair) asRoot(side int) (context.Context, context.CancelFunc, error) {
	who, err := p.privileged()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := p.context(who.metadata(side, nil))
	return ctx, cancel, nil
}
