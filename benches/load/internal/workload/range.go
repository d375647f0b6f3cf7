package workload

import (
	"context"
	"flag"
	"fmt"

	"go.etcd.io/etcd/client/v3"
)

var rangeKeys = Workload{
	Name: "range", Summary: "reads of a key or a range of keys", Main: "range", Args: "key [end-range]", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		r := new(rangeFlags)
		fs.StringVar(&r.consistency, "consistency", "l", "l: linearizable, s: serializable")
		fs.Int64Var(&r.limit, "limit", 0, "most keys of an answer; 0 all")
		fs.BoolVar(&r.countOnly, "count-only", false, "ask for the number of keys only")
		fs.BoolVar(&r.keysOnly, "keys-only", false, "ask for keys without values")
		fs.BoolVar(&r.prefix, "prefix", false, "all keys that begin with key")
		fs.BoolVar(&r.stream, "stream", false, "read with RangeStream")
		fs.BoolVar(&r.paginate, "paginate", false, "read in pages of 10,000 keys; all pages are one operation")
		return r.run
	},
}

type rangeFlags struct {
	consistency                                   string
	limit                                         int64
	countOnly, keysOnly, prefix, stream, paginate bool
}

func (r *rangeFlags) run(ctx context.Context, run *Run, args []string) error {
	key, end, err := keyArgs(args)
	if err != nil {
		return err
	}
	options, err := r.options(end)
	if err != nil {
		return err
	}
	return run.Measured(func() error {
		return run.each(ctx, func(ctx context.Context, w *worker, _ int) {
			w.timed("range", func() error { return r.read(ctx, w.client, key, end, options) })
		})
	})
}

func (r *rangeFlags) options(end string) ([]clientv3.OpOption, error) {
	var options []clientv3.OpOption
	switch r.consistency {
	case "l":
	case "s":
		options = append(options, clientv3.WithSerializable())
	default:
		return nil, fmt.Errorf("--consistency is %q, l or s is needed", r.consistency)
	}
	if r.stream && r.paginate {
		return nil, fmt.Errorf("--stream and --paginate exclude each other")
	}
	if end != "" {
		options = append(options, clientv3.WithRange(end))
	}
	if r.prefix {
		options = append(options, clientv3.WithPrefix())
	}
	if r.limit > 0 {
		options = append(options, clientv3.WithLimit(r.limit))
	}
	if r.countOnly {
		options = append(options, clientv3.WithCountOnly())
	}
	if r.keysOnly {
		options = append(options, clientv3.WithKeysOnly())
	}
	return options, nil
}

func (r *rangeFlags) read(ctx context.Context, client *clientv3.Client, key, end string, options []clientv3.OpOption) error {
	switch {
	case r.stream:
		chunks, err := client.GetStream(ctx, key, options...)
		if err != nil {
			return err
		}
		for chunk := range chunks {
			if err := chunk.Err(); err != nil {
				return err
			}
		}
		return nil
	case r.paginate:
		return r.readPages(ctx, client, key, end, options)
	default:
		_, err := client.Get(ctx, key, options...)
		return err
	}
}

// readPages reads all pages at the revision of the first.
func (r *rangeFlags) readPages(ctx context.Context, client *clientv3.Client, key, end string, options []clientv3.OpOption) error {
	const pageKeys = 10_000
	if r.prefix {
		end = clientv3.GetPrefixRangeEnd(key)
		if key == "" {
			key, end = "\x00", "\x00"
		}
	}
	page := append(append([]clientv3.OpOption(nil), options...), clientv3.WithLimit(pageKeys))
	if end != "" {
		page = append(page, clientv3.WithRange(end))
	}
	for {
		resp, err := client.Get(ctx, key, page...)
		if err != nil || !resp.More {
			return err
		}
		key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		// WithPrefix would widen the rest again; the later option wins.
		page = append(page, clientv3.WithRange(end), clientv3.WithRev(resp.Header.Revision))
	}
}
