package main

import (
	"context"
	"fmt"
	"time"
)

// scenario is what one fresh server goes through, step by step.
type scenario struct {
	name string
	// serverArgs are given to both servers.
	serverArgs []string
	steps      []step
	// rounds, if not 0, replaces the number of rounds; the long ones run once.
	rounds int
}

// step is one run of kv-load, a restart, or a measurement of its own.
type step struct {
	// row names the step in the table; "" prepares and is not shown.
	row string
	// load are the arguments of kv-load.
	load []string
	// restart kills the server with SIGKILL and measures the time until it serves again, instead of load.
	restart bool
	// at is the member that the load goes to: "leader", "follower", or "" for all of them in turn.
	at string
	// figures, if set, is run instead of load.
	figures func(context.Context, *cluster) ([]figure, error)
	limit   time.Duration
}

// sizes distinguish the profiles: how long a measured step lasts, and how much data there is.
type sizes struct {
	seconds int
}

func quick() []scenario { return scenarios(sizes{seconds: 2}) }

// full holds the goals; memory, which takes minutes, comes last.
func full() []scenario { return append(scenarios(sizes{seconds: 10}), memory(1_000_000, 60)) }

func wholeAPI() []scenario { return api(sizes{seconds: 10}, 1_000_000, 150_000) }

// clustered is for several members: what replication adds, and what happens when the leader or a member changes.
func clustered(s sizes, times, joinBytes int) []scenario {
	duration := fmt.Sprintf("--duration=%ds", s.seconds)
	at := func(where string, step step) step {
		step.at = where
		return step
	}
	puts := func(where string, conns, clients int) step {
		row := fmt.Sprintf("put at the %s, %d clients", where, clients)
		if clients == 1 {
			row = fmt.Sprintf("put at the %s, 1 client", where)
		}
		return at(where, run(row, "put", duration, fmt.Sprintf("--conns=%d", conns),
			fmt.Sprintf("--clients=%d", clients), "--val-size=256", "--key-space-size=100000"))
	}
	get := func(where, consistency string) step {
		name := map[string]string{"s": "serializable", "l": "linearizable"}[consistency]
		return at(where, run(fmt.Sprintf("%s get at the %s, 64 clients", name, where), "range", duration, "--conns=8", "--clients=64",
			"--consistency="+consistency, "\x02"))
	}
	special := func(row string, figures func(context.Context, *cluster) ([]figure, error)) step {
		return step{row: row, figures: figures, limit: 10 * time.Minute}
	}
	everywhere := puts("all members in turn", 32, 256)
	everywhere.row, everywhere.at = "put at all members in turn, 256 clients", ""
	return []scenario{
		{name: "put-1", steps: []step{puts("leader", 1, 1)}},
		{name: "put-64", steps: []step{puts("leader", 8, 64)}},
		{name: "put-256", steps: []step{puts("leader", 32, 256)}},
		{name: "put-everywhere", steps: []step{everywhere}},
		{name: "put-follower-1", steps: []step{puts("follower", 1, 1)}},
		{name: "put-follower-64", steps: []step{puts("follower", 8, 64)}},
		{name: "get", steps: []step{
			prepare("put", "--sequential-keys", "--key-size=1", "--key-space-size=2", "--total=2", "--val-size=256"),
			get("leader", "s"), get("leader", "l"), get("follower", "s"), get("follower", "l"),
		}},
		{name: "leader-killed", rounds: 1, steps: []step{
			special(fmt.Sprintf("leader killed: until a put is acknowledged, %d times", times), leaderKilled(times)),
		}},
		{name: "leader-moved", rounds: 1, steps: []step{
			special(fmt.Sprintf("MoveLeader: longest time without an acknowledged put, %d times", times), leaderMoved(times)),
		}},
		{name: "join", rounds: 1, serverArgs: []string{fmt.Sprintf("--quota-backend-bytes=%d", int64(8)<<30)}, steps: []step{
			special(fmt.Sprintf("a member joins a store of %d MiB, under 300 puts/s", joinBytes/mib), memberJoins(joinBytes, 4096, 300, 10*time.Second)),
		}},
	}
}

func scenarios(s sizes) []scenario {
	duration := fmt.Sprintf("--duration=%ds", s.seconds)
	fill := prepare("put", "--conns=8", "--clients=64", "--sequential-keys", "--key-space-size=10000", "--total=10000", "--val-size=256")
	puts := s.seconds * 500
	return []scenario{
		{name: "put-1", steps: []step{
			run("put, 1 client", "put", duration, "--val-size=256", "--key-space-size=100000"),
		}},
		{name: "put-64", steps: []step{
			run("put, 64 clients", "put", duration, "--conns=8", "--clients=64", "--val-size=256", "--key-space-size=100000"),
		}},
		{name: "put-256", steps: []step{
			run("put, 256 clients", "put", duration, "--conns=32", "--clients=256", "--val-size=256", "--key-space-size=100000"),
		}},
		{name: "list", steps: []step{
			fill,
			run("linearizable list of 10 k keys", "range", duration, "--prefix", ""),
			run("the same by RangeStream", "range", duration, "--stream", "--prefix", ""),
		}},
		{name: "get", steps: []step{
			fill,
			prepare("put", "--sequential-keys", "--key-size=1", "--key-space-size=2", "--total=2", "--val-size=256"),
			run("serializable get, 64 clients", "range", duration, "--conns=8", "--clients=64", "--consistency=s", "\x02"),
			run("linearizable get, 64 clients", "range", duration, "--conns=8", "--clients=64", "\x02"),
		}},
		{name: "watch", steps: []step{
			run("put under 100 watchers (10 x 10), 500/s", "watch-latency", "--prefix", "--put-rate=500", fmt.Sprintf("--put-total=%d", puts), "--val-size=256"),
		}},
		{name: "watch-full", steps: []step{
			run("put under 100 watchers (10 x 10), 1 client", "watch-latency", "--prefix", "--put-rate=0", fmt.Sprintf("--put-total=%d", puts), "--val-size=256"),
		}},
		{name: "txn-mixed", steps: []step{
			fill,
			run("txn-mixed, 64 clients, limit 100", "txn-mixed", duration, "--conns=8", "--clients=64", "--limit=100", "--key-space-size=10000", "--val-size=256", "\x01", "\xff"),
		}},
		{name: "lease", steps: []step{
			run("lease grant + put + revoke, 16 clients", "lease", duration, "--conns=4", "--clients=16"),
		}},
		{name: "lease-keepalive", steps: []step{
			run("lease-keepalive, 64 clients", "lease-keepalive", duration, "--conns=8", "--clients=64"),
		}},
		{name: "stm", steps: []step{
			run("stm, 16 clients, 100 keys", "stm", duration, "--conns=4", "--clients=16", "--keys=100"),
		}},
		{name: "kubernetes", steps: []step{
			run("kubernetes, 32 clients", "kubernetes", duration, "--conns=8", "--clients=32"),
		}},
	}
}

// memory goes from an empty store through many keys, a list of all and a minute of puts, then restarts.
func memory(keys, seconds int) scenario {
	space := fmt.Sprintf("--key-space-size=%d", keys)
	s := scenario{name: "memory", rounds: 1, serverArgs: []string{fmt.Sprintf("--quota-backend-bytes=%d", int64(8)<<30)}, steps: []step{
		run(fmt.Sprintf("memory: put %d keys of 1 KiB", keys), "put", "--conns=8", "--clients=64", "--sequential-keys", space, fmt.Sprintf("--total=%d", keys), "--val-size=1024"),
		run("memory: list all, in pages of 10 k", "range", "--total=1", "--paginate", "--prefix", ""),
		run(fmt.Sprintf("memory: %d s of puts", seconds), "put", fmt.Sprintf("--duration=%ds", seconds), "--conns=8", "--clients=64", space, "--val-size=1024"),
		{row: "memory: serving again after kill -9", restart: true},
	}}
	for i := range s.steps {
		s.steps[i].limit = 15 * time.Minute
	}
	return s
}

func run(row string, load ...string) step { return step{row: row, load: load, limit: 2 * time.Minute} }

func prepare(load ...string) step { return run("", load...) }
