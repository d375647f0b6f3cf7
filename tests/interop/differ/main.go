// Command differ sends the same generated requests to a real etcd and to kvd, one by one, and compares every answer.
//
//	differ --etcd-bin=bin/etcd --kvd-bin=../../target/release/kvd --requests=20000 --seed=1
//
// A run is a function of its seed. It fails when an answer differs, when something in scope (scope.go) was never
// produced by both servers, or when fewer than 30 % of the writes took effect.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"kvd.dev/interop/proc"
)

type config struct {
	etcdBin, kvdBin   string
	etcdArgs, kvdArgs string
	requests          int
	seed              uint64
	diffsMax          int
	sabotage          int
	partial           bool
	restarts          int
}

// effectiveMin is the least part of the writes, in percent, that must take effect.
const effectiveMin = 30

func main() {
	var c config
	flag.StringVar(&c.etcdBin, "etcd-bin", "bin/etcd", "the reference server")
	flag.StringVar(&c.kvdBin, "kvd-bin", "", "the server under test")
	flag.StringVar(&c.etcdArgs, "etcd-args", "--unsafe-no-fsync", "more flags for the reference, separated by spaces")
	flag.StringVar(&c.kvdArgs, "kvd-args", "", "more flags for the server under test, separated by spaces")
	flag.IntVar(&c.requests, "requests", 20000, "how many requests to send")
	flag.Uint64Var(&c.seed, "seed", 1, "seed of the generator")
	flag.IntVar(&c.diffsMax, "max-diffs", 20, "stop after this many differences")
	flag.IntVar(&c.sabotage, "sabotage", 0, "falsify one field of the tested server's answer at this request, which must then be found")
	flag.BoolVar(&c.partial, "partial", false, "do not fail for missing coverage (for short runs)")
	flag.IntVar(&c.restarts, "restarts", 2, "how often both servers are killed and started again during the run")
	flag.Parse()
	if c.kvdBin == "" {
		fmt.Fprintln(os.Stderr, "differ: --kvd-bin is required")
		os.Exit(2)
	}
	res, err := run(c, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "differ:", err)
		os.Exit(2)
	}
	if !res.ok() {
		os.Exit(1)
	}
}

// result is the outcome of a run.
type result struct {
	requests, diffs int
	missing         []string
	effective       float64
	sabotaged       string
}

func (r result) ok() bool {
	return r.diffs == 0 && len(r.missing) == 0 && r.effective >= effectiveMin
}

func run(c config, out io.Writer) (result, error) {
	p := &pair{
		cov: newCoverage(), out: out, seed: c.seed, rng: rand.New(rand.NewPCG(c.seed, 0)),
		requestsGoal: c.requests, diffsMax: c.diffsMax, sabotageAt: c.sabotage, settled: true, restarts: c.restarts,
	}
	for i, o := range []proc.Options{
		{Label: "etcd", Bin: c.etcdBin, Args: strings.Fields(c.etcdArgs)},
		{Label: "kvd", Bin: c.kvdBin, Args: strings.Fields(c.kvdArgs)},
	} {
		// Progress notifications come often enough to be seen.
		o.Args = append([]string{"--watch-progress-notify-interval=1s"}, o.Args...)
		srv, err := proc.Start(o)
		if err != nil {
			return result{}, err
		}
		defer srv.Close()
		p.sides[i] = &side{srv: srv, leases: newLeaseNames()}
		if err := p.sides[i].connect(); err != nil {
			return result{}, fmt.Errorf("%s: %w", o.Label, err)
		}
		defer func() { _ = p.sides[i].conn.Close() }()
	}
	start := time.Now()
	fmt.Fprintf(out, "differ: %d requests, seed %d, %s against %s %s\n", c.requests, c.seed, c.etcdBin, c.kvdBin, c.kvdArgs)
	if err := p.run(); err != nil && !errors.Is(err, errStop) {
		return result{}, err
	}
	res := result{requests: p.requests, diffs: p.diffs, effective: p.cov.effectivePercent(), sabotaged: p.sabotaged}
	missing := p.cov.report(out)
	if !c.partial {
		res.missing = missing
	}
	for _, m := range res.missing {
		fmt.Fprintln(out, "never produced by both:", m)
	}
	if res.effective < effectiveMin {
		fmt.Fprintf(out, "only %.1f %% of the writes took effect, want %d %%\n", res.effective, effectiveMin)
	}
	verdict := "ok"
	if !res.ok() {
		verdict = "FAILED"
	}
	fmt.Fprintf(out, "differ: %s: %d requests, %d differences, %d of scope never produced, %.1f s\n",
		verdict, res.requests, res.diffs, len(res.missing), time.Since(start).Seconds())
	return res, nil
}

func (p *pair) run() error {
	if err := p.prelude(); err != nil {
		return err
	}
	for p.requests < p.requestsGoal {
		if p.requests > p.requestsGoal*(p.restarted+1)/(p.restarts+1) {
			if err := p.restart(); err != nil {
				return err
			}
		}
		if err := p.step(); err != nil {
			return err
		}
	}
	return p.finale()
}

// connect opens the side's connection and waits until the member is complete.
func (s *side) connect() error {
	conn, err := s.srv.Dial()
	if err != nil {
		return err
	}
	s.conn = conn
	return waitReady(s)
}

// restart kills both servers and starts them again: everything acknowledged must still be there, leases with their
// whole time.
func (p *pair) restart() error {
	p.restarted++
	for len(p.streams) > 0 {
		if err := p.closeStream(p.streams[0]); err != nil {
			return err
		}
	}
	// An unfinished compaction would go on after the start on one server and not on the other.
	if err := p.finishCompaction(); err != nil {
		return err
	}
	killed := time.Now()
	for _, s := range p.sides {
		if s.keepAlive != nil {
			s.keepAliveCancel()
			s.keepAlive = nil
		}
		_ = s.conn.Close()
		s.srv.Kill()
		if err := s.srv.Run(); err != nil {
			return err
		}
		if err := s.connect(); err != nil {
			return fmt.Errorf("%s after a restart: %w", s.srv.Label, err)
		}
	}
	for _, l := range p.leases {
		if err := p.checkRestored(l, time.Since(killed)); err != nil {
			return err
		}
	}
	return p.compareAll()
}

// waitReady waits for what a member decides a moment after it serves: its storage version, a few seconds after the
// first election. A server that never reports one is compared as it is.
func waitReady(s *side) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		resp, err := pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
		cancel()
		if err != nil {
			return err
		}
		if resp.StorageVersion != "" || time.Now().After(deadline) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}
