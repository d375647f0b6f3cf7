package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"kvd.dev/load/internal/measure"
)

// credentials of the user that the puts with a token are made as; kv-load takes them as one word.
const loadUser, loadPassword = "load", "a password"

// api is for what the whole API promises beside the plain workloads: the price of auth, crowds of watchers and leases, slow
// readers, long lists, and what a defragmentation holds up.
func api(s sizes, leases, listKeys int) []scenario {
	duration := fmt.Sprintf("--duration=%ds", s.seconds)
	puts := []string{"put", duration, "--conns=8", "--clients=64", "--val-size=256", "--key-space-size=100000"}
	special := func(row string, figures func(context.Context, *cluster) ([]figure, error)) step {
		return step{row: row, figures: figures, limit: 20 * time.Minute}
	}
	large := []string{fmt.Sprintf("--quota-backend-bytes=%d", int64(8)<<30)}
	return []scenario{
		{name: "auth-put", steps: []step{
			// All keys are there before the first of the two is measured.
			prepare("put", "--conns=8", "--clients=64", "--sequential-keys", "--key-space-size=100000", "--total=100000", "--val-size=256"),
			run("put, 64 clients, without auth", puts...),
			special("", enableAuth),
			run("put, 64 clients, with a simple token", append([]string{"--user=" + loadUser + ":" + loadPassword}, puts...)...),
		}},
		{name: "watch-10k", steps: []step{
			run("put under 10,000 watchers of one prefix (100 x 100), 1 client", "watch-latency", "--conns=10", "--clients=10", "--streams=100",
				"--watchers-per-stream=100", "--prefix", "--put-rate=0", fmt.Sprintf("--put-total=%d", 20*s.seconds), "--val-size=256"),
		}},
		{name: "watch-crowd", steps: []step{
			special("10,000 watchers of one prefix on 100 bare connections", crowd(100, 100, 20*s.seconds)),
		}},
		{name: "lease-keepalive", steps: []step{
			run("lease-keepalive, 64 clients", "lease-keepalive", duration, "--conns=8", "--clients=64"),
		}},
		{name: "stalled-watch", rounds: 1, steps: []step{special("a watch stream that nobody reads, under 256 MiB of events", stalledWatch(256*mib, 64<<10))}},
		{name: "leases", rounds: 1, serverArgs: large, steps: []step{special(fmt.Sprintf("%d leases alive", leases), manyLeases(leases))}},
		{name: "range-stream", rounds: 1, serverArgs: large, steps: []step{
			special("", fillKeys(listKeys, 4096)),
			special(fmt.Sprintf("RangeStream of %d keys of 4 KiB", listKeys), rangeStream(listKeys)),
			special("Defragment of that store, under puts and gets", defragment),
		}},
		{name: "lists", rounds: 1, serverArgs: large, steps: []step{
			special("", fillKeys(listKeys, 256)),
			special(fmt.Sprintf("100 lists of %d keys of 256 B at once", listKeys), manyLists(100, listKeys)),
		}},
	}
}

func enableAuth(ctx context.Context, c *cluster) ([]figure, error) {
	client, err := c.client(c.endpoints()...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	_, root := client.UserAdd(ctx, "root", "root")
	_, granted := client.UserGrantRole(ctx, "root", "root")
	_, role := client.RoleAdd(ctx, loadUser)
	_, permission := client.RoleGrantPermission(ctx, loadUser, "\x00", "\x00", clientv3.PermissionType(clientv3.PermReadWrite))
	_, user := client.UserAdd(ctx, loadUser, loadPassword)
	_, has := client.UserGrantRole(ctx, loadUser, loadUser)
	_, enabled := client.AuthEnable(ctx)
	return nil, errors.Join(root, granted, role, permission, user, has, enabled)
}

// fillKeys puts keys of one value size, a hundred a transaction.
func fillKeys(keys, valueBytes int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		client, err := c.client(c.endpoints()...)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		value := strings.Repeat("v", valueBytes)
		for first := 0; first < keys; first += 100 {
			var puts []clientv3.Op
			for n := first; n < min(first+100, keys); n++ {
				puts = append(puts, clientv3.OpPut(fmt.Sprintf("key/%08d", n), value))
			}
			if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
}

// memoryAround tells by how much the server's own memory grew at most while f ran.
func memoryAround(c *cluster, f func() error) (growth float64, err error) {
	pid := []int{c.members[0].pid()}
	before, err := measure.SampleMemory(pid).Stop()
	if err != nil {
		return 0, err
	}
	sampler := measure.SampleMemory(pid)
	failed := f()
	during, err := sampler.Stop()
	return (float64(during.PeakAnon) - float64(before.PeakAnon)) / mib, errors.Join(failed, err)
}

// connection is a bare one, for calls whose answers are not to be buffered by the official client.
func (c *cluster) connection() (*grpc.ClientConn, error) {
	return grpc.NewClient(c.members[0].endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func rangeStream(keys int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		conn, err := c.connection()
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		var first, whole time.Duration
		stream := func() error {
			started := time.Now()
			answer, err := pb.NewKVClient(conn).RangeStream(ctx, &pb.RangeRequest{Key: []byte("key/"), RangeEnd: []byte("key0")})
			if err != nil {
				return err
			}
			seen := 0
			for {
				chunk, err := answer.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return err
				}
				if first == 0 {
					first = time.Since(started)
				}
				seen += len(chunk.RangeResponse.Kvs)
			}
			whole = time.Since(started)
			if seen != keys {
				return fmt.Errorf("%d of %d keys came", seen, keys)
			}
			return nil
		}
		growth, err := memoryAround(c, stream)
		return []figure{{"memory MiB +", growth}, {"first chunk ms", milliseconds(first)}, {"all ms", milliseconds(whole)}}, err
	}
}

func manyLists(clients, keys int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		if c.members[0].label == "etcd" {
			// It holds every answer twice: more than a small machine has.
			return []figure{{"not run, answers", 0}}, nil
		}
		var answered, refused atomic.Int64
		started := time.Now()
		var took time.Duration
		growth, err := memoryAround(c, func() error {
			var lists sync.WaitGroup
			var lock sync.Mutex
			var failed error
			for range clients {
				lists.Go(func() {
					err := discardList(ctx, c, keys)
					if err != nil && strings.Contains(err.Error(), "too many requests") {
						refused.Add(1)
						return
					}
					if err == nil {
						answered.Add(1)
					}
					lock.Lock()
					defer lock.Unlock()
					failed = errors.Join(failed, err)
				})
			}
			lists.Wait()
			took = time.Since(started)
			return failed
		})
		return []figure{{"memory MiB +", growth}, {"answered", float64(answered.Load())}, {"refused as too many requests", float64(refused.Load())}, {"all s", took.Seconds()}}, err
	}
}

// discardList lists all keys on a connection of its own and keeps nothing of the answer.
func discardList(ctx context.Context, c *cluster, keys int) error {
	conn, err := c.connection()
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("key/"), RangeEnd: []byte("key0")}, grpc.MaxCallRecvMsgSize(1<<30))
	if err == nil && len(answer.Kvs) != keys {
		return fmt.Errorf("%d of %d keys came", len(answer.Kvs), keys)
	}
	return err
}

// stalledWatch puts values of a size until so many bytes of events have gone to a stream that is not read, and compares the
// puts with those before.
func stalledWatch(bytes, valueBytes int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		client, err := c.client(c.endpoints()...)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		reading := client.Watch(ctx, "k", clientv3.WithCreatedNotify())
		<-reading
		value := strings.Repeat("v", valueBytes)
		// Each put and its event, as the stream that is read sees it.
		putAll := func() (measure.Summary, error) {
			var latencies measure.Latencies
			for range bytes / valueBytes {
				started := time.Now()
				if _, err := client.Put(ctx, "k", value); err != nil {
					return measure.Summary{}, err
				}
				if resp := <-reading; resp.Err() != nil {
					return measure.Summary{}, resp.Err()
				}
				latencies.Record(time.Since(started))
			}
			return latencies.Summary(), nil
		}
		before, err := putAll()
		if err != nil {
			return nil, err
		}
		conn, err := c.connection()
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		stalled, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			return nil, err
		}
		create := &pb.WatchCreateRequest{Key: []byte("k")}
		if err := stalled.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
			return nil, err
		}
		if _, err := stalled.Recv(); err != nil {
			return nil, err
		}
		var during measure.Summary
		growth, err := memoryAround(c, func() error {
			during, err = putAll()
			return err
		})
		return []figure{
			{"memory MiB +", growth}, {"put and event p50 us before", before.P50}, {"with it", during.P50},
			{"p99 us before", before.P99}, {"with it", during.P99},
		}, err
	}
}

func manyLeases(leases int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		const clients = 64
		var next atomic.Int64
		started := time.Now()
		growth, err := memoryAround(c, func() error {
			var granting sync.WaitGroup
			var lock sync.Mutex
			var failed error
			for range clients {
				client, err := c.client(c.endpoints()...)
				if err != nil {
					return err
				}
				granting.Go(func() {
					defer client.Close()
					for next.Add(1) <= int64(leases) {
						if _, err := client.Grant(ctx, 3600); err != nil {
							lock.Lock()
							failed = errors.Join(failed, err)
							lock.Unlock()
							return
						}
					}
				})
			}
			granting.Wait()
			return failed
		})
		if err != nil {
			return nil, err
		}
		now, err := measure.SampleMemory([]int{c.members[0].pid()}).Stop()
		return []figure{
			{"memory MiB +", growth}, {"peak RSS MiB", float64(now.PeakRSS) / mib}, {"granted a second", float64(leases) / time.Since(started).Seconds()},
		}, err
	}
}

// defragment measures what clients notice: the longest put and the longest get around the call.
func defragment(ctx context.Context, c *cluster) ([]figure, error) {
	client, err := c.client(c.endpoints()...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	// Half of the data is dead, so that there is something to copy away from.
	deleted, err := client.Delete(ctx, "key/", clientv3.WithRange("key/00075000"))
	if err != nil {
		return nil, err
	}
	if _, err := client.Compact(ctx, deleted.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(ctx)
	var putMax, getMax atomic.Int64
	var loops sync.WaitGroup
	var counting atomic.Bool
	loop := func(longest *atomic.Int64, call func() error) {
		loops.Go(func() {
			for running.Err() == nil {
				started := time.Now()
				if call() == nil && counting.Load() {
					longest.Store(max(longest.Load(), int64(time.Since(started))))
				}
			}
		})
	}
	loop(&putMax, func() error { _, err := client.Put(running, "writer", "value"); return err })
	loop(&getMax, func() error { _, err := client.Get(running, "key/00100000"); return err })
	idle := func(took time.Duration) (put, get float64) {
		putMax.Store(0)
		getMax.Store(0)
		counting.Store(true)
		<-time.After(took)
		counting.Store(false)
		return milliseconds(time.Duration(putMax.Load())), milliseconds(time.Duration(getMax.Load()))
	}
	putBefore, getBefore := idle(5 * time.Second)
	putMax.Store(0)
	getMax.Store(0)
	counting.Store(true)
	started := time.Now()
	_, err = client.Defragment(ctx, c.members[0].endpoint())
	took := time.Since(started)
	stop()
	loops.Wait()
	return []figure{
		{"took ms", milliseconds(took)}, {"longest put ms before", putBefore}, {"during", milliseconds(time.Duration(putMax.Load()))},
		{"longest get ms before", getBefore}, {"during", milliseconds(time.Duration(getMax.Load()))},
	}, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
