package workload

import (
	"context"
	"flag"
	"fmt"

	"go.etcd.io/etcd/client/v3"
)

var txnPut = Workload{
	Name: "txn-put", Summary: "transactions of puts", Main: "txn", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		t := new(txnPutFlags)
		t.flags(fs, 8)
		fs.IntVar(&t.valueBytes, "val-size", 8, "bytes of a value")
		fs.IntVar(&t.operations, "txn-ops", 1, "puts in a transaction, of different keys")
		return t.run
	},
}

type txnPutFlags struct {
	keySpace
	valueBytes, operations int
}

func (t *txnPutFlags) run(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	if err := t.check(); err != nil {
		return err
	}
	if t.operations < 1 || t.operations > t.keys {
		return fmt.Errorf("--txn-ops is %d, expected 1 to --key-space-size, %d", t.operations, t.keys)
	}
	value := run.randomValue(t.valueBytes)
	t.sequential = true
	return run.Measured(func() error {
		return run.each(ctx, func(ctx context.Context, w *worker, n int) {
			puts := make([]clientv3.Op, t.operations)
			first := w.random.Intn(t.keys)
			for i := range puts {
				puts[i] = clientv3.OpPut(t.key(w, first+i), value)
			}
			w.timed("txn", func() error {
				_, err := w.client.Txn(ctx).Then(puts...).Commit()
				return err
			})
		})
	})
}

var txnMixed = Workload{
	Name: "txn-mixed", Summary: "transactions that read a range or put a key", Main: "txn", Args: "key [end-range]", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		t := new(txnMixedFlags)
		t.flags(fs, 8)
		fs.IntVar(&t.valueBytes, "val-size", 8, "bytes of a value")
		fs.Int64Var(&t.limit, "limit", 1000, "most keys that a read returns; 0 all")
		fs.Float64Var(&t.ratio, "rw-ratio", 1, "reads for each write")
		fs.StringVar(&t.consistency, "consistency", "l", "l: linearizable, s: serializable")
		fs.StringVar(&t.end, "end-key", "", "end of the range to read, instead of a second argument")
		return t.run
	},
}

type txnMixedFlags struct {
	keySpace
	valueBytes       int
	limit            int64
	ratio            float64
	consistency, end string
}

func (t *txnMixedFlags) run(ctx context.Context, run *Run, args []string) error {
	key, end, err := keyArgs(args)
	if err != nil {
		return err
	}
	if end == "" {
		end = t.end
	}
	if err := t.check(); err != nil {
		return err
	}
	reader := rangeFlags{consistency: t.consistency, limit: t.limit}
	options, err := reader.options(end)
	if err != nil {
		return err
	}
	value := run.randomValue(t.valueBytes)
	return run.Measured(func() error {
		return run.each(ctx, func(ctx context.Context, w *worker, n int) {
			kind, operation := "txn-write", clientv3.OpPut(t.key(w, n), value)
			if w.random.Float64() < t.ratio/(1+t.ratio) {
				kind, operation = "txn-read", clientv3.OpGet(key, options...)
			}
			w.timed("txn", func() error {
				_, err := w.client.Txn(ctx).Then(operation).Commit()
				return err
			}, kind)
		})
	})
}
