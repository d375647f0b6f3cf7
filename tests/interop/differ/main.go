// Command differ sends the same generated requests to a real etcd and to kvd, one by one, and compares every answer.
//
//	differ --etcd-bin=bin/etcd --kvd-bin=../../target/release/kvd --members=3 --auth=jwt --tls --engine=sled --requests=20000 --seed=1
//
// A run is a function of its seed. It fails when an answer differs, when something in scope (scope.go) was never
// produced by both servers, or when fewer than 30 % of the writes took effect.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"
)

// config is one combination, with how far it is run.
type config struct {
	etcdBin, kvdBin   string
	etcdArgs, kvdArgs string

	members int
	auth    string
	tls     bool
	engine  string // "" is the tested server's own default

	requests   int
	seed       uint64
	diffsMax   int
	sabotageAt int
	partial    bool
	restarts   int
	downgrade  bool
}

func (c config) String() string {
	return fmt.Sprintf("--members=%d --auth=%s --tls=%t --engine=%s --requests=%d --seed=%d", c.members, c.auth, c.tls, c.engine, c.requests, c.seed)
}

// effectiveMin is the least part of the writes, in percent, that must take effect; with auth many are refused.
const effectiveMin = 30

func (c config) effectiveMin() float64 {
	if c.auth != authOff {
		return effectiveMin / 2
	}
	return effectiveMin
}

func main() {
	var c config
	var plan string
	flag.StringVar(&c.etcdBin, "etcd-bin", "bin/etcd", "the reference server")
	flag.StringVar(&c.kvdBin, "kvd-bin", "", "the server under test")
	flag.StringVar(&c.etcdArgs, "etcd-args", "--unsafe-no-fsync", "more flags for the reference, separated by spaces")
	flag.StringVar(&c.kvdArgs, "kvd-args", "--unsafe-no-fsync", "more flags for the server under test, separated by spaces")
	flag.IntVar(&c.members, "members", 1, "members on each side, 1 or 3")
	flag.StringVar(&c.auth, "auth", authOff, "users and roles for most of the run, with tokens of this kind: off, simple, jwt")
	flag.BoolVar(&c.tls, "tls", false, "TLS on the client port, with client certificates")
	flag.StringVar(&c.engine, "engine", "", "storage engine of the server under test: redb, sled; empty passes no flag")
	flag.StringVar(&plan, "plan", "", "several combinations in turn that share the requests: short, all; the flags above are then the plan's")
	flag.IntVar(&c.requests, "requests", 20000, "how many requests to send")
	flag.Uint64Var(&c.seed, "seed", 1, "seed of the generator")
	flag.IntVar(&c.diffsMax, "max-diffs", 20, "stop after this many differences")
	flag.IntVar(&c.sabotageAt, "sabotage", 0, "falsify one field of the tested server's answer at this request, which must then be found")
	flag.BoolVar(&c.partial, "partial", false, "do not fail for missing coverage (for short runs)")
	flag.IntVar(&c.restarts, "restarts", 1, "how often both servers are killed and started again during the run")
	flag.BoolVar(&c.downgrade, "downgrade", true, "begin with a downgrade that is enabled and taken back, which takes about ten seconds")
	flag.Parse()
	if c.kvdBin == "" {
		fmt.Fprintln(os.Stderr, "differ: --kvd-bin is required")
		os.Exit(2)
	}
	ok, err := runPlan(c, plan, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "differ:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// runPlan runs the combinations of a plan. Each must cover what it alone can; a short plan, whose combinations share too few
// requests for that, all of it together.
func runPlan(c config, plan string, out io.Writer) (bool, error) {
	combinations := []config{c}
	switch plan {
	case "":
	case "short":
		combinations = c.short()
	case "all":
		combinations = c.all()
	default:
		return false, fmt.Errorf("no plan %q", plan)
	}
	together := newCoverage()
	ok := true
	start := time.Now()
	requests := 0
	for _, one := range combinations {
		if plan == "short" {
			one.partial = true
		}
		res, err := run(one, out)
		if err != nil {
			return false, fmt.Errorf("%s: %w", one, err)
		}
		ok = ok && res.ok()
		requests += res.requests
		together.add(res.cov)
	}
	if plan == "short" {
		missing := together.report(io.Discard)
		for _, m := range missing {
			fmt.Fprintln(out, "never produced by both in any combination:", m)
		}
		ok = ok && (len(missing) == 0 || c.partial)
		fmt.Fprintf(out, "differ: %d combinations, %d requests, %d of scope never produced, %.1f s: %s\n",
			len(combinations), requests, len(missing), time.Since(start).Seconds(), map[bool]string{true: "ok", false: "FAILED"}[ok])
	}
	return ok, nil
}

// short is a sensible set: each way of auth, each engine, TLS and clusters at least once.
func (c config) short() []config {
	var out []config
	for i, one := range []struct {
		members int
		auth    string
		tls     bool
		engine  string
	}{
		{1, authOff, false, "redb"},
		{1, authJWT, true, "sled"},
		{3, authSimple, true, "redb"},
		{3, authOff, false, "sled"},
	} {
		next := c
		next.members, next.auth, next.tls = one.members, one.auth, one.tls
		if c.engine != "none" {
			next.engine = one.engine
		} else {
			next.engine = ""
		}
		next.requests, next.seed = c.requests/4, c.seed+uint64(i)
		next.downgrade = c.downgrade && i%2 == 0
		out = append(out, next)
	}
	return out
}

// all is every combination.
func (c config) all() []config {
	engines := []string{"redb", "sled"}
	if c.engine == "none" {
		engines = []string{""}
	}
	var out []config
	for _, members := range []int{1, 3} {
		for _, auth := range []string{authOff, authSimple, authJWT} {
			for _, tls := range []bool{false, true} {
				for _, engine := range engines {
					next := c
					next.members, next.auth, next.tls, next.engine = members, auth, tls, engine
					next.seed = c.seed + uint64(len(out))
					out = append(out, next)
				}
			}
		}
	}
	for i := range out {
		out[i].requests = c.requests / len(out)
	}
	return out
}

// result is the outcome of a run.
type result struct {
	requests, diffs int
	missing         []string
	effective       float64
	effectiveMin    float64
	sabotaged       string
	cov             *coverage
}

func (r result) ok() bool {
	return r.diffs == 0 && len(r.missing) == 0 && r.effective >= r.effectiveMin
}

func run(c config, out io.Writer) (result, error) {
	if c.auth == "" {
		c.auth = authOff
	}
	c.members = max(1, c.members)
	p := &pair{
		config: c, cov: newCoverage(), out: out, rng: rand.New(rand.NewPCG(c.seed, 0)), auth: newAuthState(),
		settled: make([]bool, c.members), seen: make([]int, c.members), changes: 1,
	}
	for i := range p.settled {
		p.settled[i] = true
	}
	p.cov.features = c.features()
	p.cases, p.ofAuth = p.directedCases(), p.authCases()
	start := time.Now()
	fmt.Fprintf(out, "differ: %s, %s against %s\n", c, c.etcdBin, c.kvdBin)
	dir, err := os.MkdirTemp("", "interop-differ-")
	if err != nil {
		return result{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	defer p.close()
	if err := p.start(dir); err != nil {
		return result{}, err
	}
	if err := p.run(); err != nil && !errors.Is(err, errStop) {
		fmt.Fprintln(out, "directed cases so far:", p.directed)
		p.showExited(time.Second)
		return result{}, fmt.Errorf("request %d: %w", p.requests, err)
	}
	res := result{requests: p.requests, diffs: p.diffs, effective: p.cov.effectivePercent(), effectiveMin: c.effectiveMin(), sabotaged: p.sabotaged, cov: p.cov}
	missing := p.cov.report(out)
	if !c.partial {
		res.missing = missing
	}
	for _, m := range res.missing {
		fmt.Fprintln(out, "never produced by both:", m)
	}
	if res.effective < res.effectiveMin {
		fmt.Fprintf(out, "only %.1f %% of the writes took effect, want %.0f %%\n", res.effective, res.effectiveMin)
	}
	verdict := "ok"
	if !res.ok() {
		verdict = "FAILED"
	}
	fmt.Fprintf(out, "differ: %s: %s: %d requests, %d differences, %d of scope never produced, %.1f %% of writes effective, %.1f s\n",
		verdict, c, res.requests, res.diffs, len(missing), res.effective, time.Since(start).Seconds())
	return res, nil
}

func (p *pair) run() error {
	if err := p.prelude(); err != nil {
		return err
	}
	for p.requests < p.config.requests {
		if p.requests > p.config.requests*(p.restarted+1)/(p.restarts+1) {
			if err := p.restart(); err != nil {
				return err
			}
		}
		if err := p.authPhase(); err != nil {
			return err
		}
		if err := p.step(); err != nil {
			return err
		}
	}
	return p.finale()
}
