package workload

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

var stm = Workload{
	Name: "stm", Summary: "software transactional memory, or the same under a lock", Main: "stm", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		s := new(stmFlags)
		fs.StringVar(&s.isolation, "isolation", "r", "c: read committed, r: repeatable reads, s: serializable, ss: serializable with snapshot reads")
		fs.IntVar(&s.keys, "keys", 1, "number of different keys")
		fs.IntVar(&s.keysPerTxn, "keys-per-txn", 1, "keys a transaction touches")
		fs.IntVar(&s.writePercent, "txn-wr-percent", 50, "chance that a key is written, in percent")
		fs.StringVar(&s.locker, "stm-locker", "stm", "stm, lock-client or lock-rpc")
		fs.IntVar(&s.valueBytes, "val-size", 8, "bytes of a value")
		return s.run
	},
}

type stmFlags struct {
	isolation, locker                          string
	keys, keysPerTxn, writePercent, valueBytes int
}

// stmApply runs one transaction of a worker.
type stmApply func(ctx context.Context, w *worker, txn func(concurrency.STM) error) error

func (s *stmFlags) run(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	if s.keysPerTxn < 1 || s.keysPerTxn > s.keys {
		return fmt.Errorf("--keys-per-txn is %d, expected 1 to --keys, %d", s.keysPerTxn, s.keys)
	}
	isolation, known := map[string]concurrency.Isolation{
		"c": concurrency.ReadCommitted, "r": concurrency.RepeatableReads,
		"s": concurrency.Serializable, "ss": concurrency.SerializableSnapshot,
	}[s.isolation]
	if !known {
		return fmt.Errorf("--isolation is %q, expected c, r, s or ss", s.isolation)
	}
	apply, stop, err := s.apply(ctx, run, isolation)
	if err != nil {
		return err
	}
	value := run.randomValue(s.valueBytes)
	err = run.Measured(func() error {
		return run.each(ctx, func(ctx context.Context, w *worker, _ int) {
			first := w.random.Intn(s.keys)
			writes := make([]bool, s.keysPerTxn)
			for i := range writes {
				writes[i] = w.random.Intn(100) < s.writePercent
			}
			txn := func(stm concurrency.STM) error {
				for i, write := range writes {
					key := fmt.Sprintf("stm-%08d", (first+i)%s.keys)
					if write {
						stm.Put(key, value)
					} else {
						stm.Get(key)
					}
				}
				return nil
			}
			w.timed("stm", func() error { return apply(ctx, w, txn) })
		})
	})
	return errors.Join(err, stop())
}

// apply chooses how transactions exclude each other; stop ends the sessions that this opened.
func (s *stmFlags) apply(ctx context.Context, run *Run, isolation concurrency.Isolation) (apply stmApply, stop func() error, err error) {
	transaction := func(ctx context.Context, w *worker, txn func(concurrency.STM) error) error {
		_, err := concurrency.NewSTM(w.client, txn, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
		return err
	}
	if s.locker == "stm" {
		return transaction, func() error { return nil }, nil
	}
	sessions := make([]*concurrency.Session, len(run.Clients))
	for i, client := range run.Clients {
		if sessions[i], err = concurrency.NewSession(client, concurrency.WithContext(ctx)); err != nil {
			return nil, nil, err
		}
	}
	stop = func() (err error) {
		for _, session := range sessions {
			err = errors.Join(err, session.Close())
		}
		return err
	}
	switch s.locker {
	case "lock-client":
		return func(ctx context.Context, w *worker, txn func(concurrency.STM) error) error {
			mutex := concurrency.NewMutex(sessions[w.number], "stm-lock")
			if err := mutex.Lock(ctx); err != nil {
				return err
			}
			return errors.Join(transaction(ctx, w, txn), mutex.Unlock(ctx))
		}, stop, nil
	case "lock-rpc":
		return func(ctx context.Context, w *worker, txn func(concurrency.STM) error) error {
			return lockByRPC(ctx, w.client, sessions[w.number].Lease(), func() error { return transaction(ctx, w, txn) })
		}, stop, nil
	}
	return nil, nil, errors.Join(fmt.Errorf("--stm-locker is %q, expected stm, lock-client or lock-rpc", s.locker), stop())
}

func lockByRPC(ctx context.Context, client *clientv3.Client, lease clientv3.LeaseID, body func() error) error {
	locks := v3lockpb.NewLockClient(client.ActiveConnection())
	held, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("stm-lock"), Lease: int64(lease)})
	if err != nil {
		return err
	}
	err = body()
	_, unlockErr := locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: held.Key})
	return errors.Join(err, unlockErr)
}
