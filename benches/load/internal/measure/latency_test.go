package measure

import (
	"math/rand"
	"slices"
	"testing"
	"time"
)

func TestQuantilesAreAtMostOneStepTooHigh(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	var latencies Latencies
	var exact []time.Duration
	for range 20_000 {
		d := time.Duration(1) << random.Intn(36)
		d += time.Duration(random.Int63n(int64(d)))
		latencies.Record(d)
		exact = append(exact, d)
	}
	slices.Sort(exact)
	for _, q := range []float64{0, 0.01, 0.5, 0.99, 0.999, 1} {
		want := exact[int(q*float64(len(exact)-1))]
		got := latencies.Quantile(q)
		if got < want || float64(got) > float64(want)*(1+1.0/steps) {
			t.Errorf("quantile %v: got %v, want %v to %v", q, got, want, time.Duration(float64(want)*(1+1.0/steps)))
		}
	}
}

func TestEveryDurationHasABucketThatEndsAtOrAboveIt(t *testing.T) {
	for _, ns := range []uint64{0, 1, 63, 64, 127, 128, 129, 1 << 20, 1<<20 + 1, 1<<63 - 1} {
		if edge := upperEdge(bucket(ns)); edge < ns {
			t.Errorf("%d ns: its bucket %d ends at %d", ns, bucket(ns), edge)
		}
	}
}

func TestMergedHistogramsCountTogether(t *testing.T) {
	var a, b Latencies
	a.Record(time.Millisecond)
	b.Record(time.Second)
	a.Add(&b)
	if got := a.Summary(); got.Count != 2 || got.Max != 1e6 {
		t.Errorf("got %+v", got)
	}
}
