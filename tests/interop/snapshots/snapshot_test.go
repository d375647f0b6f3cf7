// Package snapshots takes backups of kvd with the unedited etcdctl and starts a real etcd from them, and the other way
// round: what both serve afterwards must be the same, revision by revision.
package snapshots

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvd.dev/interop/proc"
)

// manyKeys need branch pages of two levels in a backend file.
const manyKeys = 100_000

const testTimeout = 240 * time.Second

var etcdBin, etcdctlBin, etcdutlBin, kvctlBin string

func TestMain(m *testing.M) {
	if os.Getenv("KVD_BIN") == "" {
		fmt.Println("SKIPPED interop: KVD_BIN not set")
		os.Exit(0)
	}
	for name, bin := range map[string]*string{"etcd": &etcdBin, "etcdctl": &etcdctlBin, "etcdutl": &etcdutlBin} {
		path, err := filepath.Abs(filepath.Join("..", "bin", name))
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			fmt.Printf("SKIPPED interop: bin/%s is missing, run build.sh\n", name)
			os.Exit(0)
		}
		*bin = path
	}
	kvctlBin = os.Getenv("KVCTL_BIN")
	if kvctlBin == "" {
		kvctlBin = filepath.Join(filepath.Dir(os.Getenv("KVD_BIN")), "kvctl")
	}
	os.Exit(m.Run())
}

// filled is what a test knows about a server that it has filled.
type filled struct {
	compacted int64
	// probes are revisions that can still be read.
	probes []int64
	auth   bool
}

func eachEngine(t *testing.T, test func(t *testing.T, args ...string)) {
	for _, engine := range []string{"redb", "sled"} {
		t.Run(engine, func(t *testing.T) { test(t, "--storage-engine="+engine) })
	}
}

func start(t *testing.T, label, bin string, prepare func(*proc.Server) error, args ...string) (*proc.Server, *clientv3.Client) {
	t.Helper()
	srv, err := proc.Start(proc.Options{Label: label, Bin: bin, Args: args, Prepare: prepare})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	const noLimit = 1<<31 - 1
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.URL()}, MaxCallRecvMsgSize: noLimit, MaxCallSendMsgSize: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cli.Close() })
	return srv, cli
}

func run(t *testing.T, bin string, args ...string) []byte {
	t.Helper()
	out, err := output(bin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func output(bin string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(bin), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), nil
}

// must returns the value of a call that may not fail.
func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// fill writes many and large values, overwrites, deletes, attaches leases, and compacts in between.
func fill(t *testing.T, ctx context.Context, cli *clientv3.Client) filled {
	t.Helper()
	var known filled
	put := must[*clientv3.PutResponse](t)
	del := must[*clientv3.DeleteResponse](t)
	for n := 0; n < manyKeys; n += 100 {
		ops := make([]clientv3.Op, 100)
		for i := range ops {
			ops[i] = clientv3.OpPut(fmt.Sprintf("many/%06d", n+i), strings.Repeat("v", (n+i)%120))
		}
		must[*clientv3.TxnResponse](t)(cli.Txn(ctx).Then(ops...).Commit())
	}
	for n := range 60 {
		put(cli.Put(ctx, fmt.Sprintf("page/%d", n%40), strings.Repeat("p", 4000+n*37)))
	}
	put(cli.Put(ctx, "large/1", strings.Repeat("l", 1400<<10)))
	put(cli.Put(ctx, "large/2", strings.Repeat("m", 1<<20)))
	for n := range 200 {
		key := fmt.Sprintf("history/%d", n%20)
		if n%7 == 3 {
			del(cli.Delete(ctx, key))
		} else {
			put(cli.Put(ctx, key, fmt.Sprint("value ", n)))
		}
	}
	del(cli.Delete(ctx, "many/0001", clientv3.WithPrefix()))
	for id, ttl := range map[clientv3.LeaseID]int64{77: 6000, -5: 9000, 1234567: 3000} {
		grant := &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl}
		must[*pb.LeaseGrantResponse](t)(clientv3.RetryLeaseClient(cli).LeaseGrant(ctx, grant))
		for n := range 5 {
			put(cli.Put(ctx, fmt.Sprintf("leased/%d/%d", id, n), "x", clientv3.WithLease(id)))
		}
	}
	known.auth = addUsers(t, ctx, cli)
	at := put(cli.Put(ctx, "before", "the compaction")).Header.Revision
	known.compacted = at - 100
	must[*clientv3.CompactResponse](t)(cli.Compact(ctx, known.compacted, clientv3.WithCompactPhysical()))
	for n := range 40 {
		key := fmt.Sprintf("history/%d", n%25)
		if n%5 == 3 {
			at = del(cli.Delete(ctx, key)).Header.Revision
		} else {
			at = put(cli.Put(ctx, key, fmt.Sprint("later ", n))).Header.Revision
		}
	}
	known.probes = []int64{known.compacted, known.compacted + 1, known.compacted + 50, at - 17, at}
	return known
}

func addUsers(t *testing.T, ctx context.Context, cli *clientv3.Client) bool {
	t.Helper()
	if _, err := cli.RoleAdd(ctx, "reader"); err != nil {
		if status.Code(err) == codes.Unimplemented {
			return false
		}
		t.Fatal(err)
	}
	for _, err := range []error{
		second(cli.RoleGrantPermission(ctx, "reader", "many/", "many0", clientv3.PermissionType(clientv3.PermRead))),
		second(cli.RoleGrantPermission(ctx, "reader", "own", "", clientv3.PermissionType(clientv3.PermReadWrite))),
		second(cli.UserAdd(ctx, "alice", "secret")),
		second(cli.UserAddWithOptions(ctx, "bob", "", &clientv3.UserAddOptions{NoPassword: true})),
		second(cli.UserGrantRole(ctx, "alice", "reader")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return true
}

func second[T any](_ T, err error) error { return err }

// compare checks that both serve the same at the probed revisions, and know the same beside keys.
func compare(t *testing.T, ctx context.Context, a, b *clientv3.Client, known filled) {
	t.Helper()
	hash := must[*clientv3.HashKVResponse](t)
	for _, revision := range known.probes {
		equalKeys(t, ctx, a, b, revision)
		// There the original remembers what its compaction hashed before it removed that.
		if revision == known.compacted {
			continue
		}
		x := hash(a.HashKV(ctx, a.Endpoints()[0], revision))
		y := hash(b.HashKV(ctx, b.Endpoints()[0], revision))
		if x.Hash != y.Hash || x.CompactRevision != y.CompactRevision || x.HashRevision != y.HashRevision {
			t.Errorf("HashKV at %d: %v and %v", revision, x, y)
		}
	}
	if known.compacted > 1 {
		for _, cli := range []*clientv3.Client{a, b} {
			if _, err := cli.Get(ctx, "k", clientv3.WithRev(known.compacted-1)); err != rpctypes.ErrCompacted {
				t.Errorf("read below the compacted revision: %v", err)
			}
		}
	}
	if x, y := leases(t, ctx, a), leases(t, ctx, b); x != y {
		t.Errorf("leases: %s and %s", x, y)
	}
	if known.auth {
		if x, y := users(t, ctx, a), users(t, ctx, b); x != y {
			t.Errorf("users and roles: %s and %s", x, y)
		}
	}
}

// equalKeys reads everything at a revision from both, a part at a time.
func equalKeys(t *testing.T, ctx context.Context, a, b *clientv3.Client, revision int64) {
	t.Helper()
	get := must[*clientv3.GetResponse](t)
	from := "\x00"
	for {
		opts := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithRev(revision), clientv3.WithLimit(20_000)}
		x, y := get(a.Get(ctx, from, opts...)), get(b.Get(ctx, from, opts...))
		if x.Count != y.Count || x.More != y.More || len(x.Kvs) != len(y.Kvs) {
			t.Fatalf("at %d from %q: %d of %d keys and %d of %d", revision, from, len(x.Kvs), x.Count, len(y.Kvs), y.Count)
		}
		for i, kv := range x.Kvs {
			if kv.String() != y.Kvs[i].String() {
				t.Fatalf("at %d: %.300s and %.300s", revision, kv, y.Kvs[i])
			}
		}
		if !x.More {
			return
		}
		from = string(x.Kvs[len(x.Kvs)-1].Key) + "\x00"
	}
}

func leases(t *testing.T, ctx context.Context, cli *clientv3.Client) string {
	t.Helper()
	all := must[*clientv3.LeaseLeasesResponse](t)(cli.Leases(ctx))
	var lines []string
	for _, lease := range all.Leases {
		info := must[*clientv3.LeaseTimeToLiveResponse](t)(cli.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()))
		keys := make([]string, len(info.Keys))
		for i, key := range info.Keys {
			keys[i] = string(key)
		}
		slices.Sort(keys)
		lines = append(lines, fmt.Sprintf("%d granted %d keys %v", lease.ID, info.GrantedTTL, keys))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func users(t *testing.T, ctx context.Context, cli *clientv3.Client) string {
	t.Helper()
	var lines []string
	for _, user := range must[*clientv3.AuthUserListResponse](t)(cli.UserList(ctx)).Users {
		lines = append(lines, fmt.Sprint(user, must[*clientv3.AuthUserGetResponse](t)(cli.UserGet(ctx, user)).Roles))
	}
	for _, role := range must[*clientv3.AuthRoleListResponse](t)(cli.RoleList(ctx)).Roles {
		lines = append(lines, fmt.Sprint(role, must[*clientv3.AuthRoleGetResponse](t)(cli.RoleGet(ctx, role)).Perm))
	}
	return strings.Join(lines, "; ")
}

type fileStatus struct {
	Hash      uint32 `json:"hash"`
	Revision  int64  `json:"revision"`
	TotalKey  int64  `json:"totalKey"`
	TotalSize int64  `json:"totalSize"`
	Version   string `json:"version"`
}

// statusOf has etcdutl check the file's consistency and say what is in it.
func statusOf(t *testing.T, file string) fileStatus {
	t.Helper()
	var status fileStatus
	if err := json.Unmarshal(run(t, etcdutlBin, "snapshot", "status", file, "-w", "json"), &status); err != nil {
		t.Fatal(err)
	}
	return status
}

func restore(bin, file string) func(*proc.Server) error {
	return func(srv *proc.Server) error {
		_, err := output(bin, "snapshot", "restore", file, "--data-dir="+srv.DataDir(), "--name="+proc.Name,
			"--initial-cluster="+proc.Name+"="+srv.PeerURL(), "--initial-advertise-peer-urls="+srv.PeerURL())
		return err
	}
}

// writesNext checks that the next write gets the next revision.
func writesNext(t *testing.T, ctx context.Context, cli *clientv3.Client, revision int64) {
	t.Helper()
	if got := must[*clientv3.PutResponse](t)(cli.Put(ctx, "next", "x")).Header.Revision; got != revision+1 {
		t.Errorf("the first write after %d got revision %d", revision, got)
	}
}

func TestEtcdStartsFromABackupOfKvd(t *testing.T) {
	eachEngine(t, func(t *testing.T, args ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		kvd, ours := start(t, "kvd", os.Getenv("KVD_BIN"), nil, args...)
		known := fill(t, ctx, ours)
		last := known.probes[len(known.probes)-1]
		file := filepath.Join(t.TempDir(), "backup.db")

		// Writes go on meanwhile: the backup is of one moment all the same.
		stop, done := context.WithCancel(ctx)
		var writers sync.WaitGroup
		writers.Add(1)
		go func() {
			defer writers.Done()
			for n := 0; stop.Err() == nil; n++ {
				_, _ = ours.Put(stop, "meanwhile", fmt.Sprint(n))
			}
		}()
		run(t, etcdctlBin, "--endpoints="+kvd.URL(), "snapshot", "save", file)
		done()
		writers.Wait()

		status := statusOf(t, file)
		if status.Revision < last || status.Version != "3.7.0" {
			t.Errorf("status of the backup: %+v, and revision %d was written before", status, last)
		}
		_, theirs := start(t, "etcd", etcdBin, restore(etcdutlBin, file))
		known.probes = append(known.probes, status.Revision)
		compare(t, ctx, ours, theirs, known)
		members := must[*clientv3.MemberListResponse](t)(theirs.MemberList(ctx)).Members
		if len(members) != 1 || members[0].Name != proc.Name {
			t.Errorf("members of the restored cluster: %v", members)
		}
		writesNext(t, ctx, theirs, status.Revision)
	})
}

func TestEtcdStartsFromABackupOfAnEmptyKvd(t *testing.T) {
	eachEngine(t, func(t *testing.T, args ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		kvd, ours := start(t, "kvd", os.Getenv("KVD_BIN"), nil, args...)
		file := filepath.Join(t.TempDir(), "backup.db")
		run(t, etcdctlBin, "--endpoints="+kvd.URL(), "snapshot", "save", file)
		if status := statusOf(t, file); status.Revision != 0 || status.TotalKey != 0 {
			t.Errorf("status of an empty backup: %+v", status)
		}
		_, theirs := start(t, "etcd", etcdBin, restore(etcdutlBin, file))
		compare(t, ctx, ours, theirs, filled{compacted: -1, probes: []int64{1}})
		writesNext(t, ctx, theirs, 1)
	})
}

func TestKvdStartsFromABackupOfEtcd(t *testing.T) {
	if _, err := os.Stat(kvctlBin); err != nil {
		t.Skipf("set KVCTL_BIN, or KVD_BIN with kvctl beside it: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*testTimeout)
	defer cancel()
	etcd, theirs := start(t, "etcd", etcdBin, nil)
	known := fill(t, ctx, theirs)
	last := known.probes[len(known.probes)-1]
	dir := t.TempDir()
	file := filepath.Join(dir, "backup.db")
	run(t, etcdctlBin, "--endpoints="+etcd.URL(), "snapshot", "save", file)
	for _, form := range []string{"json", "simple", "table", "fields"} {
		theirs := run(t, etcdutlBin, "snapshot", "status", file, "-w", form)
		ours := run(t, kvctlBin, "snapshot", "status", file, "-w", form)
		if !bytes.Equal(theirs, ours) {
			t.Errorf("snapshot status -w %s: etcdutl says\n%s\nkvctl says\n%s", form, theirs, ours)
		}
	}
	eachEngine(t, func(t *testing.T, args ...string) {
		kvd, ours := start(t, "kvd", os.Getenv("KVD_BIN"), func(srv *proc.Server) error {
			restore := []string{"snapshot", "restore", file, "--data-dir=" + srv.DataDir(), "--name=" + proc.Name,
				"--initial-cluster=" + proc.Name + "=" + srv.PeerURL(), "--initial-advertise-peer-urls=" + srv.PeerURL()}
			_, err := output(kvctlBin, append(restore, args...)...)
			return err
		}, args...)
		compare(t, ctx, ours, theirs, known)
		writesNext(t, ctx, ours, last)

		// And back: nothing was lost on the way.
		again := filepath.Join(t.TempDir(), "again.db")
		run(t, kvctlBin, "--endpoints="+kvd.URL(), "snapshot", "save", again)
		if status := statusOf(t, again); status.Revision != last+1 {
			t.Errorf("status of the backup of the restored member: %+v", status)
		}
	})
}

func TestRestoreRaisesTheRevisionAsEtcdutlDoes(t *testing.T) {
	if _, err := os.Stat(kvctlBin); err != nil {
		t.Skipf("set KVCTL_BIN, or KVD_BIN with kvctl beside it: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	etcd, cli := start(t, "etcd", etcdBin, nil)
	for n := range 20 {
		must[*clientv3.PutResponse](t)(cli.Put(ctx, fmt.Sprint("k", n%7), fmt.Sprint(n)))
	}
	file := filepath.Join(t.TempDir(), "backup.db")
	run(t, etcdctlBin, "--endpoints="+etcd.URL(), "snapshot", "save", file)
	raised := func(bin string) func(*proc.Server) error {
		return func(srv *proc.Server) error {
			_, err := output(bin, "snapshot", "restore", file, "--data-dir="+srv.DataDir(), "--name="+proc.Name,
				"--initial-cluster="+proc.Name+"="+srv.PeerURL(), "--initial-advertise-peer-urls="+srv.PeerURL(),
				"--bump-revision=1000", "--mark-compacted")
			return err
		}
	}
	_, theirs := start(t, "etcd", etcdBin, raised(etcdutlBin))
	_, ours := start(t, "kvd", os.Getenv("KVD_BIN"), raised(kvctlBin))
	for _, cli := range []*clientv3.Client{theirs, ours} {
		got := must[*clientv3.GetResponse](t)(cli.Get(ctx, "k", clientv3.WithPrefix()))
		if got.Header.Revision != 1021 || got.Count != 7 {
			t.Errorf("revision %d with %d keys", got.Header.Revision, got.Count)
		}
		if _, err := cli.Get(ctx, "k1", clientv3.WithRev(21)); err != rpctypes.ErrCompacted {
			t.Errorf("read of a revision before the raise: %v", err)
		}
		watch, stop := context.WithCancel(ctx)
		if answer := <-cli.Watch(watch, "k1", clientv3.WithRev(21)); answer.CompactRevision != 1021 {
			t.Errorf("watch from before the raise: %+v", answer)
		}
		stop()
		writesNext(t, ctx, cli, 1021)
	}
	for _, flags := range [][]string{{"--bump-revision=5"}, {"--mark-compacted"}} {
		for _, bin := range []string{etcdutlBin, kvctlBin} {
			args := append([]string{"snapshot", "restore", file, "--data-dir=" + filepath.Join(t.TempDir(), "d")}, flags...)
			if _, err := output(bin, args...); err == nil {
				t.Errorf("%s accepts %v", filepath.Base(bin), flags)
			}
		}
	}
}
