package workload

import (
	"context"
	"errors"
	"flag"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3"

	"kvd.dev/load/internal/measure"
)

func TestSequentialKeysNameEachKeyOnceBeforeTheyRepeat(t *testing.T) {
	space := keySpace{keyBytes: 8, keys: 300, sequential: true}
	if err := space.check(); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for n := range 300 {
		key := space.key(nil, n)
		if len(key) != 8 || seen[key] {
			t.Fatalf("key %d is %q", n, key)
		}
		seen[key] = true
	}
	if again := space.key(nil, 300); again != space.key(nil, 0) {
		t.Errorf("key 300 is %q", again)
	}
}

func TestAKeyTooShortForItsSpaceIsRefused(t *testing.T) {
	if err := (&keySpace{keyBytes: 1, keys: 10_000}).check(); err == nil {
		t.Error("accepted")
	}
}

func TestEveryRequestOfTheKubernetesMixHasItsShare(t *testing.T) {
	sum := 0
	for _, request := range requests {
		sum += request.share
	}
	counts := make(map[string]int)
	for at := range sum {
		counts[choose(at).name]++
	}
	for _, request := range requests {
		if counts[request.name] != request.share {
			t.Errorf("%s: %d of %d", request.name, counts[request.name], request.share)
		}
	}
}

func TestARunEndsAtItsTotalAndReportsWhatFailed(t *testing.T) {
	run := Run{Options: Options{Total: 100, Seed: 1}, Clients: make([]*clientv3.Client, 4)}
	err := run.Measured(func() error {
		return run.each(t.Context(), func(_ context.Context, w *worker, n int) {
			w.timed("op", func() error {
				if n%10 == 0 {
					return errors.New("refused")
				}
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	report := measure.Report{Main: "op"}
	run.Report(&report)
	if report.Ops != 90 || report.Errors["op: refused"] != 10 {
		t.Errorf("%d operations, errors %v", report.Ops, report.Errors)
	}
}

func TestARateSpreadsOperationsOverTime(t *testing.T) {
	run := Run{Options: Options{Total: 20, Rate: 1000}, Clients: make([]*clientv3.Client, 4)}
	started := time.Now()
	if err := run.Measured(func() error {
		return run.each(t.Context(), func(context.Context, *worker, int) {})
	}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took < 19*time.Millisecond {
		t.Errorf("20 operations at 1000/s took %v", took)
	}
}

func TestWorkloadsAndTheirFlagsHaveDifferentNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, w := range All() {
		if seen[w.Name] {
			t.Errorf("%s twice", w.Name)
		}
		seen[w.Name] = true
		w.Flags(flag.NewFlagSet(w.Name, flag.ContinueOnError))
	}
}
