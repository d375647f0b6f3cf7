// Command storm sends random valid gRPC requests of every method to a cluster of kvd for some time, many at once, and then
// asks whether anything broke: a member that ended or panicked, an internal error, memory that only grows, members that differ.
//
//	storm --kvd-bin=../../target/release/kvd --seconds=300 --seed=1
//
// Requests are built from the services' descriptors: every field of every message takes part, unknown enum values and absurd
// numbers too. The order in which workers' requests meet is not a function of the seed; the requests are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"kvd.dev/interop/proc"
)

// memoryGrowthMax bounds what a member's own memory may grow by between the first quarter of the run and its end.
const memoryGrowthMax = 64 << 20

func main() {
	var kvdBin, kvdArgs string
	var seconds, workers, members int
	var seed uint64
	flag.StringVar(&kvdBin, "kvd-bin", "", "the server under test")
	flag.StringVar(&kvdArgs, "kvd-args", "--unsafe-no-fsync", "more flags for it, separated by spaces")
	flag.IntVar(&seconds, "seconds", 300, "how long requests are sent")
	flag.IntVar(&workers, "workers", 48, "workers that send at once")
	flag.IntVar(&members, "members", 3, "members of the cluster")
	flag.Uint64Var(&seed, "seed", 1, "seed of the requests")
	flag.Parse()
	failures, err := run(kvdBin, strings.Fields(kvdArgs), members, workers, time.Duration(seconds)*time.Second, seed)
	if err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
		os.Exit(2)
	}
	for _, failure := range failures {
		fmt.Println("FAILED:", failure)
	}
	fmt.Printf("storm: seed %d, %d s, %d members: %d failures\n", seed, seconds, members, len(failures))
	if len(failures) > 0 {
		os.Exit(1)
	}
}

// storm is one run.
type storm struct {
	length  time.Duration
	members []*proc.Server
	conns   []*grpc.ClientConn
	ids     []uint64
	methods []method

	mu       sync.Mutex
	token    string // of a user who may read and write all keys, while auth is on
	counts   map[string]*count
	failures []string
}

// count is what became of one method's requests.
type count struct {
	sent, ok int
	codes    map[string]int
}

func run(bin string, args []string, size, workers int, length time.Duration, seed uint64) ([]string, error) {
	args = append([]string{"--quota-backend-bytes=4294967296"}, args...)
	members, err := proc.StartSeveral(proc.Options{Label: "kvd", Bin: bin, Args: args}, size)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, m := range members {
			m.Close()
		}
	}()
	s := &storm{length: length, members: members, methods: allMethods(), counts: map[string]*count{}}
	ctx, cancel := context.WithTimeout(context.Background(), length+2*time.Minute)
	defer cancel()
	var urls []string
	for _, m := range members {
		conn, err := m.Dial()
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		s.conns = append(s.conns, conn)
		urls = append(urls, m.URL())
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: urls, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	list, err := cli.MemberList(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list.Members {
		s.ids = append(s.ids, m.ID)
	}

	var running sync.WaitGroup
	sending, stop := context.WithCancel(ctx)
	for n := range workers {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		running.Go(func() {
			for sending.Err() == nil {
				s.send(sending, random)
			}
		})
	}
	running.Go(func() { s.tidy(sending, urls) })
	early := make([]uint64, size)
	select {
	case <-time.After(length / 4):
		early, err = s.memory()
	case <-ctx.Done():
	}
	select {
	case <-time.After(length - length/4):
	case <-ctx.Done():
	}
	stop()
	running.Wait()
	if err != nil {
		return nil, err
	}
	s.judge(ctx, cli, early)
	s.report()
	return s.failures, nil
}

func (s *storm) failed(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) < 50 {
		s.failures = append(s.failures, fmt.Sprintf(format, args...))
	}
}

// tidy takes back what would end the storm by its own rules: alarms, leases without number, history. Auth goes on and off.
func (s *storm) tidy(ctx context.Context, urls []string) {
	config := clientv3.Config{Endpoints: urls, Logger: zap.NewNop(), DialTimeout: 10 * time.Second}
	const rootPassword, userPassword = "root's", "user's"
	open, err := clientv3.New(config)
	if err != nil {
		s.failed("no client: %v", err)
		return
	}
	defer open.Close()
	for round := 0; ctx.Err() == nil; round++ {
		alarms, err := open.AlarmList(ctx)
		if err == nil {
			for _, alarm := range alarms.Alarms {
				_, _ = open.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: alarm.MemberID, Alarm: alarm.Alarm})
			}
		}
		leases, err := open.Leases(ctx)
		if err == nil {
			for _, lease := range leases.Leases {
				_, _ = open.Revoke(ctx, lease.ID)
			}
		}
		if now, err := open.Get(ctx, "now"); err == nil && now.Header.Revision > 1000 {
			_, _ = open.Compact(ctx, now.Header.Revision-1000)
		}
		cli := open
		on := round%4 == 3
		if on {
			// The random requests change users and roles as well; what they broke is made again.
			_, _ = cli.UserAdd(ctx, "root", rootPassword)
			_, _ = cli.UserChangePassword(ctx, "root", rootPassword)
			_, _ = cli.RoleAdd(ctx, "root")
			_, _ = cli.UserGrantRole(ctx, "root", "root")
			_, _ = cli.UserAdd(ctx, "storm", userPassword)
			_, _ = cli.UserChangePassword(ctx, "storm", userPassword)
			_, _ = cli.RoleAdd(ctx, "storm")
			_, _ = cli.RoleGrantPermission(ctx, "storm", "\x00", "\x00", clientv3.PermissionType(clientv3.PermReadWrite))
			_, _ = cli.UserGrantRole(ctx, "storm", "storm")
			_, _ = cli.AuthEnable(ctx)
			resp, err := cli.Authenticate(ctx, "storm", userPassword)
			if err == nil {
				s.setToken(resp.Token)
			}
			named := config
			named.Username, named.Password = "root", rootPassword
			if cli, err = clientv3.New(named); err != nil {
				// Auth is off after all, or the tidying has to wait for its next round.
				cli = open
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
		if on {
			// Also when the run is over: the judge reads without a name.
			ending, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			_, err := cli.AuthDisable(ending)
			cancel()
			s.setToken("")
			if err != nil && ctx.Err() == nil && cli != open {
				s.failed("auth cannot be disabled: %v", err)
			}
			if cli != open {
				_ = cli.Close()
			}
		}
	}
}

func (s *storm) setToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// memory is each member's own memory now.
func (s *storm) memory() ([]uint64, error) {
	var all []uint64
	for _, m := range s.members {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
		if err != nil {
			return nil, err
		}
		_, after, found := strings.Cut(string(data), "RssAnon:")
		if !found {
			return nil, errors.New("no RssAnon in /proc")
		}
		kib, err := strconv.ParseUint(strings.Fields(after)[0], 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, kib<<10)
	}
	return all, nil
}

// judge looks at the members once nobody sends any more.
func (s *storm) judge(ctx context.Context, cli *clientv3.Client, early []uint64) {
	for n, m := range s.members {
		if m.Exited() {
			s.failed("member %d ended:\n%s", n, m.LogTail(20))
		}
		if strings.Contains(m.LogTail(1_000_000), "panicked") {
			s.failed("member %d panicked:\n%s", n, m.LogTail(20))
		}
	}
	if len(s.failures) > 0 {
		return
	}
	// A write that everybody must have before they are compared.
	put, err := cli.Put(ctx, "the end", "")
	if err != nil {
		s.failed("a put after the storm: %v", err)
		return
	}
	var first string
	for n, m := range s.members {
		state, err := s.state(ctx, n, m, put.Header.Revision)
		if err != nil {
			s.failed("the state of member %d: %v", n, err)
			return
		}
		if n == 0 {
			first = state
		} else if state != first {
			s.failed("members differ:\nmember 0: %s\nmember %d: %s", first, n, state)
		}
	}
	late, err := s.memory()
	if err != nil {
		s.failed("%v", err)
		return
	}
	for n := range late {
		fmt.Printf("member %d: %d MiB of its own after a quarter of the time, %d MiB at the end\n", n, early[n]>>20, late[n]>>20)
		if late[n] > early[n]+memoryGrowthMax {
			s.failed("member %d grew from %d to %d MiB", n, early[n]>>20, late[n]>>20)
		}
	}
}

// state is everything replicated, as one member says it, in words.
func (s *storm) state(ctx context.Context, n int, m *proc.Server, revision int64) (string, error) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{m.URL()}, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	if err != nil {
		return "", err
	}
	defer cli.Close()
	// Linearizable, so this member has applied the write.
	if _, err := cli.Get(ctx, "the end"); err != nil {
		return "", err
	}
	hash, err := cli.HashKV(ctx, m.URL(), revision)
	if err != nil {
		return "", err
	}
	auth, err := etcdserverpb.NewAuthClient(s.conns[n]).AuthStatus(ctx, &etcdserverpb.AuthStatusRequest{})
	if err != nil {
		return "", err
	}
	users, err := cli.UserList(ctx)
	if err != nil {
		return "", err
	}
	roles, err := cli.RoleList(ctx)
	if err != nil {
		return "", err
	}
	leases, err := cli.Leases(ctx)
	if err != nil {
		return "", err
	}
	var ids []int64
	for _, lease := range leases.Leases {
		ids = append(ids, int64(lease.ID))
	}
	slices.Sort(ids)
	list, err := cli.MemberList(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("hash %d of revisions up to %d, compacted %d; auth revision %d, users %q, roles %q; leases %d; members %v",
		hash.Hash, revision, hash.CompactRevision, auth.AuthRevision, users.Users, roles.Roles, ids, list.Members), nil
}

// report prints what became of each method's requests. A method that in a minute and more was never sent, or never answered
// with success although random requests can succeed, is a failure of the storm itself.
func (s *storm) report() {
	var names []string
	for _, m := range s.methods {
		names = append(names, m.name())
	}
	sort.Strings(names)
	total, ok := 0, 0
	for _, name := range names {
		c := s.counts[name]
		if c == nil {
			c = &count{}
		}
		total, ok = total+c.sent, ok+c.ok
		fmt.Printf("%-40s %7d sent %7d ok  %v\n", name, c.sent, c.ok, c.codes)
		if s.length >= time.Minute && (c.sent == 0 || c.ok == 0 && !seldom[name]) {
			s.failed("%s: %d requests, none with success", name, c.sent)
		}
	}
	fmt.Printf("%d requests, %d answered with success\n", total, ok)
}

// seldom are methods whose random requests hardly ever succeed: members and releases cannot be guessed, and what is taken
// back must have been given.
var seldom = map[string]bool{
	"Cluster/MemberAdd": true, "Cluster/MemberRemove": true, "Cluster/MemberUpdate": true, "Cluster/MemberPromote": true,
	"Maintenance/Downgrade": true, "Auth/Authenticate": true, "Auth/UserChangePassword": true, "Auth/UserRevokeRole": true,
	"Auth/RoleRevokePermission": true,
}
