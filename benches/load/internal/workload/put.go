package workload

import (
	"context"
	"flag"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/v3"
)

var put = Workload{
	Name: "put", Summary: "puts, a key at a time", Main: "put", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		p := new(putFlags)
		p.flags(fs, 8)
		fs.IntVar(&p.valueBytes, "val-size", 8, "bytes of a value")
		fs.DurationVar(&p.compactInterval, "compact-interval", 0, "compact this often while putting; 0 never")
		fs.Int64Var(&p.compactDelta, "compact-index-delta", 1000, "revisions kept by such a compaction")
		fs.BoolVar(&p.checkHashKV, "check-hashkv", false, "compare HashKV of all endpoints in the end")
		return p.run
	},
}

type putFlags struct {
	keySpace
	valueBytes      int
	compactInterval time.Duration
	compactDelta    int64
	checkHashKV     bool
}

func (p *putFlags) run(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	value := run.randomValue(p.valueBytes)
	compacting, stop := context.WithCancel(ctx)
	defer stop()
	if p.compactInterval > 0 {
		go p.compact(compacting, run.Clients[0])
	}
	err := run.Measured(func() error {
		return run.each(ctx, func(ctx context.Context, w *worker, n int) {
			key := p.key(w, n)
			w.timed("put", func() error {
				_, err := w.client.Put(ctx, key, value)
				return err
			})
		})
	})
	stop()
	if err == nil && p.checkHashKV {
		err = checkHashKV(ctx, run.Clients[0])
	}
	return err
}

// compact keeps the newest compactDelta revisions; a refused compaction is tried again with the next tick.
func (p *putFlags) compact(ctx context.Context, client *clientv3.Client) {
	ticker := time.NewTicker(p.compactInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		resp, err := client.Get(ctx, "compact")
		if err == nil && resp.Header.Revision > p.compactDelta {
			_, _ = client.Compact(ctx, resp.Header.Revision-p.compactDelta)
		}
	}
}

func checkHashKV(ctx context.Context, client *clientv3.Client) error {
	resp, err := client.Get(ctx, "revision")
	if err != nil {
		return err
	}
	var first uint32
	for i, endpoint := range client.Endpoints() {
		hash, err := client.HashKV(ctx, endpoint, resp.Header.Revision)
		if err != nil {
			return err
		}
		if i == 0 {
			first = hash.Hash
		} else if hash.Hash != first {
			return fmt.Errorf("HashKV at revision %d: %d at %s, %d at %s", resp.Header.Revision,
				first, client.Endpoints()[0], hash.Hash, endpoint)
		}
	}
	return nil
}
