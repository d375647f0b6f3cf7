package workload

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3"
)

// eventTimeout bounds the wait for events once the last put is acknowledged.
const eventTimeout = 60 * time.Second

var watch = Workload{
	Name: "watch", Summary: "events to many watchers while keys are put", Main: "event",
	Flags: func(fs *flag.FlagSet) Body {
		p := new(watchFlags)
		p.flags(fs, 32)
		fs.IntVar(&p.streams, "streams", 10, "watch streams")
		fs.IntVar(&p.watchers, "watch-per-stream", 100, "watchers on each stream")
		fs.IntVar(&p.watched, "watched-key-total", 1, "number of watched keys")
		fs.Float64Var(&p.putRate, "put-rate", 0, "puts a second; 0 as fast as they go")
		fs.IntVar(&p.puts, "put-total", 1000, "puts")
		return p.runWatch
	},
}

var watchLatency = Workload{
	Name: "watch-latency", Summary: "time from a put's answer to its events", Main: "put",
	Flags: func(fs *flag.FlagSet) Body {
		p := new(watchFlags)
		fs.IntVar(&p.streams, "streams", 10, "watch streams")
		fs.IntVar(&p.watchers, "watchers-per-stream", 10, "watchers on each stream")
		fs.BoolVar(&p.prevKV, "prevkv", false, "ask for the previous value in events")
		fs.BoolVar(&p.prefix, "prefix", false, "watch all keys instead of the one that is put")
		fs.Float64Var(&p.putRate, "put-rate", 100, "puts a second; 0 as fast as they go")
		fs.IntVar(&p.puts, "put-total", 1000, "puts")
		fs.IntVar(&p.keyBytes, "key-size", 32, "bytes of a key")
		fs.IntVar(&p.valueBytes, "val-size", 32, "bytes of a value")
		return p.runLatency
	},
}

var watchGet = Workload{
	Name: "watch-get", Summary: "gets while many watchers read history", Main: "get",
	Flags: func(fs *flag.FlagSet) Body {
		p := new(watchFlags)
		fs.IntVar(&p.watchers, "watchers", 10_000, "watchers")
		fs.IntVar(&p.streams, "streams", 1, "watch streams")
		fs.IntVar(&p.puts, "events", 8, "events that each watcher reads")
		return p.runGet
	},
}

type watchFlags struct {
	keySpace
	streams, watchers, watched int
	puts                       int
	putRate                    float64
	valueBytes                 int
	prevKV, prefix             bool
}

// watchStreams opens one watch stream an entry. They end with the client.
func (p *watchFlags) watchStreams(run *Run) ([]clientv3.Watcher, error) {
	if p.streams < 1 || p.watchers < 1 || p.puts < 1 {
		return nil, errors.New("streams, watchers and puts must be at least 1")
	}
	streams := make([]clientv3.Watcher, p.streams)
	for i := range streams {
		streams[i] = clientv3.NewWatcher(run.Clients[i%len(run.Clients)])
	}
	return streams, nil
}

// open starts a watch and waits until the server has confirmed it.
func open(ctx context.Context, stream clientv3.Watcher, key string, options ...clientv3.OpOption) (clientv3.WatchChan, error) {
	events := stream.Watch(ctx, key, append(options, clientv3.WithCreatedNotify())...)
	created, running := <-events
	if !running {
		return nil, fmt.Errorf("the watch stream ended before the watch was created: %w", context.Cause(ctx))
	}
	return events, created.Err()
}

func (p *watchFlags) runWatch(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	if p.watched < 1 || p.watched > p.keys {
		return fmt.Errorf("--watched-key-total is %d, expected 1 to --key-space-size, %d", p.watched, p.keys)
	}
	streams, err := p.watchStreams(run)
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	setup := run.worker(0)
	watchersOf := make(map[string]int64)
	sequential := keySpace{p.keyBytes, p.watched, true}
	channels := make([]clientv3.WatchChan, 0, p.streams*p.watchers)
	for i := range cap(channels) {
		key := sequential.key(setup, i)
		setup.timed("create", func() error {
			events, err := open(watching, streams[i%p.streams], key)
			channels = append(channels, events)
			return err
		})
		watchersOf[key]++
	}
	if len(setup.errors) > 0 {
		return fmt.Errorf("creating watchers: %v", setup.errors)
	}

	run.Total, run.Rate = p.puts, p.putRate
	return run.Measured(func() error {
		run.keep(setup)
		var expected, seen atomic.Int64
		var receiving sync.WaitGroup
		started := time.Now()
		for _, events := range channels {
			receiving.Go(func() {
				receiver := run.worker(0)
				for resp := range events {
					// Throughput counts here; the time is that since the first put.
					for range resp.Events {
						receiver.record("event", time.Since(started))
					}
					seen.Add(int64(len(resp.Events)))
				}
				run.keep(receiver)
			})
		}
		err := run.each(ctx, func(ctx context.Context, w *worker, n int) {
			key := p.key(w, n)
			w.timed("put", func() error {
				_, err := w.client.Put(ctx, key, "value")
				return err
			})
			expected.Add(watchersOf[key])
		})
		err = errors.Join(err, waitUntil(ctx, func() bool { return seen.Load() >= expected.Load() }))
		stop()
		receiving.Wait()
		if err != nil {
			return fmt.Errorf("%d of %d events arrived: %w", seen.Load(), expected.Load(), err)
		}
		return nil
	})
}

// waitUntil polls; the workloads' watchers have no single place that could tell.
func waitUntil(ctx context.Context, condition func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

func (p *watchFlags) runLatency(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	streams, err := p.watchStreams(run)
	if err != nil {
		return err
	}
	// One writer, so that the n-th put is the n-th event of every watcher.
	run.Clients = run.Clients[:1]
	run.Total, run.Rate = p.puts, p.putRate
	p.keySpace = keySpace{p.keyBytes, 1, true}
	key, value := p.key(run.worker(0), 0), run.randomValue(p.valueBytes)
	if _, err := run.Clients[0].Put(ctx, key, value); err != nil {
		return err
	}

	watching, stop := context.WithCancel(ctx)
	defer stop()
	var options []clientv3.OpOption
	if p.prevKV {
		options = append(options, clientv3.WithPrevKV())
	}
	watched := key
	if p.prefix {
		watched = ""
		options = append(options, clientv3.WithPrefix())
	}
	channels := make([]clientv3.WatchChan, p.streams*p.watchers)
	for i := range channels {
		if channels[i], err = open(watching, streams[i%p.streams], watched, options...); err != nil {
			return err
		}
	}
	answered := make([]time.Time, 0, p.puts)
	received := make([][]time.Time, len(channels))
	err = run.Measured(func() error {
		var seen atomic.Int64
		var receiving sync.WaitGroup
		for i, events := range channels {
			receiving.Go(func() {
				for resp := range events {
					now := time.Now()
					for range resp.Events {
						received[i] = append(received[i], now)
					}
					seen.Add(int64(len(resp.Events)))
				}
			})
		}
		err := run.each(ctx, func(ctx context.Context, w *worker, _ int) {
			w.timed("put", func() error {
				_, err := w.client.Put(ctx, key, value)
				answered = append(answered, time.Now())
				return err
			})
		})
		expected := int64(len(answered) * len(channels))
		err = errors.Join(err, waitUntil(ctx, func() bool { return seen.Load() >= expected }))
		stop()
		receiving.Wait()
		if err != nil {
			return fmt.Errorf("%d of %d events arrived: %w", seen.Load(), expected, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	events := run.worker(0)
	for _, times := range received {
		for n, at := range times {
			events.record("event", at.Sub(answered[n]))
		}
	}
	run.keep(events)
	return nil
}

func (p *watchFlags) runGet(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	streams, err := p.watchStreams(run)
	if err != nil {
		return err
	}
	const key = "watchkey"
	var first int64
	for i := range p.puts {
		resp, err := run.Clients[0].Put(ctx, key, strconv.Itoa(i))
		if err != nil {
			return err
		}
		if i == 0 {
			first = resp.Header.Revision
		}
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	return run.Measured(func() error {
		var receiving sync.WaitGroup
		var unfinished atomic.Int64
		for i := range p.watchers {
			receiving.Go(func() {
				w := run.worker(i)
				w.timed("history", func() error {
					events := streams[i%p.streams].Watch(watching, key, clientv3.WithRev(first))
					for seen := 0; seen < p.puts; {
						resp, running := <-events
						if !running || resp.Err() != nil {
							unfinished.Add(1)
							return errors.Join(resp.Err(), watching.Err())
						}
						seen += len(resp.Events)
					}
					return nil
				})
				run.keep(w)
			})
		}
		getting, stopGetting := context.WithCancel(ctx)
		var reading sync.WaitGroup
		reading.Go(func() {
			w := run.worker(0)
			for getting.Err() == nil {
				w.timed("get", func() error {
					_, err := w.client.Get(getting, "abc", clientv3.WithSerializable())
					return err
				})
			}
			run.keep(w)
		})
		deadline := time.AfterFunc(eventTimeout, stop)
		receiving.Wait()
		deadline.Stop()
		stopGetting()
		reading.Wait()
		if n := unfinished.Load(); n > 0 {
			return fmt.Errorf("%d of %d watchers did not get their events", n, p.watchers)
		}
		return nil
	})
}
