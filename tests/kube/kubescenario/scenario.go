package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The steps that a sabotage must make fail.
const (
	createObjectsStep = "create namespaces and config maps"
	watchChangesStep  = "watch gives every change once and in order"
	idleBookmarkStep  = "idle watch gets a bookmark of the store's revision"
	inAPIStep         = "every acknowledged write is in the API"
	inStoreStep       = "every acknowledged write is in the store"
	orderStep         = "every read and write of the load kept the order"
	logStep           = "no storage error in the apiservers' logs"
)

const (
	requestTimeout     = 40 * time.Second
	compactionInterval = 20 * time.Second
	eventTTL           = 20 * time.Second
	progressInterval   = 5 * time.Second // as kubeadm sets it

	perNamespace = 150 // config maps in each of the namespaces below
)

var namespaces = []string{"blue", "green", "red"}

// scenario is one run: a store, and apiserver a, which is always there, and b, which comes and goes.
type scenario struct {
	options
	*report
	ctx     context.Context
	dir     string
	store   *store
	cluster *cluster
	a, b    *apiserver
	etcd    *clientv3.Client
	servers []*apiserver // all ever started, for the end and the log

	firstRV      uint64 // a resource version that will be compacted away
	eventsGone   <-chan error
	cancelEvents context.CancelFunc
}

func (s *scenario) run() {
	if !s.begin() {
		return
	}
	if s.sabotage != "" {
		s.runSpoiled()
		return
	}
	if s.short {
		s.step("bootstrap objects are there", s.bootstrapObjects)
		_ = s.loadPhase() && s.afterwards()
		return
	}
	s.step("bootstrap objects are there", s.bootstrapObjects)
	s.step(createObjectsStep, s.createObjects)
	s.step("create again is refused", s.createAgain)
	s.step("list in pages keeps one moment", s.listInPages)
	s.step("list by selector and at a resource version", s.listVariants)
	s.step("events get a lease", s.postEvents)
	s.step(watchChangesStep, s.watchChanges)
	s.step("watch from an old resource version replays", s.watchReplay)
	s.step("watch with initial events", s.watchInitialEvents)
	s.step(idleBookmarkStep, s.idleBookmark)
	s.step("update of an old version is a conflict", s.updateConflict)
	s.step("concurrent increments lose nothing", s.concurrentIncrements)
	s.step("patches of all kinds", s.patches)
	s.step("large objects, and too large ones", s.largeObjects)
	s.step("delete collection", s.deleteCollection)
	s.step("delete a namespace with its objects", s.deleteNamespace)
	s.step("custom resources", s.customResources)
	s.step("pods are created, bound, run and deleted", s.pods)
	if s.step("second apiserver becomes ready", func() (string, error) { return s.startB() }) {
		s.step("list through one apiserver right after a write through the other", s.consistentLists)
		s.step("services get distinct addresses and ports through both", s.services)
		s.step("both apiservers have their leases", s.apiserverLeases)
		s.step("stop the second apiserver", func() (string, error) { return "", s.stopB() })
	}
	if s.step("apiserver without watch cache becomes ready", func() (string, error) { return s.startB("--watch-cache=false") }) {
		s.step("it lists and watches the same, from the store", s.uncached)
		s.step("stop the apiserver without watch cache", func() (string, error) { return "", s.stopB() })
	}
	s.step("compacted revisions are gone", s.compacted)
	s.step("events expire with their lease", s.eventsExpire)
	s.step("apiserver restart keeps everything", s.restartAPIServer)
	s.step("store restart keeps everything", s.restartStore)
	_ = s.loadPhase() && s.afterwards()
}

// begin starts the store and the first apiserver.
func (s *scenario) begin() bool {
	return s.step("store starts and says ready", func() (string, error) {
		var err error
		interval := progressInterval
		if s.sabotage == "no-progress" {
			interval = 10 * time.Minute
		}
		if s.store, err = newStore(s.dir, s.options.store, s.options.members, interval); err != nil {
			return "", err
		}
		took, err := s.store.start(s.ctx)
		if err != nil {
			return "", err
		}
		for _, m := range s.store.members {
			if err := m.probe(s.ctx, "/livez"); err != nil {
				return "", err
			}
		}
		s.etcd, err = s.store.etcdClient()
		return fmt.Sprintf("ready after %d ms", took.Milliseconds()), err
	}) && s.step("kube-apiserver becomes ready", func() (string, error) {
		var err error
		if s.cluster, err = newCluster(s.dir, s.apiserver, s.store); err != nil {
			return "", err
		}
		if s.a, err = s.cluster.startAPIServer(s.ctx, 1); err != nil {
			return "", err
		}
		s.servers = append(s.servers, s.a)
		checks, err := s.a.raw(s.ctx, "/readyz?verbose")
		if err != nil {
			return "", err
		}
		for _, check := range []string{"[+]etcd ok", "[+]etcd-readiness ok"} {
			if !strings.Contains(checks, check) {
				return "", fmt.Errorf("/readyz lacks %q:\n%s", check, checks)
			}
		}
		version, err := s.a.get(s.ctx, "/version")
		return fmt.Sprint(version["gitVersion"]), err
	})
}

func (s *scenario) startB(extra ...string) (string, error) {
	began := time.Now()
	var err error
	if s.b, err = s.cluster.startAPIServer(s.ctx, 2, extra...); err != nil {
		return "", err
	}
	s.servers = append(s.servers, s.b)
	return fmt.Sprintf("%.1f s", time.Since(began).Seconds()), nil
}

func (s *scenario) stopB() error {
	defer func() { s.b = nil }()
	return s.b.stop()
}

// endAll ends what still runs, in any case.
func (s *scenario) endAll() {
	if s.cancelEvents != nil {
		s.cancelEvents()
	}
	if s.etcd != nil {
		_ = s.etcd.Close()
	}
	for _, server := range s.servers {
		server.process.kill()
	}
	if s.store != nil {
		s.store.kill()
	}
}

func configMaps(namespace string) string {
	return "/api/v1/namespaces/" + namespace + "/configmaps"
}

func configMap(name string, data map[string]any) object {
	return object{"metadata": map[string]any{"name": name, "labels": map[string]any{"of": "kubescenario"}}, "data": data}
}

func (s *scenario) bootstrapObjects() (string, error) {
	for _, path := range []string{
		"/api/v1/namespaces/default",
		"/api/v1/namespaces/kube-system",
		"/api/v1/namespaces/kube-public",
		"/api/v1/namespaces/kube-node-lease",
		"/api/v1/namespaces/default/services/kubernetes",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
		"/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/exempt",
		"/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
	} {
		// Some come from hooks that end a little after ready.
		err := waitFor(s.ctx, 30*time.Second, 200*time.Millisecond, func() error {
			_, err := s.a.get(s.ctx, path)
			return err
		})
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
	}
	return "", nil
}

// createObjects creates from several clients at once. A write that began after another was acknowledged must get
// the higher resource version.
func (s *scenario) createObjects() (string, error) {
	for _, namespace := range namespaces {
		created, err := s.a.create(s.ctx, "/api/v1/namespaces", object{"metadata": map[string]any{"name": namespace}})
		if err != nil {
			return "", err
		}
		if s.firstRV == 0 {
			s.firstRV = created.rv()
		}
	}
	var order rvOrder
	began := time.Now()
	err := inParallel(len(namespaces)*perNamespace, 12, func(i int) error {
		namespace := namespaces[i%len(namespaces)]
		before := order.newest()
		made, err := s.a.create(s.ctx, configMaps(namespace), configMap(fmt.Sprintf("item-%03d", i/len(namespaces)), map[string]any{"n": fmt.Sprint(i)}))
		if err != nil {
			return err
		}
		return order.acknowledge(made.key(), before, made.rv())
	})
	return fmt.Sprintf("%d objects in %d ms", len(namespaces)*perNamespace, time.Since(began).Milliseconds()), err
}

// rvOrder checks that resource versions are given once, and upwards.
type rvOrder struct {
	mu   sync.Mutex
	max  uint64
	seen map[uint64]string
}

func (o *rvOrder) newest() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.max
}

func (o *rvOrder) acknowledge(what string, before, rv uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if rv <= before {
		return fmt.Errorf("%s got resource version %d, but %d was acknowledged before it was sent", what, rv, before)
	}
	if o.seen == nil {
		o.seen = map[uint64]string{}
	}
	if other, taken := o.seen[rv]; taken {
		return fmt.Errorf("%s and %s both got resource version %d", what, other, rv)
	}
	o.seen[rv] = what
	o.max = max(o.max, rv)
	return nil
}

func (s *scenario) createAgain() (string, error) {
	_, err := s.a.create(s.ctx, configMaps("blue"), configMap("item-000", nil))
	return "", expectCode(err, http.StatusConflict)
}

// listInPages writes between the pages: they must all show the moment of the first one.
func (s *scenario) listInPages() (string, error) {
	path := configMaps("blue")
	query := url.Values{"limit": {"40"}}
	seen := map[string]bool{}
	var moment uint64
	left := int64(-1)
	for page := 0; ; page++ {
		l, err := s.a.list(s.ctx, path, query)
		if err != nil {
			return "", err
		}
		switch page {
		case 0:
			moment = l.rv()
			if _, err := s.a.create(s.ctx, path, configMap("item-999-late", nil)); err != nil {
				return "", err
			}
			if err := s.a.delete(s.ctx, path+"/item-149"); err != nil {
				return "", err
			}
		default:
			if l.rv() != moment {
				return "", fmt.Errorf("page %d is of resource version %d, the first of %d", page, l.rv(), moment)
			}
			if len(l.Items) != int(min(left, 40)) {
				return "", fmt.Errorf("page %d has %d objects where %d were left", page, len(l.Items), left)
			}
		}
		for _, item := range l.Items {
			if seen[item.name()] {
				return "", fmt.Errorf("%s comes twice", item.name())
			}
			seen[item.name()] = true
		}
		if l.Metadata.Continue == "" {
			break
		}
		if l.Metadata.RemainingItemCount == nil {
			return "", fmt.Errorf("page %d lacks remainingItemCount", page)
		}
		left = *l.Metadata.RemainingItemCount
		if int(left)+len(seen) != perNamespace {
			return "", fmt.Errorf("page %d: %d seen and %d left, of %d", page, len(seen), left, perNamespace)
		}
		query.Set("continue", l.Metadata.Continue)
	}
	if len(seen) != perNamespace || seen["item-999-late"] || !seen["item-149"] {
		return "", fmt.Errorf("%d objects in pages, late one %v, deleted one %v", len(seen), seen["item-999-late"], seen["item-149"])
	}
	// Put things back as the other steps expect them.
	if err := s.a.delete(s.ctx, path+"/item-999-late"); err != nil {
		return "", err
	}
	_, err := s.a.create(s.ctx, path, configMap("item-149", map[string]any{"n": "447"}))
	return fmt.Sprintf("%d objects", len(seen)), err
}

func (s *scenario) listVariants() (string, error) {
	path := configMaps("green")
	now, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	if _, err := s.a.create(s.ctx, path, configMap("extra", nil)); err != nil {
		return "", err
	}
	rv := now.Metadata.ResourceVersion
	for _, c := range []struct {
		name  string
		path  string
		query url.Values
		want  int
	}{
		{"all", path, url.Values{}, perNamespace + 1},
		{"exact", path, url.Values{"resourceVersion": {rv}, "resourceVersionMatch": {"Exact"}}, perNamespace},
		{"exact in pages", path, url.Values{"resourceVersion": {rv}, "resourceVersionMatch": {"Exact"}, "limit": {"1000"}}, perNamespace},
		{"not older", path, url.Values{"resourceVersion": {rv}, "resourceVersionMatch": {"NotOlderThan"}}, -1},
		{"any", path, url.Values{"resourceVersion": {"0"}}, -1},
		{"label", path, url.Values{"labelSelector": {"of=kubescenario"}}, perNamespace + 1},
		{"other label", path, url.Values{"labelSelector": {"of=others"}}, 0},
		{"field", path, url.Values{"fieldSelector": {"metadata.name=item-007"}}, 1},
		{"all namespaces", "/api/v1/configmaps", url.Values{"labelSelector": {"of=kubescenario"}}, len(namespaces)*perNamespace + 1},
	} {
		l, err := s.a.list(s.ctx, c.path, c.query)
		if err != nil {
			return "", fmt.Errorf("%s: %w", c.name, err)
		}
		if c.want >= 0 && len(l.Items) != c.want {
			return "", fmt.Errorf("%s: %d objects, not %d", c.name, len(l.Items), c.want)
		}
		if !slices.IsSortedFunc(l.Items, func(x, y object) int { return strings.Compare(x.key(), y.key()) }) {
			return "", fmt.Errorf("%s: not in key order", c.name)
		}
	}
	future := fmt.Sprint(now.rv() + 1_000_000)
	_, err = s.a.list(s.ctx, path, url.Values{"resourceVersion": {future}, "resourceVersionMatch": {"NotOlderThan"}})
	if err := expectCode(err, http.StatusGatewayTimeout); err != nil {
		return "", fmt.Errorf("list of a future resource version: %w", err)
	}
	return "", s.a.delete(s.ctx, path+"/extra")
}

// change is what a watch must show of one acknowledged write.
type change struct {
	kind string
	name string
	rv   uint64 // 0 where the answer does not tell: of a delete
	text string // data.text
}

func (c change) String() string { return fmt.Sprintf("%s %s at %d %q", c.kind, c.name, c.rv, c.text) }

// compare checks that the events are exactly the wanted changes, in order, with bookmarks between them or not.
func compare(events []event, want []change) error {
	var last uint64
	i := 0
	for _, e := range events {
		rv := e.Object.rv()
		switch {
		case e.Type == "ERROR":
			return e.refusal()
		case e.Type == "BOOKMARK":
			if rv < last {
				return fmt.Errorf("bookmark %d after an event of %d", rv, last)
			}
			last = rv
			continue
		case rv <= last:
			return fmt.Errorf("%s of %s at %d came after %d", e.Type, e.Object.name(), rv, last)
		case i == len(want):
			return fmt.Errorf("%s of %s at %d is one too many", e.Type, e.Object.name(), rv)
		}
		got := change{e.Type, e.Object.name(), rv, e.Object.data("text")}
		if want[i].rv == 0 {
			got.rv = 0
		}
		if got != want[i] {
			return fmt.Errorf("change %d: got %s, want %s", i, got, want[i])
		}
		last = rv
		i++
	}
	if i < len(want) {
		return fmt.Errorf("%d of %d changes came, next is %s", i, len(want), want[i])
	}
	return nil
}

// makeChanges creates, updates and deletes, one after another, and returns what a watch must show.
func (s *scenario) makeChanges(c *client, path, prefix string, rounds int) (want []change, err error) {
	for i := range rounds {
		name := fmt.Sprintf("%s-%02d", prefix, i)
		made, err := c.create(s.ctx, path, configMap(name, map[string]any{"text": "first"}))
		if err != nil {
			return nil, err
		}
		want = append(want, change{"ADDED", name, made.rv(), "first"})
		for _, text := range []string{"second", "third"} {
			made, err = c.patch(s.ctx, path+"/"+name, asMergePatch, object{"data": object{"text": text}})
			if err != nil {
				return nil, err
			}
			want = append(want, change{"MODIFIED", name, made.rv(), text})
		}
		if i%2 == 0 {
			if err := c.delete(s.ctx, path+"/"+name); err != nil {
				return nil, err
			}
			// A deleted object shows its last content at the revision of the delete.
			want = append(want, change{"DELETED", name, 0, "third"})
		}
	}
	return want, nil
}

// changesOf is how many changes makeChanges makes.
func changesOf(rounds int) int { return 3*rounds + (rounds+1)/2 }

// watchFrom opens a watch that this step ends.
func (s *scenario) watchFrom(c *client, path string, rv uint64, extra url.Values) (<-chan event, context.CancelFunc, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	query := url.Values{"resourceVersion": {fmt.Sprint(rv)}, "allowWatchBookmarks": {"true"}}
	for key, values := range extra {
		query[key] = values
	}
	events, err := c.watch(ctx, path, query)
	return events, cancel, err
}

func (s *scenario) watchChanges() (string, error) {
	path := configMaps("red")
	now, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	const watchers, rounds = 5, 40
	results := make(chan []event, watchers)
	for range watchers {
		events, cancel, err := s.watchFrom(s.a.client, path, now.rv(), nil)
		defer cancel()
		if err != nil {
			return "", err
		}
		go func() {
			got := collect(events, changesOf(rounds), 30*time.Second)
			// One too many would come within the second after the last.
			results <- append(got, collect(events, 1, time.Second)...)
		}()
	}
	changes, err := s.makeChanges(s.a.client, path, "watched", rounds)
	if err != nil {
		return "", err
	}
	for range watchers {
		if err := compare(<-results, changes); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d changes to %d watchers", len(changes), watchers), nil
}

// watchReplay opens the watch after the changes: the store's and the cache's history must give them.
func (s *scenario) watchReplay() (string, error) {
	path := configMaps("red")
	now, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	changes, err := s.makeChanges(s.a.client, path, "replayed", 10)
	if err != nil {
		return "", err
	}
	for from, start := range map[int]uint64{0: now.rv(), 5: changes[4].rv} {
		if start == 0 {
			return "", fmt.Errorf("change %d has no resource version", from)
		}
		events, cancel, err := s.watchFrom(s.a.client, path, start, nil)
		if err != nil {
			cancel()
			return "", err
		}
		got := collect(events, len(changes)-from, 20*time.Second)
		got = append(got, collect(events, 1, 500*time.Millisecond)...)
		cancel()
		if err := compare(got, changes[from:]); err != nil {
			return "", fmt.Errorf("from change %d: %w", from, err)
		}
	}
	return fmt.Sprintf("%d changes", len(changes)), nil
}

// watchInitialEvents is a list by watch: all objects as ADDED, then a bookmark that says so.
func (s *scenario) watchInitialEvents() (string, error) {
	path := configMaps("green")
	before, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	events, err := s.a.watch(ctx, path, url.Values{
		"sendInitialEvents": {"true"}, "allowWatchBookmarks": {"true"}, "resourceVersionMatch": {"NotOlderThan"},
	})
	if err != nil {
		return "", err
	}
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	added := map[string]bool{}
	for {
		select {
		case <-timer.C:
			return "", fmt.Errorf("no bookmark after %d objects", len(added))
		case e, open := <-events:
			switch {
			case !open:
				return "", errors.New("the watch ended")
			case e.Type == "ADDED" && !added[e.Object.name()]:
				added[e.Object.name()] = true
			case e.Type == "BOOKMARK" && e.Object.field("metadata", "annotations", "k8s.io/initial-events-end") == "true":
				if len(added) != perNamespace || e.Object.rv() < before.rv() {
					return "", fmt.Errorf("%d objects and bookmark %d, want %d and at least %d", len(added), e.Object.rv(), perNamespace, before.rv())
				}
				return fmt.Sprintf("%d objects", len(added)), nil
			default:
				return "", fmt.Errorf("unexpected %s of %s", e.Type, e.Object.name())
			}
		}
	}
}

// idleBookmark writes to other resources while a watch sees nothing. Only the store's progress notifications, each
// 5 s, can raise the bookmark that the apiserver sends 2 s before a watch times out.
func (s *scenario) idleBookmark() (string, error) {
	path := "/apis/storage.k8s.io/v1/storageclasses"
	now, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	events, cancel, err := s.watchFrom(s.a.client, path, now.rv(), url.Values{"timeoutSeconds": {"12"}})
	defer cancel()
	if err != nil {
		return "", err
	}
	var newest uint64
	for i := range 20 {
		made, err := s.a.patch(s.ctx, configMaps("red")+"/item-000", asMergePatch, object{"data": object{"n": fmt.Sprint(i)}})
		if err != nil {
			return "", err
		}
		newest = made.rv()
	}
	var bookmark uint64
	for _, e := range collect(events, 1, 20*time.Second) {
		if e.Type != "BOOKMARK" {
			return "", fmt.Errorf("unexpected %s of %s", e.Type, e.Object.name())
		}
		bookmark = e.Object.rv()
	}
	if bookmark < newest {
		return "", fmt.Errorf("last bookmark is %d, a write elsewhere had %d", bookmark, newest)
	}
	return fmt.Sprintf("bookmark %d, list was %d", bookmark, now.rv()), nil
}

func (s *scenario) updateConflict() (string, error) {
	path := configMaps("blue") + "/item-001"
	old, err := s.a.get(s.ctx, path)
	if err != nil {
		return "", err
	}
	updated := configMap("item-001", map[string]any{"n": "new"})
	updated["metadata"].(map[string]any)["resourceVersion"] = old.meta("resourceVersion")
	made, err := s.a.update(s.ctx, path, updated)
	if err != nil {
		return "", err
	}
	if made.rv() <= old.rv() {
		return "", fmt.Errorf("resource version went from %d to %d", old.rv(), made.rv())
	}
	_, err = s.a.update(s.ctx, path, updated)
	if err := expectCode(err, http.StatusConflict); err != nil {
		return "", err
	}
	err = s.a.do(s.ctx, http.MethodDelete, path, asJSON, object{
		"preconditions": object{"resourceVersion": old.meta("resourceVersion")},
	}, nil)
	if err := expectCode(err, http.StatusConflict); err != nil {
		return "", fmt.Errorf("delete with a precondition: %w", err)
	}
	// The same content again is no write.
	updated["metadata"].(map[string]any)["resourceVersion"] = made.meta("resourceVersion")
	same, err := s.a.update(s.ctx, path, updated)
	if err != nil {
		return "", err
	}
	if same.rv() != made.rv() {
		return "", fmt.Errorf("an update without a change went from %d to %d", made.rv(), same.rv())
	}
	return "", nil
}

// concurrentIncrements reads, adds one and writes back, and begins anew on a conflict.
func (s *scenario) concurrentIncrements() (string, error) {
	const writers, each = 6, 15
	path := configMaps("blue") + "/item-002"
	if _, err := s.a.patch(s.ctx, path, asMergePatch, object{"data": object{"n": "0"}}); err != nil {
		return "", err
	}
	var order rvOrder
	var mu sync.Mutex
	conflicts := 0
	err := inParallel(writers, writers, func(int) error {
		for done := 0; done < each; {
			before := order.newest()
			o, err := s.a.get(s.ctx, path)
			if err != nil {
				return err
			}
			if o.rv() < before {
				return fmt.Errorf("read resource version %d after %d was acknowledged", o.rv(), before)
			}
			var n int
			_, _ = fmt.Sscan(o.data("n"), &n)
			o["data"] = map[string]any{"n": fmt.Sprint(n + 1)}
			made, err := s.a.update(s.ctx, path, o)
			switch codeOf(err) {
			case http.StatusOK:
				if err := order.acknowledge("increment", before, made.rv()); err != nil {
					return err
				}
				done++
			case http.StatusConflict:
				mu.Lock()
				conflicts++
				mu.Unlock()
			default:
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	o, err := s.a.get(s.ctx, path)
	if err != nil {
		return "", err
	}
	if o.data("n") != fmt.Sprint(writers*each) {
		return "", fmt.Errorf("counted to %s, not %d", o.data("n"), writers*each)
	}
	return fmt.Sprintf("%d increments, %d conflicts", writers*each, conflicts), nil
}

func (s *scenario) patches() (string, error) {
	path := configMaps("blue") + "/item-003"
	var last uint64
	expect := func(o object, err error, text string) error {
		switch {
		case err != nil:
			return err
		case o.rv() <= last:
			return fmt.Errorf("resource version went from %d to %d", last, o.rv())
		case o.data("text") != text:
			return fmt.Errorf("text is %q, not %q", o.data("text"), text)
		}
		last = o.rv()
		return nil
	}
	o, err := s.a.patch(s.ctx, path, asMergePatch, object{"data": object{"text": "merge"}})
	if err := expect(o, err, "merge"); err != nil {
		return "", fmt.Errorf("merge patch: %w", err)
	}
	o, err = s.a.patch(s.ctx, path, asStrategic, object{"data": object{"text": "strategic"}})
	if err := expect(o, err, "strategic"); err != nil {
		return "", fmt.Errorf("strategic merge patch: %w", err)
	}
	o, err = s.a.patch(s.ctx, path, asJSONPatch, []object{
		{"op": "test", "path": "/data/text", "value": "strategic"},
		{"op": "replace", "path": "/data/text", "value": "json"},
	})
	if err := expect(o, err, "json"); err != nil {
		return "", fmt.Errorf("JSON patch: %w", err)
	}
	_, err = s.a.patch(s.ctx, path, asJSONPatch, []object{{"op": "test", "path": "/data/text", "value": "strategic"}})
	if err := expectCode(err, http.StatusUnprocessableEntity); err != nil {
		return "", fmt.Errorf("JSON patch with a failing test: %w", err)
	}
	apply := object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": "item-003"}, "data": object{"text": "apply"}}
	_, err = s.a.patch(s.ctx, path+"?fieldManager=other", asApply, apply)
	if err := expectCode(err, http.StatusConflict); err != nil {
		return "", fmt.Errorf("apply over another's field: %w", err)
	}
	o, err = s.a.patch(s.ctx, path+"?fieldManager=other&force=true", asApply, apply)
	if err := expect(o, err, "apply"); err != nil {
		return "", fmt.Errorf("apply by force: %w", err)
	}
	apply["metadata"] = object{"name": "applied"}
	o, err = s.a.patch(s.ctx, configMaps("blue")+"/applied?fieldManager=other", asApply, apply)
	if err := expect(o, err, "apply"); err != nil {
		return "", fmt.Errorf("apply that creates: %w", err)
	}
	return "", nil
}

func (s *scenario) largeObjects() (string, error) {
	path := configMaps("blue")
	text := strings.Repeat("0123456789abcdef", 1000*1000/16)
	made, err := s.a.create(s.ctx, path, configMap("large", map[string]any{"text": text}))
	if err != nil {
		return "", err
	}
	read, err := s.a.get(s.ctx, path+"/large")
	if err != nil {
		return "", err
	}
	if read.data("text") != text || read.rv() != made.rv() {
		return "", errors.New("a megabyte was not read as it was written")
	}
	if err := s.a.delete(s.ctx, path+"/large"); err != nil {
		return "", err
	}
	// Annotations may not be so large, but the spec of a lease's holder is not looked at. The store's limit is
	// 1.5 MiB, and no part of the object may be stored.
	leases := "/apis/coordination.k8s.io/v1/namespaces/blue/leases"
	holder := strings.Repeat("x", 1_700_000)
	defer s.store.excuse("etcdserver: request is too large")()
	_, err = s.a.create(s.ctx, leases, object{
		"metadata": object{"name": "too-large"}, "spec": object{"holderIdentity": holder},
	})
	if err == nil || !strings.Contains(err.Error(), "etcdserver: request is too large") {
		return "", fmt.Errorf("1.7 MB: want the store's refusal, got: %.200v", err)
	}
	_, err = s.a.get(s.ctx, leases+"/too-large")
	return "", expectCode(err, http.StatusNotFound)
}

func (s *scenario) deleteCollection() (string, error) {
	path := configMaps("red")
	now, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	events, cancel, err := s.watchFrom(s.a.client, path, now.rv(), nil)
	defer cancel()
	if err != nil {
		return "", err
	}
	if err := s.a.delete(s.ctx, path+"?labelSelector=of%3Dkubescenario"); err != nil {
		return "", err
	}
	var last uint64
	left := map[string]string{}
	for _, item := range now.Items {
		left[item.name()] = item.data("n")
	}
	for _, e := range collect(events, len(now.Items), 20*time.Second) {
		if e.Type == "BOOKMARK" {
			continue
		}
		text, known := left[e.Object.name()]
		if e.Type != "DELETED" || !known || e.Object.rv() <= last || e.Object.data("n") != text {
			return "", fmt.Errorf("unexpected %s of %s at %d after %d", e.Type, e.Object.name(), e.Object.rv(), last)
		}
		last = e.Object.rv()
		delete(left, e.Object.name())
	}
	after, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	if len(left) > 0 || len(after.Items) > 0 {
		return "", fmt.Errorf("%d deletes not seen, %d objects left", len(left), len(after.Items))
	}
	return fmt.Sprintf("%d objects", len(now.Items)), nil
}

// deleteNamespace does what the namespace controller does, which we do not run.
func (s *scenario) deleteNamespace() (string, error) {
	const path = "/api/v1/namespaces/green"
	if err := s.a.delete(s.ctx, path); err != nil {
		return "", err
	}
	going, err := s.a.get(s.ctx, path)
	if err != nil {
		return "", err
	}
	if going.field("status", "phase") != "Terminating" {
		return "", fmt.Errorf("phase is %v", going.field("status", "phase"))
	}
	_, err = s.a.create(s.ctx, configMaps("green"), configMap("refused", nil))
	if err := expectCode(err, http.StatusForbidden); err != nil {
		return "", fmt.Errorf("create in a namespace that goes: %w", err)
	}
	if err := s.a.delete(s.ctx, configMaps("green")); err != nil {
		return "", err
	}
	left, err := s.a.list(s.ctx, configMaps("green"), nil)
	if err != nil {
		return "", err
	}
	if len(left.Items) > 0 {
		return "", fmt.Errorf("%d objects left", len(left.Items))
	}
	going["spec"] = map[string]any{"finalizers": []any{}}
	if _, err := s.a.update(s.ctx, path+"/finalize", going); err != nil {
		return "", err
	}
	_, err = s.a.get(s.ctx, path)
	if err := expectCode(err, http.StatusNotFound); err != nil {
		return "", err
	}
	// Nothing of it may be left in the store either.
	for _, prefix := range []string{"/registry/configmaps/green/", "/registry/namespaces/green"} {
		answer, err := s.etcd.Get(s.ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return "", err
		}
		if answer.Count > 0 {
			return "", fmt.Errorf("%d keys left under %s", answer.Count, prefix)
		}
	}
	return "", nil
}

func (s *scenario) customResources() (string, error) {
	const definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	const widgets = "/apis/kvd.example/v1/namespaces/blue/widgets"
	_, err := s.a.create(s.ctx, definitions, object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": "widgets.kvd.example"},
		"spec": object{
			"group": "kvd.example", "scope": "Namespaced",
			"names": object{"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
			"versions": []object{{
				"name": "v1", "served": true, "storage": true, "subresources": object{"status": object{}},
				"schema": object{"openAPIV3Schema": object{
					"type": "object",
					"properties": object{
						"spec":   object{"type": "object", "properties": object{"size": object{"type": "integer"}}},
						"status": object{"type": "object", "properties": object{"ready": object{"type": "boolean"}}},
					},
				}},
			}},
		},
	})
	if err != nil {
		return "", err
	}
	widget := func(i int) object {
		return object{
			"apiVersion": "kvd.example/v1", "kind": "Widget",
			"metadata": object{"name": fmt.Sprintf("widget-%02d", i)}, "spec": object{"size": i},
		}
	}
	err = waitFor(s.ctx, 60*time.Second, 200*time.Millisecond, func() error {
		_, err := s.a.list(s.ctx, widgets, nil)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("the definition is not served: %w", err)
	}
	start, err := s.a.list(s.ctx, widgets, nil)
	if err != nil {
		return "", err
	}
	events, cancel, err := s.watchFrom(s.a.client, widgets, start.rv(), nil)
	defer cancel()
	if err != nil {
		return "", err
	}
	var want []change
	for i := range 40 {
		made, err := s.a.create(s.ctx, widgets, widget(i))
		if err != nil {
			return "", err
		}
		want = append(want, change{"ADDED", made.name(), made.rv(), ""})
		if i%4 == 0 {
			made, err = s.a.patch(s.ctx, widgets+"/"+made.name()+"/status", asMergePatch, object{"status": object{"ready": true}})
			if err != nil {
				return "", err
			}
			want = append(want, change{"MODIFIED", made.name(), made.rv(), ""})
		}
	}
	if err := compare(collect(events, len(want), 20*time.Second), want); err != nil {
		return "", fmt.Errorf("watch: %w", err)
	}
	page, err := s.a.list(s.ctx, widgets, url.Values{"limit": {"15"}})
	if err != nil {
		return "", err
	}
	rest, err := s.a.list(s.ctx, widgets, url.Values{"continue": {page.Metadata.Continue}})
	if err != nil {
		return "", err
	}
	if len(page.Items) != 15 || len(rest.Items) != 25 {
		return "", fmt.Errorf("pages of %d and %d, not 15 and 25", len(page.Items), len(rest.Items))
	}
	wrong := widget(41)
	wrong["spec"] = object{"size": "big"}
	_, err = s.a.create(s.ctx, widgets, wrong)
	if err := expectCode(err, http.StatusUnprocessableEntity); err != nil {
		return "", err
	}
	// With the definition go its objects: the apiserver itself deletes them.
	if err := s.a.delete(s.ctx, definitions+"/widgets.kvd.example"); err != nil {
		return "", err
	}
	err = waitFor(s.ctx, 60*time.Second, 300*time.Millisecond, func() error {
		_, err := s.a.get(s.ctx, definitions+"/widgets.kvd.example")
		return expectCode(err, http.StatusNotFound)
	})
	if err != nil {
		return "", err
	}
	answer, err := s.etcd.Get(s.ctx, "/registry/kvd.example/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err == nil && answer.Count > 0 {
		err = fmt.Errorf("%d objects outlive their definition", answer.Count)
	}
	return "40 objects", err
}

// pods does to pods what scheduler, kubelet and controllers do, with a node and its heartbeat.
func (s *scenario) pods() (string, error) {
	const count = 20
	const path = "/api/v1/namespaces/blue/pods"
	if _, err := s.a.create(s.ctx, "/api/v1/nodes", object{"metadata": object{"name": "node-1"}}); err != nil {
		return "", err
	}
	const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
	lease, err := s.a.create(s.ctx, leases, object{
		"metadata": object{"name": "node-1"}, "spec": object{"holderIdentity": "node-1", "leaseDurationSeconds": 40},
	})
	if err != nil {
		return "", err
	}
	start, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	// What a kubelet watches.
	events, cancel, err := s.watchFrom(s.a.client, "/api/v1/pods", start.rv(), url.Values{"fieldSelector": {"spec.nodeName=node-1"}})
	defer cancel()
	if err != nil {
		return "", err
	}
	err = inParallel(count, 4, func(i int) error {
		name := fmt.Sprintf("pod-%02d", i)
		_, err := s.a.create(s.ctx, path, object{
			"metadata": object{"name": name},
			"spec":     object{"containers": []object{{"name": "main", "image": "example/none"}}},
		})
		if err != nil {
			return err
		}
		_, err = s.a.create(s.ctx, path+"/"+name+"/binding", object{
			"apiVersion": "v1", "kind": "Binding", "metadata": object{"name": name}, "target": object{"kind": "Node", "name": "node-1"},
		})
		if err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		if _, err := s.a.patch(s.ctx, path+"/"+name+"/status", asStrategic, object{"status": object{"phase": "Running"}}); err != nil {
			return fmt.Errorf("status: %w", err)
		}
		return s.a.delete(s.ctx, path+"/"+name+"?gracePeriodSeconds=0")
	})
	if err != nil {
		return "", err
	}
	for i := range 20 {
		lease.field("spec").(map[string]any)["renewTime"] = time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
		renewed, err := s.a.update(s.ctx, leases+"/node-1", lease)
		if err != nil {
			return "", fmt.Errorf("heartbeat %d: %w", i, err)
		}
		if renewed.rv() <= lease.rv() {
			return "", fmt.Errorf("heartbeat %d: resource version went from %d to %d", i, lease.rv(), renewed.rv())
		}
		lease = renewed
	}
	// A pod comes into this watch when it is bound: that is its ADDED. Before it goes it is marked as going.
	stages := map[string]string{}
	for _, e := range collect(events, 4*count, 20*time.Second) {
		if e.Type != "BOOKMARK" {
			going := e.Object.meta("deletionTimestamp") != ""
			stages[e.Object.name()] += fmt.Sprintf("%s %v %v, ", e.Type, e.Object.field("status", "phase"), going)
		}
	}
	for name, seen := range stages {
		if seen != "ADDED Pending false, MODIFIED Running false, MODIFIED Running true, DELETED Running true, " {
			return "", fmt.Errorf("%s: %s", name, seen)
		}
	}
	if len(stages) != count {
		return "", fmt.Errorf("%d pods seen, not %d", len(stages), count)
	}
	return fmt.Sprintf("%d pods", count), nil
}

// services are given addresses and ports from ranges that both apiservers keep in the store.
func (s *scenario) services() (string, error) {
	const count = 40
	var mu sync.Mutex
	taken := map[any]string{}
	err := inParallel(count, 8, func(i int) error {
		name := fmt.Sprintf("service-%02d", i)
		c := []*apiserver{s.a, s.b}[i%2].client
		made, err := c.create(s.ctx, "/api/v1/namespaces/blue/services", object{
			"metadata": object{"name": name}, "spec": object{"type": "NodePort", "ports": []object{{"port": 80}}},
		})
		if err != nil {
			return err
		}
		ports, _ := made.field("spec", "ports").([]any)
		if len(ports) != 1 {
			return fmt.Errorf("%s has %d ports", name, len(ports))
		}
		mu.Lock()
		defer mu.Unlock()
		for _, given := range []any{made.field("spec", "clusterIP"), ports[0].(map[string]any)["nodePort"]} {
			if other, double := taken[given]; double || given == nil {
				return fmt.Errorf("%s and %s were both given %v", name, other, given)
			}
			taken[given] = name
		}
		return nil
	})
	return fmt.Sprintf("%d services", count), err
}

// postEvents creates objects that live for eventTTL, by leases of the store; eventsExpire looks for their end.
func (s *scenario) postEvents() (string, error) {
	const count = 30
	const path = "/api/v1/namespaces/blue/events"
	start, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.cancelEvents = cancel
	events, err := s.a.watch(ctx, path, url.Values{"resourceVersion": {start.Metadata.ResourceVersion}, "fieldSelector": {postedEvents}})
	if err != nil {
		return "", err
	}
	began := time.Now()
	for i := range count {
		_, err := s.a.create(s.ctx, path, object{
			"metadata":       object{"name": fmt.Sprintf("event-%02d", i)},
			"involvedObject": object{"kind": "ConfigMap", "namespace": "blue", "name": "item-000"},
			"reason":         "Tested", "message": "short-lived", "type": "Normal",
			"source": object{"component": "kubescenario"},
		})
		if err != nil {
			return "", err
		}
	}
	l, err := s.a.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	if len(l.Items) != count {
		return "", fmt.Errorf("%d of %d events listed", len(l.Items), count)
	}
	answer, err := s.etcd.Get(s.ctx, "/registry/events/blue/", clientv3.WithPrefix())
	if err != nil {
		return "", err
	}
	leases := map[int64]bool{}
	for _, kv := range answer.Kvs {
		if kv.Lease == 0 {
			return "", fmt.Errorf("%s has no lease", kv.Key)
		}
		leases[kv.Lease] = true
	}
	gone := make(chan error, 1)
	s.eventsGone = gone
	go func() { gone <- expectExpiry(events, count, began) }()
	return fmt.Sprintf("%d events, %d leases", count, len(leases)), nil
}

// postedEvents selects the events of postEvents; an apiserver posts some of its own about services.
const postedEvents = "reason=Tested"

// expectExpiry reads count ADDED events and then count DELETED ones, none before its time.
func expectExpiry(events <-chan event, count int, began time.Time) error {
	added, deleted := 0, map[string]bool{}
	for _, e := range collect(events, 2*count, eventTTL+30*time.Second) {
		switch {
		case e.Type == "ADDED" && len(deleted) == 0:
			added++
		case e.Type == "DELETED" && !deleted[e.Object.name()]:
			if early := began.Add(eventTTL); time.Now().Before(early) {
				return fmt.Errorf("%s went %s early", e.Object.name(), time.Until(early))
			}
			if e.Object["message"] != "short-lived" {
				return fmt.Errorf("%s went without its content", e.Object.name())
			}
			deleted[e.Object.name()] = true
		default:
			return fmt.Errorf("unexpected %s of %s", e.Type, e.Object.name())
		}
	}
	if added != count || len(deleted) != count {
		return fmt.Errorf("%d added and %d deleted of %d", added, len(deleted), count)
	}
	return nil
}

func (s *scenario) eventsExpire() (string, error) {
	if s.eventsGone == nil {
		return "", errors.New("no events were posted")
	}
	err := <-s.eventsGone
	// A watch left open would hold up the end of the apiserver for a minute.
	s.cancelEvents()
	if err != nil {
		return "", err
	}
	l, err := s.a.list(s.ctx, "/api/v1/namespaces/blue/events", url.Values{"fieldSelector": {postedEvents}})
	if err == nil && len(l.Items) > 0 {
		err = fmt.Errorf("%d events are still listed", len(l.Items))
	}
	return "", err
}

// consistentLists writes through a and lists through b, which must wait until its cache has the write.
func (s *scenario) consistentLists() (string, error) {
	path := configMaps("red")
	var took []time.Duration
	for i := range 100 {
		writer, reader := s.a.client, s.b.client
		if i%2 == 1 {
			writer, reader = reader, writer
		}
		name := fmt.Sprintf("seen-%02d", i/2)
		made, err := writer.patch(s.ctx, path+"/"+name+"?fieldManager=test&force=true", asApply, object{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": name}, "data": object{"text": fmt.Sprint(i)},
		})
		if err != nil {
			return "", err
		}
		began := time.Now()
		l, err := reader.list(s.ctx, path, nil)
		if err != nil {
			return "", err
		}
		took = append(took, time.Since(began))
		index := slices.IndexFunc(l.Items, func(o object) bool { return o.name() == name })
		if l.rv() < made.rv() || index < 0 || l.Items[index].data("text") != fmt.Sprint(i) {
			return "", fmt.Errorf("round %d: written at %d, the list of %d does not have it", i, made.rv(), l.rv())
		}
	}
	// Had the cache given up waiting for progress notifications, the lists would have come from the store.
	metrics, err := s.b.raw(s.ctx, "/metrics")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "apiserver_watch_cache_consistent_read_total") && strings.Contains(line, `fallback="true"`) &&
			strings.Contains(line, `resource="configmaps"`) && !strings.HasSuffix(line, " 0\n") {
			return "", fmt.Errorf("consistent lists fell back to the store: %s", line)
		}
	}
	if !strings.Contains(metrics, "apiserver_watch_cache_consistent_read_total") {
		return "", errors.New("no consistent list came from the cache")
	}
	slices.Sort(took)
	return fmt.Sprintf("100 lists, p50 %.1f ms, max %.1f ms", ms(took[50]), ms(took[99])), nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// apiserverLeases: each apiserver renews a lease of 15 s on its address, and the service lists both.
func (s *scenario) apiserverLeases() (string, error) {
	for _, number := range []int{1, 2} {
		key := fmt.Sprintf("/registry/masterleases/192.0.2.%d", number)
		err := waitFor(s.ctx, 20*time.Second, 200*time.Millisecond, func() error {
			answer, err := s.etcd.Get(s.ctx, key)
			if err != nil {
				return err
			}
			if len(answer.Kvs) != 1 || answer.Kvs[0].Lease == 0 {
				return fmt.Errorf("%s: %d keys", key, len(answer.Kvs))
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return "", waitFor(s.ctx, 30*time.Second, 500*time.Millisecond, func() error {
		slices, err := s.a.list(s.ctx, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", nil)
		if err != nil {
			return err
		}
		text := fmt.Sprint(slices.Items)
		if !strings.Contains(text, "192.0.2.1") || !strings.Contains(text, "192.0.2.2") {
			return fmt.Errorf("endpoints of the kubernetes service: %s", text)
		}
		return nil
	})
}

func (s *scenario) uncached() (string, error) {
	want, err := dump(s.ctx, s.a.client)
	if err != nil {
		return "", err
	}
	got, err := dump(s.ctx, s.b.client)
	if err != nil {
		return "", err
	}
	if err := want.equal(got); err != nil {
		return "", err
	}
	path := configMaps("red")
	now, err := s.b.list(s.ctx, path, nil)
	if err != nil {
		return "", err
	}
	events, cancel, err := s.watchFrom(s.b.client, path, now.rv(), nil)
	defer cancel()
	if err != nil {
		return "", err
	}
	changes, err := s.makeChanges(s.a.client, path, "uncached", 15)
	if err != nil {
		return "", err
	}
	// Writes elsewhere between them are not its business.
	return fmt.Sprintf("%d objects, %d changes", len(want), len(changes)), compare(collect(events, len(changes), 20*time.Second), changes)
}

// compacted waits until the apiserver has compacted the first writes, which takes two intervals.
func (s *scenario) compacted() (string, error) {
	defer s.store.excuse("required revision has been compacted")()
	// Events have no cache: their lists come from the store.
	query := url.Values{"resourceVersion": {fmt.Sprint(s.firstRV)}, "resourceVersionMatch": {"Exact"}, "limit": {"10"}}
	err := waitFor(s.ctx, 4*compactionInterval, time.Second, func() error {
		_, err := s.a.list(s.ctx, "/api/v1/namespaces/blue/events", query)
		return expectCode(err, http.StatusGone)
	})
	if err != nil {
		return "", fmt.Errorf("list at resource version %d: %w", s.firstRV, err)
	}
	events, cancel, err := s.watchFrom(s.a.client, "/api/v1/namespaces/blue/events", s.firstRV, nil)
	defer cancel()
	if err == nil {
		got := collect(events, 1, 10*time.Second)
		if len(got) == 0 {
			return "", errors.New("watch from a compacted revision says nothing")
		}
		err = got[0].refusal()
	}
	if err := expectCode(err, http.StatusGone); err != nil {
		return "", fmt.Errorf("watch from a compacted revision: %w", err)
	}
	answer, err := s.etcd.Get(s.ctx, "compact_rev_key")
	if err != nil {
		return "", err
	}
	if len(answer.Kvs) != 1 || answer.Kvs[0].Version < 2 {
		return "", fmt.Errorf("compact_rev_key: %v", answer.Kvs)
	}
	return fmt.Sprintf("compacted to %s", answer.Kvs[0].Value), nil
}

// state is what the API shows of all objects that only we write: content hash by type and name.
type state map[string]string

func dump(ctx context.Context, c *client) (state, error) {
	all := state{}
	for _, path := range []string{
		"/api/v1/namespaces",
		"/api/v1/configmaps",
		"/api/v1/services",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles",
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
		"/apis/scheduling.k8s.io/v1/priorityclasses",
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
	} {
		l, err := c.list(ctx, path, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, item := range l.Items {
			// Maps print in key order.
			sum := fnv.New64a()
			fmt.Fprint(sum, map[string]any(item))
			all[path+" "+item.key()] = fmt.Sprintf("%d %x", item.rv(), sum.Sum64())
		}
	}
	return all, nil
}

func (want state) equal(got state) error {
	var differences []string
	for key, value := range want {
		if got[key] != value {
			differences = append(differences, fmt.Sprintf("%s was %q, is %q", key, value, got[key]))
		}
	}
	for key, value := range got {
		if _, known := want[key]; !known {
			differences = append(differences, fmt.Sprintf("%s was not there, is %q", key, value))
		}
	}
	if len(differences) == 0 {
		return nil
	}
	sort.Strings(differences)
	return fmt.Errorf("%d objects differ: %s", len(differences), strings.Join(differences[:min(5, len(differences))], "; "))
}

func (s *scenario) restartAPIServer() (string, error) {
	before, err := dump(s.ctx, s.a.client)
	if err != nil {
		return "", err
	}
	began := time.Now()
	if err := s.restartA(); err != nil {
		return "", err
	}
	took := time.Since(began)
	after, err := dump(s.ctx, s.a.client)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d objects, %.1f s", len(before), took.Seconds()), before.equal(after)
}

// restartA stops the first apiserver and starts it anew.
func (s *scenario) restartA() error {
	if err := s.a.stop(); err != nil {
		return err
	}
	again, err := s.cluster.startAPIServer(s.ctx, 1)
	if err != nil {
		return err
	}
	s.a = again
	s.servers = append(s.servers, again)
	return nil
}

// restartStore stops the store in peace while the apiserver stays up.
func (s *scenario) restartStore() (string, error) {
	before, err := dump(s.ctx, s.a.client)
	if err != nil {
		return "", err
	}
	began := time.Now()
	defer s.store.excuse("")()
	if err := s.store.stop(30 * time.Second); err != nil {
		return "", err
	}
	stopped := time.Since(began)
	took, err := s.store.start(s.ctx)
	if err != nil {
		return "", err
	}
	if err := s.recovered(began, s.a); err != nil {
		return "", err
	}
	after, err := dump(s.ctx, s.a.client)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("stopped after %d ms, ready after %d ms", stopped.Milliseconds(), took.Milliseconds()), before.equal(after)
}

// recovered waits until the apiservers have found the store again, and all their connections too. Those that do
// not serve us try again after a time that grows with the length of the outage.
func (s *scenario) recovered(downSince time.Time, servers ...*apiserver) error {
	settle := settleTime + time.Since(downSince)
	for _, server := range servers {
		err := waitFor(s.ctx, time.Minute, 100*time.Millisecond, func() error {
			if _, err := server.raw(s.ctx, "/readyz"); err != nil {
				return err
			}
			_, err := server.list(s.ctx, "/api/v1/namespaces", nil)
			return err
		})
		if err != nil {
			return err
		}
	}
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-time.After(settle):
		return nil
	}
}

// expectCode is nil when the request was refused with this code.
func expectCode(err error, code int) error {
	if codeOf(err) == code {
		return nil
	}
	if err == nil {
		return fmt.Errorf("was accepted, want %d", code)
	}
	return fmt.Errorf("want %d: %w", code, err)
}

// inParallel runs jobs 0..n-1 on the given number of workers and returns the first error.
func inParallel(n, workers int, job func(int) error) error {
	next := make(chan int)
	failed := make(chan error, workers)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range next {
				if err := job(i); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	var err error
	for i := 0; i < n && err == nil; i++ {
		select {
		case next <- i:
		case err = <-failed:
		}
	}
	close(next)
	group.Wait()
	select {
	case late := <-failed:
		err = errors.Join(err, late)
	default:
	}
	return err
}
