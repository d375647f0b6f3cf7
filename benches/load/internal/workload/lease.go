package workload

import (
	"context"
	"flag"
	"fmt"

	"go.etcd.io/etcd/client/v3"
)

var leaseKeepAlive = Workload{
	Name: "lease-keepalive", Summary: "KeepAliveOnce on one lease of 100 s", Main: "keepalive", Total: 10_000,
	Flags: func(*flag.FlagSet) Body {
		return func(ctx context.Context, run *Run, args []string) error {
			if err := noArgs(args); err != nil {
				return err
			}
			lease, err := run.Clients[0].Grant(ctx, 100)
			if err != nil {
				return err
			}
			return run.Measured(func() error {
				return run.each(ctx, func(ctx context.Context, w *worker, _ int) {
					w.timed("keepalive", func() error {
						_, err := w.client.KeepAliveOnce(ctx, lease.ID)
						return err
					})
				})
			})
		}
	},
}

var lease = Workload{
	Name: "lease", Summary: "grant a lease, put a key with it, revoke it: one operation", Main: "lease", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		valueBytes := fs.Int("val-size", 8, "bytes of a value")
		return func(ctx context.Context, run *Run, args []string) error {
			if err := noArgs(args); err != nil {
				return err
			}
			value := run.randomValue(*valueBytes)
			return run.Measured(func() error {
				return run.each(ctx, func(ctx context.Context, w *worker, n int) {
					w.timed("lease", func() error { return w.leaseCycle(ctx, fmt.Sprintf("lease-%08d", n), value) })
				})
			})
		}
	},
}

func (w *worker) leaseCycle(ctx context.Context, key, value string) error {
	var lease *clientv3.LeaseGrantResponse
	var err error
	w.timed("grant", func() error {
		lease, err = w.client.Grant(ctx, 100)
		return err
	})
	if err != nil {
		return err
	}
	w.timed("put", func() error {
		_, err = w.client.Put(ctx, key, value, clientv3.WithLease(lease.ID))
		return err
	})
	if err != nil {
		return err
	}
	w.timed("revoke", func() error {
		_, err = w.client.Revoke(ctx, lease.ID)
		return err
	})
	return err
}
