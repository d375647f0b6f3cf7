package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3"

	"kvd.dev/load/internal/measure"
)

// figure is one number of a step that is no plain load.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

// writers put in closed loops of their own, each on one connection, and note when each put was acknowledged.
type writers struct {
	stop    context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	latencies measure.Latencies
	acks      []ack
	failed    int // puts that a second attempt did not bring through either
	retried   int
}

// ack is one acknowledged put.
type ack struct{ sent, done time.Time }

// write starts one writer per endpoint list. With a rate it is the puts a second of all writers together.
func write(ctx context.Context, c *cluster, endpoints [][]string, rate float64, valueBytes int) (*writers, error) {
	w := &writers{}
	ctx, w.stop = context.WithCancel(ctx)
	value := string(make([]byte, valueBytes))
	var next atomic.Int64
	started := time.Now()
	for n, list := range endpoints {
		client, err := c.client(list...)
		if err != nil {
			w.end()
			return nil, err
		}
		w.running.Go(func() {
			defer client.Close()
			for ctx.Err() == nil {
				if rate > 0 {
					due := started.Add(time.Duration(float64(next.Add(1)) / rate * float64(time.Second)))
					select {
					case <-ctx.Done():
						return
					case <-time.After(time.Until(due)):
					}
				}
				w.put(ctx, client, fmt.Sprintf("writer/%d/%d", n, time.Now().UnixNano()%10_000), value)
			}
		})
	}
	return w, nil
}

// put tries twice, as a careful client does. An attempt is given up after a time in which a new leader is long there.
func (w *writers) put(ctx context.Context, client *clientv3.Client, key, value string) {
	sent := time.Now()
	for attempt := range 2 {
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := client.Put(limited, key, value)
		cancel()
		done := time.Now()
		w.mu.Lock()
		switch {
		case err == nil:
			w.acks = append(w.acks, ack{sent, done})
			w.latencies.Record(done.Sub(sent))
		case ctx.Err() != nil: // the end of the run
		case attempt == 0:
			w.retried++
		default:
			w.failed++
		}
		w.mu.Unlock()
		if err == nil || ctx.Err() != nil {
			return
		}
	}
}

// since gives a summary of what was sent after a moment.
func (w *writers) since(moment time.Time) measure.Summary {
	w.mu.Lock()
	defer w.mu.Unlock()
	var latencies measure.Latencies
	for _, a := range w.acks {
		if a.sent.After(moment) {
			latencies.Record(a.done.Sub(a.sent))
		}
	}
	return latencies.Summary()
}

// longestGap is the longest time around or after a moment in which no put was acknowledged.
func (w *writers) longestGap(from, to time.Time) (gap time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var times []time.Time
	for _, a := range w.acks {
		times = append(times, a.done)
	}
	slices.SortFunc(times, time.Time.Compare)
	for i := 1; i < len(times); i++ {
		if times[i].After(from) && times[i-1].Before(to) {
			gap = max(gap, times[i].Sub(times[i-1]))
		}
	}
	return gap
}

// end stops the writers and waits for them.
func (w *writers) end() {
	w.stop()
	w.running.Wait()
}

// each gives every member's writer its own endpoint, that many times.
func each(members []*server, times int) (lists [][]string) {
	for _, s := range members {
		for range times {
			lists = append(lists, []string{s.endpoint()})
		}
	}
	return lists
}

// leaderKilled kills the leader under puts at the other members and measures until a put is acknowledged that was sent
// after the kill; then the killed member comes back.
func leaderKilled(times int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		var took []float64
		for range times {
			leader, _, err := c.leader(ctx)
			if err != nil {
				return nil, err
			}
			others := slices.DeleteFunc(slices.Clone(c.members), func(s *server) bool { return s == leader })
			w, err := write(ctx, c, each(others, 1), 0, 256)
			if err != nil {
				return nil, err
			}
			err = settled(ctx, w)
			if err == nil {
				killed := time.Now()
				leader.kill()
				var resumed time.Time
				resumed, err = firstAcknowledged(ctx, c, others)
				took = append(took, resumed.Sub(killed).Seconds()*1e3)
			}
			w.end()
			if err != nil {
				return nil, fmt.Errorf("after the leader's death: %w", err)
			}
			if _, err := leader.start(ctx, time.Minute); err != nil {
				return nil, err
			}
			if err := c.waitServing(ctx, time.Minute); err != nil {
				return nil, err
			}
		}
		return spread("ms", took), nil
	}
}

// firstAcknowledged sends a put every 10 ms, to each server in turn, and tells when the first of them was acknowledged: one
// that waits for its time limit holds up no other.
func firstAcknowledged(ctx context.Context, c *cluster, servers []*server) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var clients []*clientv3.Client
	for _, s := range servers {
		client, err := c.client(s.endpoint())
		if err != nil {
			return time.Time{}, err
		}
		defer client.Close()
		clients = append(clients, client)
	}
	acknowledged := make(chan time.Time, 1)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for n := 0; ; n++ {
		go func(client *clientv3.Client) {
			if _, err := client.Put(ctx, "probe", "after the kill"); err == nil {
				select {
				case acknowledged <- time.Now():
				default:
				}
			}
		}(clients[n%len(clients)])
		select {
		case first := <-acknowledged:
			return first, nil
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-ticker.C:
		}
	}
}

// leaderMoved hands the leadership to another member under puts at all of them.
func leaderMoved(times int) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		var gaps []float64
		failed, retried := 0, 0
		for range times {
			leader, follower, err := c.leader(ctx)
			if err != nil {
				return nil, err
			}
			w, err := write(ctx, c, each(c.members, 2), 0, 256)
			if err != nil {
				return nil, err
			}
			err = settled(ctx, w)
			var began time.Time
			if err == nil {
				began, err = moveLeader(ctx, c, leader, follower)
			}
			if err == nil {
				moved := time.Now()
				err = await(ctx, 10*time.Second, func() bool { return w.since(moved).Count >= 200 })
			}
			w.end()
			if err != nil {
				return nil, err
			}
			gaps = append(gaps, w.longestGap(began, began.Add(time.Second)).Seconds()*1e3)
			failed, retried = failed+w.failed, retried+w.retried
		}
		return append(spread("ms", gaps), figure{"puts tried twice", float64(retried)}, figure{"puts failed twice", float64(failed)}), nil
	}
}

func moveLeader(ctx context.Context, c *cluster, from, to *server) (began time.Time, err error) {
	client, err := c.client(from.endpoint())
	if err != nil {
		return began, err
	}
	defer client.Close()
	status, err := client.Status(ctx, to.endpoint())
	if err != nil {
		return began, err
	}
	began = time.Now()
	_, err = client.MoveLeader(ctx, status.Header.MemberId)
	return began, err
}

// memberJoins fills the store, measures puts at a steady rate, and again while a new member joins. The join lasts
// from the start of MemberAdd until the new member answers a linearizable read and is a voter.
func memberJoins(bytes, valueBytes int, rate float64, quiet time.Duration) func(context.Context, *cluster) ([]figure, error) {
	return func(ctx context.Context, c *cluster) ([]figure, error) {
		if err := fill(ctx, c, bytes, valueBytes); err != nil {
			return nil, fmt.Errorf("fill: %w", err)
		}
		w, err := write(ctx, c, each(c.members, 4), rate, 256)
		if err != nil {
			return nil, err
		}
		defer w.end()
		if err := settled(ctx, w); err != nil {
			return nil, err
		}
		began := time.Now()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(quiet):
		}
		before := w.since(began)

		began = time.Now()
		client, err := c.client(c.endpoints()...)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		fresh, err := c.add()
		if err != nil {
			return nil, err
		}
		added, err := client.MemberAdd(ctx, []string{fresh.peerURL()})
		if err != nil {
			return nil, err
		}
		fresh.configure(c.initial(), "existing", c.extra)
		if _, err := fresh.start(ctx, 5*time.Minute); err != nil {
			return nil, err
		}
		served := time.Since(began)
		if err := await(ctx, time.Minute, func() bool { return isVoter(ctx, client, added.Member.ID) }); err != nil {
			return nil, fmt.Errorf("the new member is no voter: %w", err)
		}
		voter := time.Since(began)
		meanwhile := w.since(began)
		return []figure{
			{"serves after s", served.Seconds()}, {"voter after s", voter.Seconds()},
			{"put p99 before µs", before.P99}, {"put p99 meanwhile µs", meanwhile.P99},
			{"p99 meanwhile / before", meanwhile.P99 / before.P99},
			{"put p50 before µs", before.P50}, {"put p50 meanwhile µs", meanwhile.P50},
			{"puts failed twice", float64(w.failed)},
		}, nil
	}
}

// isVoter says whether the member list has the member with a name, which it gets when it has joined, and a vote.
func isVoter(ctx context.Context, client *clientv3.Client, id uint64) bool {
	list, err := client.MemberList(ctx)
	if err != nil {
		return false
	}
	for _, m := range list.Members {
		if m.ID == id {
			return m.Name != "" && !m.IsLearner
		}
	}
	return false
}

// fill writes distinct keys through the leader until so many bytes of values are stored.
func fill(ctx context.Context, c *cluster, bytes, valueBytes int) error {
	leader, _, err := c.leader(ctx)
	if err != nil {
		return err
	}
	var next atomic.Int64
	failed := make(chan error, 64)
	var running sync.WaitGroup
	value := make([]byte, valueBytes)
	for i := range value {
		value[i] = byte(i * 7)
	}
	for range 8 {
		client, err := c.client(leader.endpoint())
		if err != nil {
			return err
		}
		defer client.Close()
		for range 8 {
			running.Go(func() {
				for {
					n := next.Add(1)
					if n > int64(bytes/valueBytes) {
						return
					}
					key := binary.BigEndian.AppendUint64([]byte("filled/"), uint64(n))
					if _, err := client.Put(ctx, string(key), string(value)); err != nil {
						failed <- err
						return
					}
				}
			})
		}
	}
	running.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// settled waits until every connection is up and puts flow.
func settled(ctx context.Context, w *writers) error {
	began := time.Now()
	return await(ctx, 30*time.Second, func() bool { return w.since(began).Count >= 200 })
}

func await(ctx context.Context, limit time.Duration, reached func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !reached() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// spread is median, least and greatest of some values.
func spread(unit string, values []float64) []figure {
	return []figure{
		{"median " + unit, median(values, func(v float64) float64 { return v })},
		{"least " + unit, slices.Min(values)},
		{"most " + unit, slices.Max(values)},
	}
}
