// Package ctl runs the unedited etcdctl against a real etcd and against the server in KVD_BIN, side by side, and
// compares exit code, standard output and error text.
package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"kvd.dev/interop/proc"
)

func TestMain(m *testing.M) {
	if os.Getenv("KVD_BIN") == "" {
		fmt.Println("SKIPPED interop: KVD_BIN not set")
		os.Exit(0)
	}
	for _, tool := range []string{"etcd", "etcdctl"} {
		if _, err := os.Stat(filepath.Join("..", "bin", tool)); err != nil {
			fmt.Printf("SKIPPED interop: bin/%s is missing, run build.sh\n", tool)
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// step is one command line. Every occurrence of {lease} is the last lease granted, {endpoint} the server's URL.
type step struct {
	args  string
	stdin string
}

// commands are run in this order; later ones see what earlier ones wrote. Each starts on the same state on both sides.
var commands = []step{
	{args: "version"},
	{args: "put a 1"},
	{args: "put a 2 --prev-kv"},
	{args: "put a 3 --prev-kv -w json"},
	{args: "put a 4 --prev-kv -w fields"},
	{args: "put b", stdin: "from standard input"},
	{args: "put a --ignore-value"},
	{args: "put absent --ignore-value"},
	{args: "put a x --ignore-lease"},
	{args: "put a x --lease=1234"},
	{args: "put"},
	{args: "put dir/1 one"}, {args: "put dir/2 two"}, {args: "put dir/3 three"}, {args: "put dir/2 zwei"},
	{args: "get a"},
	{args: "get a -w json"},
	{args: "get a -w json --hex"},
	{args: "get a -w fields"},
	{args: "get a -w table"},
	{args: "get a -w protobuf --print-value-only"},
	{args: "get a --hex"},
	{args: "get a --print-value-only"},
	{args: "get dir/ --prefix"},
	{args: "get dir/ --prefix --keys-only"},
	{args: "get dir/ --prefix --count-only -w json"},
	{args: "get dir/ --prefix --count-only --write-out=fields"},
	{args: "get dir/ --prefix --limit=2 -w json"},
	{args: "get dir/ --prefix --sort-by=VALUE --order=DESCEND"},
	{args: "get dir/ --prefix --sort-by=MODIFY"},
	{args: "get dir/ --prefix --sort-by=VERSION --order=DESCEND --limit=1"},
	{args: "get dir/ --prefix --sort-by=CREATE"},
	{args: "get dir/ --prefix --sort-by=KEY --order=DESCEND"},
	{args: "get dir/ --prefix --sort-by=NONSENSE"},
	{args: "get b --from-key"},
	{args: "get dir/1 dir/3"},
	{args: "get dir/3 dir/1"},
	{args: "get a --rev=2"},
	{args: "get a --rev=2 -w json"},
	{args: "get a --rev=1000"},
	{args: "get dir/ --prefix --min-mod-rev=9 --max-mod-rev=10"},
	{args: "get dir/ --prefix --min-create-rev=8 --max-create-rev=9"},
	{args: "get a --consistency=s"},
	{args: "get a --consistency=x"},
	{args: "get dir/ --prefix --stream"},
	{args: "get dir/ --prefix --stream -w json"},
	{args: "get"},
	{args: "get  --prefix"},
	{args: "txn", stdin: "mod(\"a\") > \"1\"\nvalue(\"b\") = \"from standard input\"\n\nput t \"yes\"\nget a\n\nput t \"no\"\n\n"},
	{args: "txn -w json", stdin: "create(\"t\") = \"0\"\n\nput t \"new\"\n\ndel t --prev-kv\nget dir/ --prefix\n\n"},
	{args: "txn", stdin: "version(\"t\") = \"0\"\n\nput t \"1\"\nput t \"2\"\n\n\n"},
	{args: "txn", stdin: "nonsense\n\n\n\n"},
	{args: "del dir/1"},
	{args: "del dir/1"},
	{args: "del dir/2 --prev-kv"},
	{args: "del dir/ --prefix -w json --prev-kv"},
	{args: "del b --from-key --range -w fields"},
	{args: "del"},
	// The hashes come before any key holds a lease: its id, chosen by the server, is part of what is hashed.
	{args: "endpoint hashkv"},
	{args: "endpoint hashkv -w table"}, {args: "endpoint hashkv -w json"}, {args: "endpoint hashkv -w fields"},
	{args: "endpoint hashkv --rev=9"},
	{args: "endpoint hashkv --rev=100000"},
	{args: "lease grant 600"},
	{args: "lease grant 600 -w json"},
	{args: "lease grant 600 -w fields"},
	{args: "lease grant 9000000001"},
	{args: "lease grant"},
	{args: "lease list"}, {args: "lease list -w json"}, {args: "lease list -w fields"},
	{args: "put leased v --lease={lease}"},
	{args: "get leased -w json"},
	{args: "lease timetolive {lease}"},
	{args: "lease timetolive {lease} --keys"},
	{args: "lease timetolive {lease} --keys -w json"},
	{args: "lease timetolive {lease} --keys -w fields"},
	{args: "lease timetolive 1234"},
	{args: "lease keep-alive --once {lease}"},
	{args: "lease keep-alive --once {lease} -w json"},
	{args: "lease keep-alive --once 1234"},
	{args: "lease revoke {lease}"},
	{args: "lease revoke {lease}"},
	{args: "get leased"},
	{args: "compaction 5"},
	{args: "compaction 5"},
	{args: "compaction 100000"},
	{args: "compaction 8 --physical"},
	{args: "compaction x"},
	{args: "get a --rev=5"},
	{args: "endpoint status"},
	{args: "endpoint status -w table"}, {args: "endpoint status -w json"}, {args: "endpoint status -w fields"},
	{args: "endpoint health"},
	{args: "endpoint health -w table"}, {args: "endpoint health -w json"}, {args: "endpoint health -w fields"},
	{args: "endpoint status --cluster"},
	{args: "member list"},
	{args: "member list -w table"}, {args: "member list -w json"}, {args: "member list -w fields"},
	{args: "member list --hex -w json"},
	{args: "defrag"},
	{args: "defrag --cluster"},
	{args: "alarm list"},
	{args: "alarm list -w json"},
	{args: "check nonsense"},
	{args: "get a --endpoints=http://127.0.0.1:1 --command-timeout=300ms --dial-timeout=200ms"},
}

// target is one server as etcdctl sees it.
type target struct {
	srv    *proc.Server
	leases []string // granted, in hexadecimal
	hide   []string // pairs for strings.NewReplacer: what is the server's own
}

const commandTimeout = 30 * time.Second

func newTarget(t *testing.T, label, bin string, files *proc.TLSFiles) *target {
	t.Helper()
	args := []string{}
	if label == "kvd" {
		args = strings.Fields(os.Getenv("KVD_ARGS"))
	}
	srv, err := proc.Start(proc.Options{Label: label, Bin: bin, Args: args, TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	conn, err := srv.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline := time.Now().Add(20 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		status, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if status.StorageVersion == "" && time.Now().Before(deadline) {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		tg := &target{srv: srv, hide: []string{srv.URL(), "CLIENT-URL", srv.Addr(), "CLIENT", srv.PeerAddr(), "PEER"}}
		tg.hide = append(append(tg.hide, spellings(status.Header.MemberId, "MEMBER")...), spellings(status.Header.ClusterId, "CLUSTER")...)
		return tg
	}
}

// spellings replaces every way etcdctl prints an id.
func spellings(id uint64, name string) []string {
	return []string{fmt.Sprintf("%016x", id), name, fmt.Sprintf("%x", id), name, fmt.Sprint(id), name}
}

func (tg *target) command(ctx context.Context, line string) *exec.Cmd {
	line = strings.ReplaceAll(line, "{endpoint}", tg.srv.URL())
	if len(tg.leases) > 0 {
		line = strings.ReplaceAll(line, "{lease}", tg.leases[len(tg.leases)-1])
	}
	args := strings.Split(line, " ")
	// An empty word is an empty argument, so that "get  --prefix" asks for everything.
	cmd := exec.CommandContext(ctx, filepath.Join("..", "bin", "etcdctl"), args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_ENDPOINTS="+tg.srv.URL())
	if f := tg.srv.TLS; f != nil {
		cmd.Env = append(cmd.Env, "ETCDCTL_CACERT="+f.TrustedCA, "ETCDCTL_CERT="+f.ClientCert, "ETCDCTL_KEY="+f.ClientKey)
	}
	return cmd
}

var grantedLease = regexp.MustCompile(`lease ([0-9a-f]+) granted|"ID" ?: ?(\d+)`)

func (tg *target) run(s step) string {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := tg.command(ctx, s.args)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(s.stdin), &stdout, &stderr
	code := exitCode(cmd.Run())
	if strings.HasPrefix(s.args, "lease grant") {
		tg.remember(stdout.String())
	}
	return fmt.Sprintf("exit %d\n%s%s", code, tg.normalise(stdout.String()), tg.normalise(errorLines(stderr.String())))
}

// remember keeps a granted lease; its id is replaced in all later output.
func (tg *target) remember(output string) {
	m := grantedLease.FindStringSubmatch(output)
	if m == nil {
		return
	}
	var id int64
	if m[1] != "" {
		fmt.Sscanf(m[1], "%x", &id)
	} else {
		fmt.Sscanf(m[2], "%d", &id)
	}
	tg.leases = append(tg.leases, fmt.Sprintf("%x", id))
	name := fmt.Sprintf("LEASE%d", len(tg.leases))
	tg.hide = append(tg.hide, spellings(uint64(id), name)...)
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

// errorLines drops the client library's own log lines.
func errorLines(stderr string) string {
	var out []string
	for _, line := range strings.Split(stderr, "\n") {
		if !strings.HasPrefix(line, `{"level":`) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// hidden is what two correct servers may print differently: sizes, raft positions, times and patch levels.
var hidden = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|raftTerm|raft_term|ttl)":\d+`), `"$1":N`},
	{regexp.MustCompile(`"(DBSize|DBSizeInUse|RaftIndex|RaftAppliedIndex|RaftTerm|TTL)" : \d+`), `"$1" : N`},
	{regexp.MustCompile(`\b3\.7\.\d+`), `3.7.x`},
	{regexp.MustCompile(`[─-]{2,}`), `--`},
	{regexp.MustCompile(` +`), ` `},
	{regexp.MustCompile(`\d+(\.\d+)? [kM]?B\b`), `SIZE`},
	{regexp.MustCompile(`\b\d+%`), `PERCENT`},
	{regexp.MustCompile(`\b(true|false)(, | │ )(true|false)(, | │ )\d+(, | │ )\d+(, | │ )\d+(, | │ )`), `$1$2$3$4 raft$5`},
	{regexp.MustCompile(`\bremaining\(\d+s\)`), `remaining(N)`},
	{regexp.MustCompile(`\b(\d+(\.\d+)?(ns|µs|ms)|\d+\.\d+s)\b`), `TIME`},
}

func (tg *target) normalise(s string) string {
	s = strings.NewReplacer(tg.hide...).Replace(s)
	for _, h := range hidden {
		s = h.pattern.ReplaceAllString(s, h.as)
	}
	return s
}

func eachTransport(t *testing.T, test func(t *testing.T, etcd, kvd *target)) {
	files, err := proc.MakeTLS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*proc.TLSFiles{"plain": nil, "tls": files} {
		t.Run(name, func(t *testing.T) {
			test(t, newTarget(t, "etcd", filepath.Join("..", "bin", "etcd"), f), newTarget(t, "kvd", os.Getenv("KVD_BIN"), f))
		})
	}
}

func TestCommands(t *testing.T) {
	eachTransport(t, func(t *testing.T, etcd, kvd *target) {
		for _, s := range commands {
			want, got := both(func() string { return etcd.run(s) }, func() string { return kvd.run(s) })
			if want != got {
				t.Errorf("etcdctl %s\netcd: %s\nkvd:  %s", s.args, want, got)
			}
			if testing.Verbose() && os.Getenv("CTL_TRACE") != "" {
				t.Logf("etcdctl %s\n%s", s.args, want)
			}
		}
	})
}

// both runs a and b at the same time.
func both(a, b func() string) (string, string) {
	var ra, rb string
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { defer wg.Done(); ra = a() }()
	go func() { defer wg.Done(); rb = b() }()
	wg.Wait()
	return ra, rb
}

func TestWatch(t *testing.T) {
	eachTransport(t, func(t *testing.T, etcd, kvd *target) {
		for _, w := range []struct {
			args  string
			lines int // to wait for
		}{
			{"watch w/ --prefix -w json", 4},
			{"watch w/ --prefix --prev-kv -w json --rev=2", 4},
			{"watch w/1 --prev-kv -w simple", 10},
			{"watch w/ w/2 -w fields", 10},
			{"watch w/ --prefix -w json --rev=1", 1}, // compacted before it starts
		} {
			want, got := both(func() string { return etcd.watch(w.args, w.lines) }, func() string { return kvd.watch(w.args, w.lines) })
			if want != got {
				t.Errorf("etcdctl %s\netcd: %s\nkvd:  %s", w.args, want, got)
			}
			if testing.Verbose() && os.Getenv("CTL_TRACE") != "" {
				t.Logf("etcdctl %s\n%s", w.args, want)
			}
		}
	})
}

// watch starts a watch, writes under it, and returns its output once it has the given number of lines and is quiet.
func (tg *target) watch(args string, lines int) string {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	// The one before may still be closing.
	if err := tg.untilWatchers(func(open float64) bool { return open == 0 }); err != nil {
		return err.Error()
	}
	cmd := tg.command(ctx, args)
	out := &lineCounter{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	exited, ended := make(chan error, 1), make(chan struct{})
	go func() { exited <- cmd.Wait(); close(ended) }()
	// etcdctl does not tell when its watch is open; the server counts it. One that begins in the past has come to the present when
	// it has printed something.
	fromThePast := strings.Contains(args, "--rev=")
	if err := tg.untilWatchers(func(open float64) bool {
		select {
		case <-ended:
			return true
		default:
			return out.lines() > 0 || !fromThePast && open >= 1
		}
	}); err != nil {
		_ = cmd.Process.Kill()
		return err.Error()
	}
	var b strings.Builder
	for _, s := range []step{
		{args: "put w/1 a"}, {args: "put w/1 b"}, {args: "txn", stdin: "\nput w/2 x\nput w/3 y\n\n\n"}, {args: "del w/ --prefix"}, {args: "compaction 2"},
	} {
		b.WriteString(tg.run(s))
	}
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) && out.lines() < lines {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond) // what should not come would come now
	select {
	case err := <-exited:
		fmt.Fprintf(&b, "watch ended, exit %d\n", exitCode(err))
	default:
		_ = cmd.Process.Kill()
		<-exited
	}
	return b.String() + tg.normalise(errorLines(out.String()))
}

var openWatchers = regexp.MustCompile(`(?m)^etcd_debugging_mvcc_watcher_total (\S+)$`)

// untilWatchers waits until the number of watches that the server has open is as wanted.
func (tg *target) untilWatchers(wanted func(open float64) bool) error {
	client := &http.Client{Timeout: 5 * time.Second}
	if f := tg.srv.TLS; f != nil {
		client.Transport = &http.Transport{TLSClientConfig: f.Client, DisableKeepAlives: true}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		open, err := watchersOf(client, tg.srv.URL())
		if err == nil && wanted(open) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %v watchers are open, %v", tg.srv.Label, open, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func watchersOf(client *http.Client, url string) (float64, error) {
	response, err := client.Get(url + "/metrics")
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	found := openWatchers.FindSubmatch(page)
	if found == nil {
		return 0, errors.New("no etcd_debugging_mvcc_watcher_total in /metrics")
	}
	return strconv.ParseFloat(string(found[1]), 64)
}

// lineCounter collects the output of a running command.
type lineCounter struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lineCounter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lineCounter) lines() int { return strings.Count(l.String(), "\n") }

func (l *lineCounter) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
