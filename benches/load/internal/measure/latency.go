// Package measure owns what a run is judged by: latencies, CPU time, memory, bytes written, and their report.
package measure

import (
	"math/bits"
	"time"
)

// Latencies is a histogram of durations: 64 steps for every doubling, so a quantile is at most 1.6 % too high.
//
// One goroutine writes it; Add merges the histograms of several.
type Latencies struct {
	counts [64 * steps]uint64
	count  uint64
	max    time.Duration
}

const (
	stepBits = 6
	steps    = 1 << stepBits
)

// Record counts one duration; a negative one counts as 0.
func (l *Latencies) Record(d time.Duration) {
	d = max(d, 0)
	l.counts[bucket(uint64(d))]++
	l.count++
	l.max = max(l.max, d)
}

// Add counts all durations of another histogram.
func (l *Latencies) Add(other *Latencies) {
	for i, n := range other.counts {
		l.counts[i] += n
	}
	l.count += other.count
	l.max = max(l.max, other.max)
}

// Quantile returns the upper edge of the step that holds the q-th of all durations, 0 if there are none.
func (l *Latencies) Quantile(q float64) time.Duration {
	if l.count == 0 {
		return 0
	}
	rank := uint64(q * float64(l.count-1))
	var seen uint64
	for i, n := range l.counts {
		if seen += n; seen > rank {
			return min(time.Duration(upperEdge(i)), l.max)
		}
	}
	return l.max
}

// Summary is a series as the report shows it, in microseconds.
type Summary struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p999_us"`
	Max   float64 `json:"max_us"`
}

// Summary reads the quantiles of the report.
func (l *Latencies) Summary() Summary {
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	return Summary{l.count, us(l.Quantile(0.5)), us(l.Quantile(0.99)), us(l.Quantile(0.999)), us(l.max)}
}

// bucket counts linearly below 2*steps, then in steps of 2^shift.
func bucket(ns uint64) int {
	shift := max(bits.Len64(ns)-stepBits-1, 0)
	return shift<<stepBits + int(ns>>shift)
}

func upperEdge(bucket int) uint64 {
	if bucket < 2*steps {
		return uint64(bucket)
	}
	shift := bucket>>stepBits - 1
	return uint64(bucket-shift<<stepBits+1)<<shift - 1
}
