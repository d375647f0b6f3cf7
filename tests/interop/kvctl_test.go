// Package interop compares kvctl with the real etcdctl: standard output byte by byte, and the exit code.
//
// Commands that only read run against one server by both clients, and nothing but measured times is masked. Commands
// that write run on a server of each client's own, both in the same state; there ids, addresses and sizes are masked.
// The servers are etcd and, if KVD_BIN is set, kvd.
package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"kvd.dev/interop/proc"
)

const stepTimeout = 60 * time.Second

var kvctlBin, etcdctlBin string

func TestMain(m *testing.M) {
	if reason := findClients(); reason != "" {
		fmt.Printf("SKIPPED interop: kvctl is not compared with etcdctl: %s\n", reason)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// findClients answers why there is nothing to compare, or "".
func findClients() string {
	kvctlBin, etcdctlBin = os.Getenv("KVCTL_BIN"), os.Getenv("ETCDCTL_BIN")
	if kvctlBin == "" && os.Getenv("KVD_BIN") != "" {
		kvctlBin = filepath.Join(filepath.Dir(os.Getenv("KVD_BIN")), "kvctl")
	}
	if kvctlBin == "" {
		return "set KVCTL_BIN, or KVD_BIN with kvctl beside it"
	}
	if etcdctlBin == "" {
		etcdctlBin = filepath.Join("bin", "etcdctl")
	}
	for _, bin := range []*string{&kvctlBin, &etcdctlBin} {
		if _, err := os.Stat(*bin); err != nil {
			return fmt.Sprintf("%v", err)
		}
		abs, err := filepath.Abs(*bin)
		if err != nil {
			return err.Error()
		}
		*bin = abs
	}
	return ""
}

// client is one of the two programs, with the server of its own.
type client struct {
	bin    string
	srv    *proc.Server
	leases []string // granted, in hexadecimal
	hide   []string // pairs for strings.NewReplacer: what is this server's own
}

// result is what a command left behind.
type result struct {
	code           int
	stdout, stderr string
}

// step is one command line; {lease} in it is the last lease granted on the server it runs against.
type step struct {
	args  string
	stdin string
	env   string
	// reads: the command changes nothing, so both clients run it on one server.
	reads bool
	// words: the error text is kvctl's own; otherwise it begins with etcdctl's.
	words bool
}

func reads(args ...string) (out []step) {
	for _, a := range args {
		out = append(out, step{args: a, reads: true})
	}
	return out
}

func writes(args ...string) (out []step) {
	for _, a := range args {
		out = append(out, step{args: a})
	}
	return out
}

// everyForm runs a reading command in each output form, with and without --hex.
func everyForm(args string) (out []step) {
	for _, form := range []string{"simple", "json", "fields", "protobuf", "table"} {
		out = append(out, reads(args+" -w "+form, args+" --hex -w "+form)...)
	}
	return out
}

// everyFormOf runs a writing command in each output form.
func everyFormOf(args string) (out []step) {
	for _, form := range []string{"simple", "json", "fields", "protobuf", "table"} {
		out = append(out, writes(args+" -w "+form)...)
	}
	return out
}

func txn(form, stdin string) step {
	return step{args: "txn -w " + form, stdin: stdin}
}

var steps = slices.Concat(
	reads("version", "endpoint status -w nonsense", "get a", "get", "get a --nonsense", "get a --limit=x", "nonsense"),
	// put
	writes("put a 1", "put a 2 --prev-kv", "put a -- -3", "put -- a -4", "put a -5", "put", "put a", "put a b c"),
	everyFormOf("put a 9 --prev-kv"), everyFormOf("put a 9"),
	[]step{{args: "put b", stdin: "from\nstandard\ninput"}},
	writes("put a --ignore-value", "put a x --ignore-value", "put absent --ignore-value", "put a x --ignore-lease",
		"put a x --lease=1234", "put a x --lease=zz", "put a x --lease=", "put a x --lease=0x10", "put  x"),
	writes("put dir/1 one", "put dir/2 two", "put dir/3 three", "put dir/2 zwei", "put é ü", "put html <&>"),
	[]step{{args: "put bin", stdin: "\x00\x01\x92p3\xfcK\"\\\t\n\u200b"}},
	// get
	everyForm("get a"), everyForm("get bin"), everyForm("get é"), everyForm("get dir/ --prefix"), everyForm("get absent"),
	everyForm("get html"), everyForm("get dir/ --prefix --limit=2"),
	reads("get dir/ --prefix --keys-only", "get dir/ --prefix --count-only", "get dir/ --prefix --count-only -w fields",
		"get dir/ --prefix --print-value-only", "get a -w json --print-value-only", "get dir/ --prefix --keys-only --count-only",
		"get dir/ --prefix --sort-by=VALUE --order=DESCEND", "get dir/ --prefix --sort-by=MODIFY", "get dir/ --prefix --sort-by=create",
		"get dir/ --prefix --sort-by=VERSION --order=DESCEND --limit=1", "get dir/ --prefix --order=descend",
		"get dir/ --prefix --sort-by=NONSENSE", "get dir/ --prefix --order=NONSENSE", "get b --from-key", "get dir/1 dir/3",
		"get dir/3 dir/1", "get a b c d", "get dir/1 dir/3 --prefix", "get a --prefix --from-key", "get a --rev=2", "get a --rev=-2",
		"get a --rev=1000", "get a --limit -1", "get a --limit 0x1", "get dir/ --prefix --min-mod-rev=20 --max-mod-rev=25",
		"get dir/ --prefix --min-create-rev=20 --max-create-rev=23", "get a --min-mod-rev=5 --max-mod-rev=3", "get a --consistency=s",
		"get a --consistency=x", "get  --prefix", "get  --from-key --limit=1", "get ", "get dir/ --prefix --stream -w json",
		"get dir/ --prefix=false", "get dir/ --prefix=maybe", "--hex get a", "-w json get a", "-w=json get a", "-wjson get a",
		"get a --write-out json --write-out fields", "get a --command-timeout=5", "get a -w nonsense", "get a --cacert="),
	[]step{{args: "get a", env: "ETCDCTL_HEX=true", reads: true}, {args: "get a", env: "ETCDCTL_WRITE_OUT=json", reads: true},
		{args: "get a --hex", env: "ETCDCTL_HEX=true", reads: true, words: true},
		{args: "get a --cacert /nope", reads: true, words: true}},
	// txn
	[]step{
		txn("simple", "mod(\"a\") > \"1\"\nvalue(\"b\") != \"x\"\n\nput t \"yes\"\nget a\n\nput t \"no\"\n\n"),
		txn("json", "create(\"t\") = \"0\"\n\nput t \"new\"\n\ndel t --prev-kv\nget dir/ --prefix\nput \"x y\" 'z \"z'\n\n"),
		txn("fields", "\nput t 1 --prev-kv\nget dir/ --prefix --limit=2\ndel \"x y\" --prev-kv\n\n\n"),
		txn("protobuf", "ver(\"t\") < \"9\"\n\nget t\n\n\n"), txn("table", "\nget t\n\n\n"),
		txn("simple", "m( \"t\")   >  \"0\" xx\n\n g  t --hex=false\n\n\n"),
		txn("simple", "val(`t`) = \"\\x31\"\nc(\"t\") > \"0\"\n\n\n\n"),
		txn("simple", "\nput t \"1\"\nput t \"2\"\n\n\n"), txn("simple", "\nput x\"y z\nput \"x y\nput q ''\nget q\n\n\n"),
		{args: "txn -i", stdin: "\nget a\n\n\n"}, {args: "txn x", stdin: "\n\n\n"},
		{args: "txn", stdin: "nonsense\n\n\n\n"}, {args: "txn", stdin: "\nput\n\n\n"}, {args: "txn", stdin: "\nput x\n\n\n"},
		{args: "txn", stdin: "\nnonsense x\n\n\n"}, {args: "txn", stdin: "\nget a --sort-by x\n\n\n"}, {args: "txn", stdin: "\nget a"},
		{args: "txn", stdin: "\nput \"x\\q\" y\n\n\n"}, {args: "txn"}, {args: "txn", stdin: "mod(\"a\") > \"x\"\n\n\n\n"},
		{args: "txn", stdin: "mod(\"a\")>\"0\"\n\n\n\n", words: true}, {args: "txn", stdin: "mod (\"a\") > \"0\"\n\n\n\n"},
		{args: "txn", stdin: "val(\"a\") = \"\\q\"\n\n\n\n", words: true}, {args: "txn", stdin: "\nput a b --lease zz\n\n\n"},
	},
	// del
	everyFormOf("del dir/1 --prev-kv"),
	writes("del dir/2 --prev-kv", "del dir/ --prefix -w json --prev-kv", "del b c --range", "del x z", "del", "del a b c", "del a --prefix --from-key",
		"del a b --prefix", "del q --from-key -w fields"),
	// Hashes come before any lease: its id, chosen by the server, is part of what is hashed.
	everyForm("endpoint hashkv"), reads("endpoint hashkv --rev=9", "endpoint hashkv --rev=100000", "endpoint --cluster hashkv"),
	// leases
	writes("lease grant 600", "lease grant 600 -w json", "lease grant 600 -w fields", "lease grant 9000000001", "lease grant", "lease grant x"),
	everyForm("lease list"), reads("lease list ignored"),
	// One key only: etcd shows the keys of a lease in no order.
	writes("put leased v --lease={lease}"), everyForm("get leased"),
	everyForm("lease timetolive {lease}"), everyForm("lease timetolive 1234"),
	reads("lease timetolive zz", "lease timetolive", "lease timetolive {lease} --keys -w json", "lease timetolive {lease} --keys -w fields"),
	reads("lease keep-alive --once {lease}", "lease keep-alive --once {lease} -w json", "lease keep-alive --once {lease} -w fields",
		"lease keep-alive --once {lease} -w protobuf", "lease keep-alive --once {lease} -w table", "lease keep-alive --once 1234",
		"lease keep-alive 1234", "lease keep-alive 1234 -w json", "lease keep-alive zz", "lease keep-alive"),
	writes("lease revoke {lease}", "lease revoke {lease}", "lease revoke", "lease revoke zz", "lease grant 60", "lease revoke {lease} -w json",
		"lease grant 60", "lease revoke {lease} -w fields"),
	[]step{{args: "lease grant 60"}, {args: "lease revoke {lease} -w protobuf", words: true}},
	// compaction
	writes("compaction 5", "compaction 5", "compaction 100000", "compaction 8 --physical", "compaction x", "compaction", "compaction 10 -w json"),
	reads("get a --rev=5", "get a --rev=5 -w json"),
	reads("watch a --rev=5", "watch a --rev=5 -w json", "watch a --rev=5 -w fields", "watch a --rev=5 -w protobuf", "watch a --rev=5 -w table",
		"watch b a", "watch b a -w json", "watch b a -w fields", "watch a b --prefix", "watch", "watch a --", "watch -- echo"),
	[]step{{args: "watch a", env: "ETCDCTL_WATCH_KEY=k", reads: true}, {args: "watch", env: "ETCDCTL_WATCH_RANGE_END=k", reads: true},
		{args: "watch -i", stdin: "foo\n\nwatch\nwatch b c --prefix\n", reads: true}},
	// cluster and maintenance
	everyForm("endpoint status"), everyForm("endpoint health"), everyForm("member list"), everyForm("alarm list"),
	reads("endpoint status --cluster", "endpoint health --cluster", "en st", "me li", "member list x", "member list --consistency=s",
		"member list --consistency=x", "alarm list x", "alarm disarm", "alarm disarm -w json", "alarm disarm -w fields"),
	writes("defrag", "defrag --cluster", "defrag -w json"),
	everyForm("downgrade validate 3.6"),
	reads("downgrade validate 3.5", "downgrade validate 3.7", "downgrade validate x", "downgrade validate", "downgrade validate 3.6 3.5",
		"downgrade enable", "downgrade enable 3.5", "downgrade cancel"),
	// a server that is not there
	reads("get a --endpoints=127.0.0.1:1,{endpoint}", "endpoint status --endpoints=127.0.0.1:1 --command-timeout=300ms",
		"endpoint hashkv --endpoints=127.0.0.1:1,{endpoint} --command-timeout=300ms -w json",
		"endpoint hashkv --endpoints=127.0.0.1:1 --command-timeout=300ms -w table",
		"endpoint health --endpoints=127.0.0.1:1 --command-timeout=300ms -w json",
		"defrag --endpoints=127.0.0.1:1 --command-timeout=300ms", "get a --endpoints=127.0.0.1:1 --command-timeout=300ms",
		"put a 1 --endpoints=127.0.0.1:1 --command-timeout=300ms", "lease grant 10 --endpoints=127.0.0.1:1 --command-timeout=300ms",
		"get a --user=root:x --endpoints=127.0.0.1:1 --dial-timeout=300ms --command-timeout=300ms", "get a --endpoints="),
	// authentication is not enabled: a password is no hindrance
	reads("get a --user=root:x", "get a --user=root --password=x"),
)

func start(t *testing.T, label, bin string, files *proc.TLSFiles) *proc.Server {
	t.Helper()
	opts := proc.Options{Label: label, Bin: bin, TLS: files}
	if label == "kvd" {
		opts.Args = strings.Fields(os.Getenv("KVD_ARGS"))
	}
	srv, err := proc.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return srv
}

func newClient(t *testing.T, bin string, srv *proc.Server) *client {
	t.Helper()
	conn, err := srv.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	// The storage version appears a moment after the server serves.
	var status *pb.StatusResponse
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if status, err = pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
		if status.StorageVersion != "" || time.Now().After(deadline) {
			break
		}
	}
	c := &client{bin: bin, srv: srv, hide: []string{srv.Addr(), "CLIENT", srv.PeerAddr(), "PEER"}}
	c.mask(status.Header.MemberId, "MEMBER")
	c.mask(status.Header.ClusterId, "CLUSTER")
	return c
}

// mask hides an id in every way it is printed.
func (c *client) mask(id uint64, name string) {
	c.hide = append(c.hide, fmt.Sprintf("%016x", id), name, fmt.Sprintf("%x", id), name, fmt.Sprint(id), name)
}

func (c *client) command(ctx context.Context, s step) *exec.Cmd {
	line := strings.ReplaceAll(s.args, "{endpoint}", c.srv.Addr())
	if len(c.leases) > 0 {
		line = strings.ReplaceAll(line, "{lease}", c.leases[len(c.leases)-1])
	}
	// An empty word is an empty argument, so that "get  --prefix" asks for everything.
	cmd := exec.CommandContext(ctx, c.bin, strings.Split(line, " ")...)
	cmd.Env = append(os.Environ(), s.env)
	if !strings.Contains(line, "--endpoints") {
		cmd.Env = append(cmd.Env, "ETCDCTL_ENDPOINTS="+c.srv.URL())
	}
	if f := c.srv.TLS; f != nil {
		cmd.Env = append(cmd.Env, "ETCDCTL_CACERT="+f.TrustedCA, "ETCDCTL_CERT="+f.ClientCert, "ETCDCTL_KEY="+f.ClientKey)
	}
	return cmd
}

var grantedLease = regexp.MustCompile(`lease ([0-9a-f]+) granted|"ID" ?: ?(\d+)`)

func (c *client) run(s step) result {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	cmd := c.command(ctx, s)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(s.stdin), &stdout, &stderr
	code := exitCode(cmd.Run())
	if m := grantedLease.FindStringSubmatch(stdout.String()); m != nil && strings.HasPrefix(s.args, "lease grant") {
		var id int64
		if m[1] != "" {
			fmt.Sscanf(m[1], "%x", &id)
		} else {
			fmt.Sscanf(m[2], "%d", &id)
		}
		c.leases = append(c.leases, fmt.Sprintf("%x", id))
		c.mask(uint64(id), fmt.Sprintf("LEASE%d", len(c.leases)))
	}
	return result{code, stdout.String(), errorLines(stderr.String())}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		return -1
	}
}

// errorLines drops the Go client's own log lines.
func errorLines(stderr string) string {
	var out []string
	for _, line := range strings.SplitAfter(stderr, "\n") {
		if !strings.HasPrefix(line, `{"level":"warn"`) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// measured differs between any two runs: times, and with them the width of a table's column.
var measured = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`\b(\d+m)?\d+(\.\d+)?(ns|µs|ms|s)\b( *│)?`), `TIME`},
	{regexp.MustCompile(` *TOOK *`), ` TOOK `},
	{regexp.MustCompile(`─+`), `─`},
	{regexp.MustCompile(`(?m)^((?:etcdctl|API) version: 3\.7).*`), `$1`},
	{regexp.MustCompile(`"ttl":\d+`), `"ttl":N`},
	{regexp.MustCompile(`"TTL" : \d+`), `"TTL" : N`},
	// Go's protobuf text has one space or two, as each build of etcdctl pleases.
	{regexp.MustCompile(`(memberID:\S+) +alarm`), `$1 alarm`},
}

// own is what two servers in the same state may say differently: sizes and raft positions.
var own = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|raftTerm|raft_term)":\d+`), `"$1":N`},
	{regexp.MustCompile(`"(DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex|RaftTerm)" : \d+`), `"$1" : N`},
}

// sizes of kvd's store change while it writes in the background.
var sizes = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`\b\d+(\.\d+)? [kMG]?B\b`), `SIZE`},
	{regexp.MustCompile(`\b\d+%`), `PERCENT`},
	{regexp.MustCompile(`"(dbSize|dbSizeInUse)":\d+`), `"$1":N`},
	{regexp.MustCompile(`"(DBSize|DBSizeInUse)" : \d+`), `"$1" : N`},
	{regexp.MustCompile(` +`), ` `},
}

func maskMeasured(s string) string {
	for _, m := range measured {
		s = m.pattern.ReplaceAllString(s, m.as)
	}
	return s
}

var statusCommand = regexp.MustCompile(`^en\S*( --cluster)? st`)

func (r result) withoutSizes() result {
	for _, m := range sizes {
		r.stdout = m.pattern.ReplaceAllString(r.stdout, m.as)
	}
	return r
}

// maskIDs hides what is the server's own; a protobuf answer has its ids in binary, so only its presence is left.
func (c *client) maskIDs(s step, r result) result {
	mask := func(text string) string {
		text = strings.NewReplacer(c.hide...).Replace(text)
		for _, m := range own {
			text = m.pattern.ReplaceAllString(text, m.as)
		}
		return text
	}
	if strings.Contains(s.args, "protobuf") {
		r.stdout = fmt.Sprint(r.stdout != "")
	}
	return result{r.code, mask(r.stdout), mask(r.stderr)}
}

// compare tells how got, kvctl's result, differs from etcdctl's.
func compare(s step, want, got result) string {
	var out strings.Builder
	if want.code != got.code {
		fmt.Fprintf(&out, "exit code: etcdctl %d, kvctl %d\n", want.code, got.code)
	}
	if w, g := maskMeasured(want.stdout), maskMeasured(got.stdout); w != g {
		fmt.Fprintf(&out, "stdout\netcdctl: %q\nkvctl:   %q\n", w, g)
	}
	// Words on standard error begin with etcdctl's; kvctl may add what to do.
	w, g := errorText(want.stderr), errorText(got.stderr)
	if s.words {
		w, g = "", ""
	}
	if (want.stderr == "") != (got.stderr == "") || (w == "") != (g == "") || !strings.HasPrefix(g, w) {
		fmt.Fprintf(&out, "error\netcdctl: %q\nkvctl:   %q\n", want.stderr, got.stderr)
	}
	if out.Len() > 0 {
		return out.String() + fmt.Sprintf("stderr of kvctl: %s\n", got.stderr)
	}
	return ""
}

// usage is how each program tells a bad command line; the words differ, the fact counts.
var usage = regexp.MustCompile(`^(unknown|invalid argument|unexpected argument|unrecognized subcommand|invalid value)`)

// errorText is the final error of a command, without what follows its first line.
func errorText(stderr string) string {
	_, text, found := strings.Cut("\n"+stderr, "\nError: ")
	if !found {
		return ""
	}
	text, _, _ = strings.Cut(text, "\n")
	text = strings.TrimSuffix(text, ")")
	if usage.MatchString(text) {
		return "usage"
	}
	return text
}

// servers runs a test against etcd and, if there is one, kvd.
func servers(t *testing.T, test func(t *testing.T, label, bin string)) {
	t.Run("etcd", func(t *testing.T) { test(t, "etcd", filepath.Join("bin", "etcd")) })
	if bin := os.Getenv("KVD_BIN"); bin != "" {
		t.Run("kvd", func(t *testing.T) { test(t, "kvd", bin) })
	}
}

// asEtcdctl is kvctl under the name by which it answers as etcdctl.
func asEtcdctl(t *testing.T) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "etcdctl")
	if err := os.Symlink(kvctlBin, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestKvctlCommands(t *testing.T) {
	servers(t, func(t *testing.T, label, bin string) {
		kvctl := newClient(t, asEtcdctl(t), start(t, label, bin, nil))
		etcdctl := newClient(t, etcdctlBin, start(t, label, bin, nil))
		for _, s := range steps {
			checkStep(t, s, etcdctl, kvctl)
		}
		t.Logf("%d command lines compared", len(steps))
	})
}

func checkStep(t *testing.T, s step, etcdctl, kvctl *client) {
	t.Helper()
	other := etcdctl
	if s.reads {
		same := *kvctl
		same.bin = etcdctl.bin
		other = &same
	}
	isStatus := statusCommand.MatchString(s.args)
	var difference string
	// A commit of etcd in the background may fall between the two looks at its sizes; not each time.
	for range 5 {
		var want, got result
		var both sync.WaitGroup
		both.Add(2)
		go func() { defer both.Done(); want = other.run(s) }()
		go func() { defer both.Done(); got = kvctl.run(s) }()
		both.Wait()
		if !s.reads {
			want, got = etcdctl.maskIDs(s, want), kvctl.maskIDs(s, got)
		}
		if kvctl.srv.Label == "kvd" && isStatus {
			want, got = want.withoutSizes(), got.withoutSizes()
		}
		if difference = compare(s, want, got); difference == "" || !s.reads || !isStatus {
			break
		}
	}
	if difference != "" {
		t.Errorf("%s %s <<< %q\n%s", s.env, s.args, s.stdin, difference)
	}
}

// Alarms that are raised: listed and cleared, and what they refuse. Member 5 does not exist, and its alarm counts all the same.
func TestKvctlAlarms(t *testing.T) {
	servers(t, func(t *testing.T, label, bin string) {
		kvctl := newClient(t, asEtcdctl(t), start(t, label, bin, nil))
		etcdctl := newClient(t, etcdctlBin, start(t, label, bin, nil))
		raise := func(alarms ...*pb.AlarmMember) {
			for _, c := range []*client{kvctl, etcdctl} {
				conn, err := c.srv.Dial()
				if err != nil {
					t.Fatal(err)
				}
				for _, alarm := range alarms {
					ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
					request := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: alarm.MemberID, Alarm: alarm.Alarm}
					_, err := pb.NewMaintenanceClient(conn).Alarm(ctx, request)
					cancel()
					if err != nil {
						t.Fatal(err)
					}
				}
				conn.Close()
			}
		}
		noSpace := &pb.AlarmMember{MemberID: 5, Alarm: pb.AlarmType_NOSPACE}
		corrupt := &pb.AlarmMember{MemberID: 6, Alarm: pb.AlarmType_CORRUPT}
		check := func(steps ...[]step) {
			for _, s := range slices.Concat(steps...) {
				checkStep(t, s, etcdctl, kvctl)
			}
		}
		check(writes("put a 1", "lease grant 600"))
		for _, form := range []string{"simple", "json", "fields", "protobuf", "table"} {
			raise(noSpace)
			check(reads("alarm list -w "+form, "endpoint status -w "+form, "endpoint health"), writes("alarm disarm -w "+form))
		}
		raise(noSpace)
		check(everyForm("alarm list"),
			writes("put a 2", "put a 3 --lease={lease}", "lease grant 60", "put b x", "del b", "lease revoke {lease}", "compaction 2", "defrag"),
			[]step{txn("simple", "\nget a\n\nput never x\n\n"), txn("simple", "\ndel a\n\n\n"), txn("simple", "\nget a\n\n\n")})
		// One at a time: etcd lists several in no order.
		check(writes("alarm disarm"))
		raise(corrupt)
		check(writes("put a 4", "del a", "lease grant 60", "lease revoke 1234", "compaction 3", "get a"),
			[]step{txn("simple", "\ndel a\n\n\n"), txn("simple", "\nget a\n\n\n")}, writes("alarm disarm"), writes("alarm list", "put a 5", "get a"))
	})
}

func TestKvctlOverTLS(t *testing.T) {
	files, err := proc.MakeTLS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	servers(t, func(t *testing.T, label, bin string) {
		kvctl := newClient(t, asEtcdctl(t), start(t, label, bin, files))
		etcdctl := newClient(t, etcdctlBin, kvctl.srv)
		for _, s := range slices.Concat(writes("put a 1", "put b 2"), reads("get a -w json", "endpoint status --cluster", "endpoint health",
			"member list -w table", "get a --insecure-skip-tls-verify", "get a --endpoints={endpoint}",
			"get a --insecure-transport=false --endpoints=https://{endpoint}")) {
			s.reads = true
			checkStep(t, s, etcdctl, kvctl)
		}
	})
}

// Authentication is set up by etcdctl; kvctl must get a token, and say what is wrong without one.
func TestKvctlWithPassword(t *testing.T) {
	kvctl := newClient(t, asEtcdctl(t), start(t, "etcd", filepath.Join("bin", "etcd"), nil))
	etcdctl := newClient(t, etcdctlBin, kvctl.srv)
	for _, s := range writes("put a 1", "user add root:secret", "user grant-role root root", "auth enable") {
		if r := etcdctl.run(s); r.code != 0 {
			t.Fatalf("etcdctl %s: %+v", s.args, r)
		}
	}
	for _, s := range reads("get a", "get a --user=root:secret", "get a --user=root --password=secret -w json", "get a --user=root:wrong",
		"get a --user=nobody:x", "lease list --user=root:secret", "endpoint health --user=root:secret", "member list",
		"watch a --rev=1 --user=root:wrong") {
		checkStep(t, s, etcdctl, kvctl)
	}
}

// Both clients watch one server from the next revision on, so nothing depends on when a watch opens.
func TestKvctlWatch(t *testing.T) {
	servers(t, func(t *testing.T, label, bin string) {
		srv := start(t, label, bin, nil)
		kvctl, etcdctl := newClient(t, asEtcdctl(t), srv), newClient(t, etcdctlBin, srv)
		for _, w := range []struct {
			args  string
			stdin string
		}{
			{args: "watch w/ --prefix --rev=2"},
			{args: "watch w/ --prefix --rev=2 --hex"},
			{args: "watch w/ --prefix --rev=2 --prev-kv"},
			{args: "watch w/ --prefix --rev=2 --prev-kv -w json"},
			{args: "watch w/ --prefix --rev=2 --prev-kv -w fields"},
			{args: "watch w/ --prefix --rev=2 --prev-kv -w protobuf"},
			{args: "watch w/1 w/3 --rev=2 -w json --progress-notify"},
			{args: "watch w/1 --rev=3"},
			{args: "watch w/2 --rev=2 -- printenv ETCD_WATCH_REVISION ETCD_WATCH_EVENT_TYPE ETCD_WATCH_KEY ETCD_WATCH_VALUE"},
			{args: "watch -i", stdin: "watch w/ --prefix --rev=2 --prev-kv\n"},
			{args: "watch -i -w json", stdin: "watch \"w/1\" 'w/3' --rev 2\n"},
		} {
			s := step{args: w.args, stdin: w.stdin}
			want, got := startWatch(t, etcdctl, s), startWatch(t, kvctl, s)
			if srvRevisionIsOne(t, etcdctl) {
				for _, write := range []step{
					{args: "put w/1 a"}, {args: "put w/1 b"}, {args: "txn", stdin: "\nput w/2 x\nput w/3 y\n\n\n"},
					{args: "del w/ --prefix"}, {args: "put w/1 end"},
				} {
					if r := etcdctl.run(write); r.code != 0 {
						t.Fatalf("etcdctl %s: %+v", write.args, r)
					}
				}
			}
			compareStreams(t, s, want, got)
		}
	})
}

func srvRevisionIsOne(t *testing.T, c *client) bool {
	t.Helper()
	return strings.Contains(c.run(step{args: "get x -w fields"}).stdout, "\"Revision\" : 1\n")
}

// stream is a running command.
type stream struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	mu     sync.Mutex
	output bytes.Buffer
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.Write(p)
}

func (s *stream) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.String()
}

func startWatch(t *testing.T, c *client, s step) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	out := &stream{cmd: c.command(ctx, s)}
	out.cmd.Stdout = out
	stdin, err := out.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out.stdin = stdin
	if err := out.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	if _, err := io.WriteString(stdin, s.stdin); err != nil {
		t.Fatal(err)
	}
	return out
}

// compareStreams waits until both have said the same, and fails if that does not come.
func compareStreams(t *testing.T, s step, want, got *stream) {
	t.Helper()
	done := func() bool {
		w, g := want.text(), got.text()
		return w == g && (strings.Contains(w, "end") || strings.Contains(w, "ZW5k") || strings.Contains(w, `\x65\x6e\x64`) ||
			strings.Contains(s.args, "w/2 --rev") && strings.Contains(w, "DELETE"))
	}
	for deadline := time.Now().Add(20 * time.Second); !done() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if !done() {
		t.Errorf("%s <<< %q\netcdctl: %q\nkvctl:   %q", s.args, s.stdin, want.text(), got.text())
	}
	for _, ended := range []*stream{want, got} {
		_ = ended.cmd.Process.Kill()
		_ = ended.cmd.Wait()
		_ = ended.stdin.Close()
	}
}

// A lease is kept alive by both; when it is revoked both end with the same last line and code.
func TestKvctlKeepAlive(t *testing.T) {
	srv := start(t, "etcd", filepath.Join("bin", "etcd"), nil)
	kvctl, etcdctl := newClient(t, asEtcdctl(t), srv), newClient(t, etcdctlBin, srv)
	etcdctl.run(step{args: "lease grant 3"})
	if len(etcdctl.leases) != 1 {
		t.Fatal("no lease was granted")
	}
	kvctl.leases = etcdctl.leases
	s := step{args: "lease keep-alive {lease}"}
	want, got := startWatch(t, etcdctl, s), startWatch(t, kvctl, s)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Count(want.text(), "\n") > 1 && strings.Count(got.text(), "\n") > 1 {
			break
		}
	}
	etcdctl.run(step{args: "lease revoke {lease}"})
	wantCode, gotCode := exitCode(want.cmd.Wait()), exitCode(got.cmd.Wait())
	// How many renewals there were is a matter of time.
	lines := func(s *stream) []string { return slices.Compact(strings.Split(s.text(), "\n")) }
	if wantCode != gotCode || !slices.Equal(lines(want), lines(got)) {
		t.Errorf("etcdctl: exit %d, %q\nkvctl:   exit %d, %q", wantCode, want.text(), gotCode, got.text())
	}
}

func TestKvctlClosedPipeIsSuccess(t *testing.T) {
	srv := start(t, "etcd", filepath.Join("bin", "etcd"), nil)
	kvctl := newClient(t, kvctlBin, srv)
	if r := kvctl.run(step{args: "put big", stdin: strings.Repeat("x", 1<<20)}); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	cmd := kvctl.command(ctx, step{args: "get big"})
	reader, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(cmd.Wait()); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A backup that cannot be fetched: where a limit is given both end with it; without one etcdctl waits for ever, kvctl does not.
func TestKvctlSnapshotSaveThatFails(t *testing.T) {
	srv := start(t, "etcd", filepath.Join("bin", "etcd"), nil)
	kvctl, etcdctl := newClient(t, kvctlBin, srv), newClient(t, etcdctlBin, srv)
	srv.Kill()
	file := filepath.Join(t.TempDir(), "backup.db")
	for _, args := range []string{"--command-timeout=1s snapshot save " + file, "snapshot save " + file} {
		clients := []*client{kvctl}
		if strings.HasPrefix(args, "--command-timeout") {
			clients = append(clients, etcdctl)
		}
		for _, c := range clients {
			r := c.run(step{args: args})
			if r.code != 5 || !strings.Contains(r.stderr, "Error: context deadline exceeded") {
				t.Errorf("%s %s: %+v", c.bin, args, r)
			}
			if left, _ := filepath.Glob(file + "*"); len(left) > 0 {
				t.Errorf("%s %s left %v", c.bin, args, left)
			}
		}
	}
}

// That nobody reads the words changes neither the results nor the exit code.
func TestKvctlClosedStandardError(t *testing.T) {
	srv := start(t, "etcd", filepath.Join("bin", "etcd"), nil)
	kvctl := newClient(t, kvctlBin, srv)
	for _, s := range []step{{args: "put a 1 --debug"}, {args: "put a --ignore-value --debug"}, {args: "get absent --consistency=x"}} {
		want := kvctl.run(s)
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		cmd := kvctl.command(ctx, s)
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		reader, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
		code := exitCode(cmd.Run())
		cancel()
		if code != want.code || stdout.Len() != len(want.stdout) {
			t.Errorf("%s: exit %d and %q, want %d and %q", s.args, code, stdout.String(), want.code, want.stdout)
		}
	}
}
