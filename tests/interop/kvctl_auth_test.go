package interop

import (
	"slices"
	"testing"
)

// asRoot runs commands as the user root, whose password the steps set.
func asRoot(args ...string) (out []step) {
	for _, a := range args {
		out = append(out, step{args: a, env: "ETCDCTL_USER=root:toor"})
	}
	return out
}

func asUser(user string, args ...string) (out []step) {
	for _, a := range args {
		out = append(out, step{args: a, env: "ETCDCTL_USER=" + user})
	}
	return out
}

// inEachForm runs a writing command, whose answer is the same each time, in each output form.
func inEachForm(user, args string) (out []step) {
	for _, form := range []string{"simple", "json", "fields", "protobuf", "table"} {
		out = append(out, asUser(user, args+" -w "+form)...)
	}
	return out
}

var authSteps = slices.Concat(
	writes("auth status", "auth status extra", "auth enable extra", "auth disable extra", "auth disable",
		"auth enable"),
	// users
	writes("user list", "user list x", "user add", "user add a b", "user add :x", "user add root:toor", "user add root:toor",
		"user add other --new-user-password=word", "user add cert --no-password", "user add n:x:y",
		"user get", "user get root", "user get ghost", "user delete", "user delete ghost", "user delete n"),
	[]step{{args: "user add typed --interactive=false", stdin: "word more\n"},
		{args: "user passwd other --interactive=false", stdin: "new\n"},
		{args: "user passwd ghost --interactive=false", stdin: "new\n"}, {args: "user passwd"}},
	// roles
	writes("role list", "role list x", "role add", "role add r", "role add r", "role add empty", "role get", "role get ghost",
		"role get root", "role delete", "role delete ghost",
		"role grant-permission", "role grant-permission r read", "role grant-permission r peek k",
		"role grant-permission ghost read k", "role grant-permission r read k", "role grant-permission r WRITE k2",
		"role grant-permission r readwrite a c", "role grant-permission r readwrite dir/ --prefix",
		"role grant-permission r read z --from-key", "role grant-permission r read b a",
		"role grant-permission r read x --prefix --from-key", "role grant-permission r read x y --prefix",
		"role grant-permission r read x y --from-key", "role grant-permission r read  --prefix --from-key",
		"role revoke-permission", "role revoke-permission r", "role revoke-permission r ghost",
		"role revoke-permission ghost k", "role revoke-permission r k", "role grant-permission r read k",
		"user grant-role", "user grant-role other", "user grant-role other r", "user grant-role other r",
		"user grant-role ghost r", "user grant-role other ghost", "user revoke-role", "user revoke-role other empty",
		"user revoke-role ghost r", "user get other", "user get other --detail", "user get root --detail"),
	inEachForm("", "role get r"), inEachForm("", "role list"), inEachForm("", "user get other"),
	inEachForm("", "user list"), inEachForm("", "auth status"), inEachForm("", "user grant-role other r"),
	inEachForm("", "user passwd cert --interactive=false"), inEachForm("", "role add form"), inEachForm("", "role delete form"),
	inEachForm("", "user add form --no-password"), inEachForm("", "user delete form"),
	inEachForm("", "user revoke-role other r"), inEachForm("", "role grant-permission r read each"),
	inEachForm("", "role revoke-permission r each"),
	writes("role grant-permission r readwrite  --prefix", "role get r", "role revoke-permission r  --prefix",
		"role revoke-permission r a c", "role revoke-permission r z --from-key", "role grant-permission r read ",
		"role get r", "role grant-permission r readwrite a c"),
	// enabled: root gets the root role on the way
	writes("user grant-role other r", "auth enable", "auth enable", "get a", "put a 1", "user list", "auth status", "lease list",
		"member list", "endpoint status -w json", "endpoint health", "alarm list", "compaction 1"),
	asRoot("auth status", "user list", "user get root", "user get root --detail", "role get root", "role list", "put a 1", "put b 2",
		"put x 3", "get  --prefix", "user delete root", "role delete root", "user revoke-role root root", "alarm list"),
	asUser("other:new", "get a", "put a 2", "put a 3 --prev-kv", "get a c", "get  --prefix", "put x 4", "get x", "user get other",
		"role get r", "user list", "role get root", "auth disable", "alarm list", "compaction 2", "del a", "del a x", "watch x",
		"user get other --detail"),
	asUser("other:wrong", "get a"), asUser("ghost:x", "get a"),
	// Go's client has no name for this error, so etcdctl shows how it travels.
	[]step{{args: "get a", env: "ETCDCTL_USER=cert:x", words: true}},
	[]step{{args: "get a --user=root --password=toor"}, {args: "get a --user=other:new"},
		{args: "put x 1 --user=other:new"}, {args: "get a --auth-jwt-token=nonsense"},
		{args: "get a --user=root:toor --auth-jwt-token=nonsense"}},
	[]step{{args: "txn", stdin: "\n\nget x\n\n", env: "ETCDCTL_USER=other:new"}},
	asRoot("user passwd other --interactive=false", "user delete other", "auth disable"),
	writes("auth status", "get a", "user list"),
)

func TestKvctlAuth(t *testing.T) {
	servers(t, func(t *testing.T, label, bin string) {
		kvctl := newClient(t, asEtcdctl(t), start(t, label, bin, nil))
		etcdctl := newClient(t, etcdctlBin, start(t, label, bin, nil))
		for _, s := range authSteps {
			checkStep(t, s, etcdctl, kvctl)
		}
		t.Logf("%d command lines compared", len(authSteps))
	})
}
