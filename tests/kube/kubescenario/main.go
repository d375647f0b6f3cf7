// kubescenario starts a store and unmodified kube-apiservers on it, all on loopback, and checks through the
// Kubernetes API that the store keeps its promises: while all is well, across restarts, and while it is killed
// under load. It prints one line per step and at the end "N passed, N failed".
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	store     string
	apiserver string
	seed      int64
	members   int
	short     bool
	kinds     bool
	kills     int
	sabotage  string
	selfCheck bool
	keep      bool
	limit     time.Duration
}

func main() {
	var o options
	self, _ := os.Executable()
	flag.StringVar(&o.store, "store", os.Getenv("KVD_BIN"), "store binary that takes etcd's flags (KVD_BIN)")
	flag.StringVar(&o.apiserver, "apiserver", filepath.Join(filepath.Dir(self), "kube-apiserver"), "kube-apiserver binary")
	flag.Int64Var(&o.seed, "seed", 1, "seed of the load and of the times of the kills")
	flag.IntVar(&o.members, "members", 1, "members of the store; with more than one it is the leader that is killed, and one is replaced")
	flag.BoolVar(&o.short, "short", false, "run only start, load and verification")
	flag.BoolVar(&o.kinds, "kinds", false, "print the kinds of storage errors in the apiservers' logs, ours or not")
	flag.IntVar(&o.kills, "kills", 8, "how often the store is killed under load")
	flag.StringVar(&o.sabotage, "sabotage", "", "run only start, load and verification, and spoil it: "+sabotageNames())
	flag.BoolVar(&o.selfCheck, "self-check", false, "run every sabotage and expect each to be found")
	flag.BoolVar(&o.keep, "keep", false, "keep the temporary folder even when all passed")
	flag.DurationVar(&o.limit, "limit", 6*time.Minute, "fail when a run takes longer")
	flag.Parse()

	if o.store == "" {
		fmt.Fprintln(os.Stderr, "no store binary: set KVD_BIN or -store")
		os.Exit(2)
	}
	for _, path := range []*string{&o.store, &o.apiserver} {
		absolute, err := filepath.Abs(*path)
		if err == nil {
			_, err = os.Stat(absolute)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "cannot use binary: %v\n", err)
			os.Exit(2)
		}
		*path = absolute
	}
	if o.sabotage != "" && sabotages[o.sabotage] == "" {
		fmt.Fprintf(os.Stderr, "unknown sabotage %q, known are: %s\n", o.sabotage, sabotageNames())
		os.Exit(2)
	}

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	var passed, failed int
	if o.selfCheck {
		passed, failed = runSelfCheck(ctx, o)
	} else {
		r := runOnce(ctx, o)
		passed, failed = r.passed, len(r.failures)
		r.cleanUp(failed > 0 || o.keep)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// runOnce runs the scenario in its own temporary folder.
func runOnce(ctx context.Context, o options) *report {
	r := &report{started: time.Now()}
	var err error
	if r.dir, err = os.MkdirTemp("", "kubescenario-"); err != nil {
		r.step("make a temporary folder", func() (string, error) { return "", err })
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()

	s := &scenario{options: o, report: r, ctx: ctx, dir: r.dir}
	s.run()
	s.endAll()

	fmt.Printf("took %.0f s\n", time.Since(r.started).Seconds())
	return r
}

// cleanUp removes the run's folder, or says where it is.
func (r *report) cleanUp(keep bool) {
	if keep {
		fmt.Printf("logs and data: %s\n", r.dir)
	} else if err := os.RemoveAll(r.dir); err != nil {
		fmt.Printf("temporary folder not removed: %v\n", err)
	}
}

// report prints the steps as they end and counts them.
type report struct {
	started  time.Time
	dir      string
	passed   int
	failures []string // one text per failed step, name first
}

// step runs one step and says whether it passed.
func (r *report) step(name string, run func() (detail string, err error)) bool {
	began := time.Now()
	detail, err := run()
	took := time.Since(began).Seconds()
	if err != nil {
		r.failures = append(r.failures, name+": "+err.Error())
		fmt.Printf("FAIL %s (%.1f s): %v\n", name, took, err)
		return false
	}
	r.passed++
	if detail != "" {
		detail = ": " + detail
	}
	fmt.Printf("ok   %s (%.1f s)%s\n", name, took, detail)
	return true
}
