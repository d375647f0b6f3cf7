package workload

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3"
)

// kubernetes sends what kube-apiservers send, in the shares of a recorded run (two apiservers, 156 s, 10,652 requests).
var kubernetes = Workload{
	Name: "kubernetes", Summary: "the requests of kube-apiservers, in their shares", Main: "request", Total: 10_000,
	Flags: func(fs *flag.FlagSet) Body {
		k := new(kubernetesFlags)
		fs.IntVar(&k.objects, "objects", 2000, "objects that exist before the run, over all clients")
		fs.IntVar(&k.valueBytes, "val-size", 1024, "bytes of an object")
		fs.IntVar(&k.watches, "watches", 50, "watches that exist all the time, on one prefix each")
		fs.Int64Var(&k.limit, "limit", 500, "page size of lists")
		return k.run
	},
}

type kubernetesFlags struct {
	objects, valueBytes, watches int
	limit                        int64
}

// request is one kind with its count in the recorded run.
type request struct {
	name  string
	share int
	send  func(*kubeWorker, context.Context) error
}

var requests = []request{
	{"get", 5602, (*kubeWorker).get},
	{"create", 1121, (*kubeWorker).create},
	{"delete", 883, (*kubeWorker).delete},
	{"progress", 834, (*kubeWorker).progress},
	{"update", 799, (*kubeWorker).update},
	{"count", 694, (*kubeWorker).count},
	{"update-conflict", 670, (*kubeWorker).updateConflict},
	{"page", 188, (*kubeWorker).page},
	{"event", 185, (*kubeWorker).event},
	{"watch", 169, (*kubeWorker).watch},
	{"list", 148, (*kubeWorker).list},
	{"create-conflict", 70, (*kubeWorker).createConflict},
	{"lease", 85, (*kubeWorker).lease},
	{"status", 46, (*kubeWorker).status},
}

// kubeResources are the prefixes over which objects spread.
var kubeResources = []string{
	"configmaps", "secrets", "pods", "leases", "services/specs", "serviceaccounts", "minions", "deployments",
	"replicasets", "clusterroles", "clusterrolebindings", "ipaddresses", "jobs", "ranges", "apiregistration.k8s.io", "controllerrevisions",
}

// kubeObject is a key and the revision that the next change compares with.
type kubeObject struct {
	key         string
	modRevision int64
}

// kubeWorker is one client with objects of its own, so that only the intended transactions fail.
type kubeWorker struct {
	*worker
	flags   *kubernetesFlags
	value   string
	objects []kubeObject
	created int
	leaseID clientv3.LeaseID
	// next is where the paged list goes on; empty: from the start.
	next         string
	listRevision int64
	endWatch     context.CancelFunc
}

func (k *kubernetesFlags) run(ctx context.Context, run *Run, args []string) error {
	if err := noArgs(args); err != nil {
		return err
	}
	workers, err := k.fill(ctx, run)
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	var receiving sync.WaitGroup
	for i := range k.watches {
		stream := clientv3.NewWatcher(run.Clients[i%len(run.Clients)])
		prefix := "/registry/" + kubeResources[i%len(kubeResources)] + "/"
		events, err := open(watching, stream, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
		if err != nil {
			return err
		}
		receiving.Go(func() {
			for range events {
			}
		})
	}
	sum := 0
	for _, request := range requests {
		sum += request.share
	}
	err = run.Measured(func() error {
		return run.each(ctx, func(ctx context.Context, w *worker, _ int) {
			kube := workers[w.number]
			kube.worker = w
			request := choose(w.random.Intn(sum))
			w.timed("request", func() error { return request.send(kube, ctx) }, request.name)
		})
	})
	for _, kube := range workers {
		kube.endWatch()
	}
	stop()
	receiving.Wait()
	return err
}

func choose(at int) request {
	for _, request := range requests {
		if at -= request.share; at < 0 {
			return request
		}
	}
	panic(fmt.Sprintf("share %d past the end of the list", at))
}

// fill creates the objects, each client its own.
func (k *kubernetesFlags) fill(ctx context.Context, run *Run) ([]*kubeWorker, error) {
	workers := make([]*kubeWorker, len(run.Clients))
	failed := make([]error, len(workers))
	value := run.randomValue(k.valueBytes)
	var filling sync.WaitGroup
	for number := range workers {
		kube := &kubeWorker{worker: run.worker(number), flags: k, value: value, endWatch: func() {}}
		workers[number] = kube
		filling.Go(func() {
			for range max(k.objects/len(workers), 2) {
				if failed[number] = kube.create(ctx); failed[number] != nil {
					return
				}
			}
			failed[number] = kube.lease(ctx)
		})
	}
	filling.Wait()
	return workers, errors.Join(failed...)
}

func (k *kubeWorker) randomPrefix() string {
	return "/registry/" + kubeResources[k.random.Intn(len(kubeResources))] + "/"
}

func (k *kubeWorker) newKey(resource string) string {
	k.created++
	return fmt.Sprintf("/registry/%s/namespace-%d/object-%08d", resource, k.number, k.created)
}

func (k *kubeWorker) randomObject() *kubeObject { return &k.objects[k.random.Intn(len(k.objects))] }

func (k *kubeWorker) get(ctx context.Context) error {
	_, err := k.client.Get(ctx, k.randomObject().key, clientv3.WithLimit(1))
	return err
}

func (k *kubeWorker) create(ctx context.Context) error {
	key := k.newKey(kubeResources[k.random.Intn(len(kubeResources))])
	revision, err := k.change(ctx, key, 0, clientv3.OpPut(key, k.value), true)
	if err == nil {
		k.objects = append(k.objects, kubeObject{key, revision})
	}
	return err
}

func (k *kubeWorker) createConflict(ctx context.Context) error {
	key := k.randomObject().key
	_, err := k.change(ctx, key, 0, clientv3.OpPut(key, k.value), false)
	return err
}

func (k *kubeWorker) update(ctx context.Context) error {
	object := k.randomObject()
	revision, err := k.change(ctx, object.key, object.modRevision, clientv3.OpPut(object.key, k.value), true)
	if err == nil {
		object.modRevision = revision
	}
	return err
}

func (k *kubeWorker) updateConflict(ctx context.Context) error {
	object := k.randomObject()
	_, err := k.change(ctx, object.key, object.modRevision-1, clientv3.OpPut(object.key, k.value), false)
	return err
}

// delete keeps the last objects, so that the other requests find some.
func (k *kubeWorker) delete(ctx context.Context) error {
	if len(k.objects) < 2 {
		return k.create(ctx)
	}
	object := k.randomObject()
	if _, err := k.change(ctx, object.key, object.modRevision, clientv3.OpDelete(object.key), true); err != nil {
		return err
	}
	*object = k.objects[len(k.objects)-1]
	k.objects = k.objects[:len(k.objects)-1]
	return nil
}

// change is an apiserver's conditional write: a create reads nothing when refused, the others read the object.
func (k *kubeWorker) change(ctx context.Context, key string, modRevision int64, write clientv3.Op, succeeds bool) (int64, error) {
	txn := k.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", modRevision)).Then(write)
	if modRevision != 0 {
		txn = txn.Else(clientv3.OpGet(key))
	}
	resp, err := txn.Commit()
	if err != nil {
		return 0, err
	}
	if resp.Succeeded != succeeds {
		return 0, fmt.Errorf("succeeded is %v at mod revision %d of %s", resp.Succeeded, modRevision, key)
	}
	return resp.Header.Revision, nil
}

func (k *kubeWorker) event(ctx context.Context) error {
	key := k.newKey("events")
	_, err := k.change(ctx, key, 0, clientv3.OpPut(key, k.value, clientv3.WithLease(k.leaseID)), true)
	return err
}

// lease is granted for all events of the time that follows, as an apiserver does.
func (k *kubeWorker) lease(ctx context.Context) error {
	const eventTTL = 3660
	resp, err := k.client.Grant(ctx, eventTTL)
	if err == nil {
		k.leaseID = resp.ID
	}
	return err
}

func (k *kubeWorker) count(ctx context.Context) error {
	_, err := k.client.Get(ctx, k.randomPrefix(), clientv3.WithPrefix(), clientv3.WithCountOnly())
	return err
}

func (k *kubeWorker) list(ctx context.Context) error {
	_, err := k.client.Get(ctx, k.randomPrefix(), clientv3.WithPrefix())
	return err
}

// page reads the next page of a list, at the revision of the first.
func (k *kubeWorker) page(ctx context.Context) error {
	const prefix = "/registry/"
	if k.next == "" {
		k.next, k.listRevision = prefix, 0
	}
	resp, err := k.client.Get(ctx, k.next, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)),
		clientv3.WithLimit(k.flags.limit), clientv3.WithRev(k.listRevision))
	if err != nil {
		return err
	}
	k.next, k.listRevision = "", resp.Header.Revision
	if resp.More {
		k.next = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	return nil
}

// watch replaces this client's short-lived watch by a new one from the present on.
func (k *kubeWorker) watch(ctx context.Context) error {
	k.endWatch()
	watching, end := context.WithCancel(clientv3.WithRequireLeader(ctx))
	k.endWatch = end
	events, err := open(watching, k.client, k.randomPrefix(), clientv3.WithPrefix(), clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	go func() {
		for range events {
		}
	}()
	return nil
}

func (k *kubeWorker) progress(ctx context.Context) error {
	return k.client.RequestProgress(clientv3.WithRequireLeader(ctx))
}

func (k *kubeWorker) status(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := k.client.Status(ctx, k.client.Endpoints()[0])
	return err
}
