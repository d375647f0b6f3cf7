// Package workload owns what kv-load can do to a server.
//
// Names, parameters and their defaults are those of etcd's tools/benchmark; `lease` and `kubernetes` and the common flags
// --duration, --seed and --server-pid are additions. Each workload prepares what it needs, then runs its measured part; all
// latencies are taken around calls of the official Go client.
package workload

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3"

	"kvd.dev/load/internal/measure"
)

// Workload is one entry of the list.
type Workload struct {
	Name, Summary string
	// Main is the series whose count is the number of operations.
	Main string
	// Args names the positional arguments, empty if there are none.
	Args string
	// Total is the default of --total.
	Total int
	// Flags declares the workload's own flags and returns its body.
	Flags func(*flag.FlagSet) Body
}

// Body prepares, then calls run.Measured once.
type Body func(ctx context.Context, run *Run, args []string) error

// All lists the workloads.
func All() []Workload {
	return []Workload{put, rangeKeys, txnPut, txnMixed, watch, watchLatency, watchGet, leaseKeepAlive, lease, stm, kubernetes}
}

// Options are the parameters common to all workloads.
type Options struct {
	// Total bounds the number of operations; 0 means no bound.
	Total int
	// Duration bounds the time of the measured part; 0 means no bound.
	Duration time.Duration
	// Rate is the highest number of operations a second over all clients; 0 means no bound.
	Rate float64
	// Seed makes two runs send the same requests.
	Seed int64
	// ServerPIDs are the server's processes, one a member; none if unknown.
	ServerPIDs []int
}

// Run is one execution of a workload.
type Run struct {
	Options
	// Clients holds one entry a simulated client; several share a connection.
	Clients []*clientv3.Client

	lock    sync.Mutex
	latency map[string]*measure.Latencies
	errors  map[string]uint64
	cost    measure.Cost
	memory  *measure.Memory
}

// Measured runs f between two readings of what client and server have spent.
func (r *Run) Measured(f func() error) error {
	r.latency, r.errors = make(map[string]*measure.Latencies), make(map[string]uint64)
	sampler := measure.SampleMemory(r.ServerPIDs)
	before, err := measure.ReadUsage(r.ServerPIDs)
	if err != nil {
		return err
	}
	failed := f()
	after, err := measure.ReadUsage(r.ServerPIDs)
	memory, memoryErr := sampler.Stop()
	if len(r.ServerPIDs) > 0 {
		r.memory = &memory
	}
	r.cost = after.Since(before)
	return errors.Join(failed, err, memoryErr)
}

// Report writes what Measured found into a report.
func (r *Run) Report(report *measure.Report) {
	report.Latency = make(map[string]measure.Summary)
	for series, latencies := range r.latency {
		report.Latency[series] = latencies.Summary()
	}
	report.Errors = r.errors
	report.Fill(r.cost, r.memory)
}

// worker is one simulated client: a closed loop with its own random numbers and records.
type worker struct {
	client  *clientv3.Client
	number  int
	random  *rand.Rand
	latency map[string]*measure.Latencies
	errors  map[string]uint64
}

func (r *Run) worker(number int) *worker {
	return &worker{
		client: r.Clients[number%len(r.Clients)], number: number, random: rand.New(rand.NewSource(r.Seed<<16 + int64(number))),
		latency: make(map[string]*measure.Latencies), errors: make(map[string]uint64),
	}
}

// timed runs one operation and records how long it took under all the names given, or its error under the first.
func (w *worker) timed(series string, operation func() error, also ...string) {
	started := time.Now()
	if err := operation(); err != nil {
		// The run's own end is no error.
		if !errors.Is(err, context.Canceled) {
			w.errors[series+": "+err.Error()]++
		}
		return
	}
	took := time.Since(started)
	w.record(series, took)
	for _, series := range also {
		w.record(series, took)
	}
}

func (w *worker) record(series string, took time.Duration) {
	latencies := w.latency[series]
	if latencies == nil {
		latencies = new(measure.Latencies)
		w.latency[series] = latencies
	}
	latencies.Record(took)
}

// keep adds a worker's records to those of the run.
func (r *Run) keep(w *worker) {
	r.lock.Lock()
	defer r.lock.Unlock()
	for series, latencies := range w.latency {
		if r.latency[series] == nil {
			r.latency[series] = new(measure.Latencies)
		}
		r.latency[series].Add(latencies)
	}
	for text, count := range w.errors {
		r.errors[text] += count
	}
}

// each runs operation on every client in a closed loop until the bounds of the run are met. n counts over all clients.
func (r *Run) each(ctx context.Context, operation func(ctx context.Context, w *worker, n int)) error {
	if r.Total == 0 && r.Duration == 0 {
		return errors.New("neither --total nor --duration bounds the run")
	}
	var next atomic.Int64
	var running sync.WaitGroup
	started := time.Now()
	for number := range r.Clients {
		running.Go(func() {
			w := r.worker(number)
			for ctx.Err() == nil {
				n := int(next.Add(1) - 1)
				if r.Total > 0 && n >= r.Total || !r.pace(ctx, started, n) {
					break
				}
				operation(ctx, w, n)
			}
			r.keep(w)
		})
	}
	running.Wait()
	return ctx.Err()
}

// pace waits until operation n is due; false when the run's time is over.
func (r *Run) pace(ctx context.Context, started time.Time, n int) bool {
	if r.Rate > 0 {
		due := started.Add(time.Duration(float64(n) / r.Rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(wait):
			}
		}
	}
	return r.Duration == 0 || time.Since(started) < r.Duration
}

// keySpace makes keys as etcd's benchmark does: a fixed size, a varint at the front.
type keySpace struct {
	keyBytes, keys int
	sequential     bool
}

func (k *keySpace) flags(fs *flag.FlagSet, keyBytes int) {
	fs.IntVar(&k.keyBytes, "key-size", keyBytes, "bytes of a key")
	fs.IntVar(&k.keys, "key-space-size", 1, "number of different keys")
	fs.BoolVar(&k.sequential, "sequential-keys", false, "keys in order instead of at random")
}

func (k *keySpace) check() error {
	if k.keys < 1 {
		return fmt.Errorf("--key-space-size is %d, at least 1 is needed", k.keys)
	}
	if needed := len(binary.AppendVarint(nil, int64(k.keys))); k.keyBytes < needed {
		return fmt.Errorf("--key-size %d is too small for --key-space-size %d, at least %d is needed", k.keyBytes, k.keys, needed)
	}
	return nil
}

func (k *keySpace) key(w *worker, n int) string {
	number := n % k.keys
	if !k.sequential {
		number = w.random.Intn(k.keys)
	}
	key := make([]byte, k.keyBytes)
	binary.PutVarint(key, int64(number))
	return string(key)
}

// randomValue is the value that every write of a run carries.
func (r *Run) randomValue(bytes int) string {
	value := make([]byte, bytes)
	rand.New(rand.NewSource(r.Seed)).Read(value)
	return string(value)
}

func noArgs(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

// keyArgs are the one or two positional arguments of range and txn-mixed.
func keyArgs(args []string) (key, end string, err error) {
	switch len(args) {
	case 1:
		return args[0], "", nil
	case 2:
		return args[0], args[1], nil
	}
	return "", "", fmt.Errorf("%d arguments, expected: key [end-range]", len(args))
}
