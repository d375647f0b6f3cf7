package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	loadNamespace = "load"
	loadWriters   = 8
	liveObjects   = 40 // each writer keeps about so many

	// settleTime is how long after a recovery the apiservers' connections may still complain of the outage.
	settleTime = 3 * time.Second
)

// slot is one object of the load. Only its writer changes it.
type slot struct {
	name    string
	content string   // the acknowledged content, "" where the object is absent
	rv      uint64   // the acknowledged resource version
	maybe   []string // contents whose write was never answered, "" for a delete
	retired bool     // a write may still be under way somewhere: hands off
	deletes int      // how many deletes were tried
}

// acknowledgement is a write that was answered, as a watch must show it.
type acknowledgement struct {
	name, content string
	rv            uint64
}

// ledger holds what was acknowledged, what may have happened, and what must not have.
type ledger struct {
	mu           sync.Mutex
	slots        []*slot
	newest       uint64 // the highest resource version anyone was told
	acks         []acknowledgement
	taken        map[uint64]string
	unanswered   int
	landed       int // of the unanswered, how many turned out to have happened
	deleted      int
	lists, gaps  int
	violations   []string
	violationNum int
}

func (l *ledger) violate(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.violationNum++
	if len(l.violations) < 10 {
		l.violations = append(l.violations, fmt.Sprintf(format, args...))
	}
}

// told notes a resource version that some answer gave, so that no later answer may be older.
func (l *ledger) told(rv uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest = max(l.newest, rv)
}

func (l *ledger) now() (newest uint64, acknowledged int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest, len(l.acks) + l.deleted
}

// attempt notes that a write is sent; until it is answered both states are right.
func (l *ledger) attempt(s *slot, content string) (before uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.maybe = append(s.maybe, content)
	if content == "" {
		s.deletes++
	}
	return l.newest
}

// acknowledge notes an answered write, of resource version 0 when it was a delete.
func (l *ledger) acknowledge(s *slot, content string, before, rv uint64) {
	l.mu.Lock()
	s.content, s.rv, s.maybe = content, rv, nil
	if content == "" {
		l.deleted++
		l.mu.Unlock()
		return
	}
	other := l.taken[rv]
	l.taken[rv] = s.name
	l.acks = append(l.acks, acknowledgement{s.name, content, rv})
	l.newest = max(l.newest, rv)
	l.mu.Unlock()
	if rv <= before {
		l.violate("write of %s got resource version %d, though %d was told before it was sent", s.name, rv, before)
	}
	if other != "" {
		l.violate("writes of %s and %s both got resource version %d", other, s.name, rv)
	}
}

// refused notes that the last attempt was answered with a no and so did not happen.
func (l *ledger) refused(s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.maybe = s.maybe[:len(s.maybe)-1]
}

// contentOf is the token of the object's data when its padding fits, else something no writer wrote.
func contentOf(o object) string {
	token := o.data("token")
	if o.data("pad") != padding(token) {
		return "damaged: " + token
	}
	return token
}

// padding makes up to 4 KiB that depend on the token, so that a mixed-up value does not go unseen.
func padding(token string) string {
	sum := fnv.New64a()
	sum.Write([]byte(token))
	source := rand.New(rand.NewSource(int64(sum.Sum64())))
	text := make([]byte, source.Intn(4096))
	for i := range text {
		text[i] = 'a' + byte(source.Intn(26))
	}
	return string(text)
}

func dataOf(token string) map[string]any {
	return map[string]any{"token": token, "pad": padding(token)}
}

// loadPhase writes from many clients while the store is killed again and again, and then compares what is there
// with what was acknowledged.
func (s *scenario) loadPhase() bool {
	l := &ledger{taken: map[uint64]string{}}
	if s.sabotage == "" {
		s.step("second apiserver joins for the load", func() (string, error) { return s.startB() })
	}
	servers := []*apiserver{s.a}
	if s.b != nil {
		servers = append(servers, s.b)
	}
	var watches []*loadWatch
	for i, server := range servers {
		watches = append(watches, &loadWatch{ledger: l, client: server.client, name: fmt.Sprintf("apiserver %d", i+1), seen: map[uint64]string{}})
	}
	victim := "store"
	if s.members > 1 {
		victim = "leader and a replacement"
	}
	ok := s.step(fmt.Sprintf("load goes on through %d kills of the %s", s.kills, victim), func() (string, error) {
		return s.load(l, watches, servers)
	})
	if err := s.spoilAfterLoad(l); err != nil {
		fmt.Printf("sabotage %s did not work: %v\n", s.sabotage, err)
		return false
	}
	// Even where the load broke off, what was acknowledged must be there.
	s.step(orderStep, func() (string, error) { return "", l.verdict() })
	s.step(inAPIStep, func() (string, error) { return s.verifyAPI(l, servers) })
	s.step(inStoreStep, func() (string, error) { return s.verifyStore(l) })
	if s.members > 1 {
		s.step(sameStep, s.membersHoldTheSame)
	}
	s.step("watches saw every acknowledged write once and in order", func() (string, error) {
		var details []string
		for _, w := range watches {
			detail, err := w.verify()
			if err != nil {
				return "", fmt.Errorf("%s: %w", w.name, err)
			}
			details = append(details, detail)
		}
		return strings.Join(details, "; "), nil
	})
	return ok || s.store.running() == nil
}

// load runs writers, a lister and a watcher for each apiserver, and the killer, and ends after the last kill and a time of peace.
func (s *scenario) load(l *ledger, watches []*loadWatch, servers []*apiserver) (string, error) {
	if _, err := s.a.create(s.ctx, "/api/v1/namespaces", object{"metadata": object{"name": loadNamespace}}); err != nil {
		return "", err
	}
	start, err := s.a.list(s.ctx, configMaps(loadNamespace), nil)
	if err != nil {
		return "", err
	}
	// The other apiserver's cache learns of the namespace a moment later.
	for _, server := range servers {
		err := waitFor(s.ctx, 10*time.Second, 50*time.Millisecond, func() error {
			_, err := server.get(s.ctx, "/api/v1/namespaces/"+loadNamespace)
			return err
		})
		if err != nil {
			return "", err
		}
	}

	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	var writers, readers sync.WaitGroup
	for i := range loadWriters {
		writers.Go(func() {
			writer := &loadWriter{ledger: l, client: servers[i%len(servers)].client, random: rand.New(rand.NewSource(s.seed*1000 + int64(i))), id: i}
			writer.run(ctx, s.ctx)
		})
	}
	readCtx, stopReading := context.WithCancel(s.ctx)
	defer stopReading()
	for _, server := range servers {
		readers.Go(func() { l.listAgainAndAgain(ctx, server.client) })
	}
	for _, w := range watches {
		w.last = start.rv()
		readers.Go(func() { w.run(readCtx) })
	}

	began := time.Now()
	down, err := s.killAgainAndAgain(ctx, l, servers)
	stop()
	writers.Wait()
	took := time.Since(began)
	for _, w := range watches {
		if err == nil {
			err = w.waitForAll(s.ctx)
		}
	}
	stopReading()
	readers.Wait()
	if err != nil {
		return "", err
	}
	_, count := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	again := "store ready"
	if s.members > 1 {
		again = "writes"
	}
	return fmt.Sprintf("%d writes acknowledged in %.0f s, %d unanswered of which %d had happened, %d lists, %s after a kill in at most %d ms",
		count, took.Seconds(), l.unanswered, l.landed, l.lists, again, down.Milliseconds()), nil
}

// killAgainAndAgain kills the store at random moments under load and starts it on the same folder and ports.
func (s *scenario) killAgainAndAgain(ctx context.Context, l *ledger, servers []*apiserver) (slowest time.Duration, err error) {
	random := rand.New(rand.NewSource(s.seed))
	// progress waits until the load has got so many more writes through.
	progress := func(writes int) error {
		_, from := l.now()
		return waitFor(ctx, 40*time.Second, 10*time.Millisecond, func() error {
			if _, now := l.now(); now < from+writes {
				return fmt.Errorf("%d writes acknowledged, want %d", now-from, writes)
			}
			return nil
		})
	}
	for round := range s.kills {
		if err := progress(100 + random.Intn(200)); err != nil {
			return slowest, fmt.Errorf("before kill %d: %w", round+1, err)
		}
		var took time.Duration
		if s.members == 1 {
			took, err = s.killStore(ctx, random, round, servers)
		} else {
			took, err = s.killLeader(ctx, progress, round, servers)
		}
		slowest = max(slowest, took)
		if err != nil {
			return slowest, fmt.Errorf("after kill %d: %w", round+1, err)
		}
	}
	if s.sabotage == "outage" {
		if err := s.spoilOutage(ctx, servers); err != nil {
			return slowest, err
		}
	}
	return slowest, progress(300)
}

// killStore kills the only member and starts it again.
func (s *scenario) killStore(ctx context.Context, random *rand.Rand, round int, servers []*apiserver) (took time.Duration, err error) {
	killed := time.Now()
	defer s.store.excuse("")()
	s.store.kill()
	if err := s.spoilAtKill(round); err != nil {
		return 0, err
	}
	time.Sleep(time.Duration(random.Intn(800)) * time.Millisecond)
	if took, err = s.store.start(ctx); err != nil {
		return took, err
	}
	return took, s.recovered(killed, servers...)
}

// loadWriter is one client that writes objects of its own.
type loadWriter struct {
	*ledger
	client *client
	random *rand.Rand
	id     int
	made   int
	own    []*slot // those that exist, or may
}

// run writes until ctx ends. Requests under way are finished, within the whole.
func (w *loadWriter) run(ctx, whole context.Context) {
	for ctx.Err() == nil && whole.Err() == nil {
		if len(w.own) < liveObjects && w.random.Intn(100) < 45 {
			w.write(whole, w.newSlot(), "create")
			continue
		}
		if len(w.own) == 0 {
			continue
		}
		index := w.random.Intn(len(w.own))
		s := w.own[index]
		if s.retired || s.content == "" {
			w.own = slices.Delete(w.own, index, index+1)
			continue
		}
		w.write(whole, s, []string{"update", "update", "patch", "patch", "delete"}[w.random.Intn(5)])
	}
}

func (w *loadWriter) newSlot() *slot {
	s := &slot{name: fmt.Sprintf("w%d-%05d", w.id, w.made)}
	w.made++
	w.own = append(w.own, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slots = append(w.slots, s)
	return s
}

// write sends one write and notes what is known after it.
func (w *loadWriter) write(ctx context.Context, s *slot, verb string) {
	path := configMaps(loadNamespace) + "/" + s.name
	token := ""
	if verb != "delete" {
		token = fmt.Sprintf("%s/%d", s.name, w.random.Int63())
	}
	before := w.attempt(s, token)
	var made object
	var err error
	switch verb {
	case "create":
		made, err = w.client.create(ctx, configMaps(loadNamespace), configMap(s.name, dataOf(token)))
	case "update":
		body := configMap(s.name, dataOf(token))
		body["metadata"].(map[string]any)["resourceVersion"] = fmt.Sprint(s.rv)
		made, err = w.client.update(ctx, path, body)
	case "patch":
		made, err = w.client.patch(ctx, path, asMergePatch, object{"data": dataOf(token)})
	case "delete":
		err = w.client.delete(ctx, path)
	}
	switch code := codeOf(err); {
	case err == nil:
		if made != nil && contentOf(made) != token {
			w.violate("%s of %s was answered with other content: %s", verb, s.name, contentOf(made))
		}
		w.acknowledge(s, token, before, made.rv())
	case code == http.StatusTooManyRequests:
		w.refused(s)
		pause(ctx, 100*time.Millisecond)
	case code >= 400 && code < 500:
		// Nothing is unknown of this object, so a yes was due.
		w.refused(s)
		w.violate("%s of %s at %d: %v", verb, s.name, s.rv, err)
		s.retired = true
	default:
		w.unknown(ctx, s, err)
	}
}

// unknown settles a write that was not answered: it happened or not, and nothing else did.
func (w *loadWriter) unknown(ctx context.Context, s *slot, err error) {
	w.mu.Lock()
	w.unanswered++
	w.mu.Unlock()
	// After these the write may still be on its way, so that a read settles nothing.
	text := strings.ToLower(err.Error())
	if codeOf(err) == 0 || strings.Contains(text, "timed out") || strings.Contains(text, "timeout") || strings.Contains(text, "leader changed") {
		s.retired = true
		return
	}
	path := configMaps(loadNamespace) + "/" + s.name
	for ctx.Err() == nil {
		o, err := w.client.get(ctx, path)
		code := codeOf(err)
		if code != http.StatusOK && code != http.StatusNotFound {
			pause(ctx, 100*time.Millisecond)
			continue
		}
		content, rv := "", uint64(0)
		if code == http.StatusOK {
			content, rv = contentOf(o), o.rv()
		}
		w.mu.Lock()
		ok := s.allows(content, rv)
		was := *s
		if slices.Contains(s.maybe, content) && content != s.content {
			w.landed++
			if content != "" {
				// The watch must show it too.
				w.acks = append(w.acks, acknowledgement{s.name, content, rv})
			}
		}
		s.content, s.rv, s.maybe = content, rv, nil
		w.newest = max(w.newest, rv)
		w.mu.Unlock()
		if !ok {
			w.violate("%s: %s", s.name, was.against(content, rv))
		}
		return
	}
	s.retired = true
}

// allows says whether this content at this resource version can be there, after all that is known.
func (s *slot) allows(content string, rv uint64) bool {
	if content == s.content && rv == s.rv {
		return true
	}
	return slices.Contains(s.maybe, content) && (content == "" || rv > s.rv)
}

func (s *slot) against(content string, rv uint64) string {
	return fmt.Sprintf("found %s, acknowledged was %s, %d writes unanswered", describe(content, rv), describe(s.content, s.rv), len(s.maybe))
}

func describe(content string, rv uint64) string {
	if content == "" {
		return "nothing"
	}
	return fmt.Sprintf("%q at %d", content, rv)
}

// listAgainAndAgain lists as a consistent reader: never older than anything told before, by anyone.
func (l *ledger) listAgainAndAgain(ctx context.Context, c *client) {
	type floor struct {
		slot    *slot
		rv      uint64
		deletes int
	}
	for ctx.Err() == nil {
		l.mu.Lock()
		newest := l.newest
		var floors []floor
		for _, s := range l.slots {
			if s.content != "" && !slices.Contains(s.maybe, "") {
				floors = append(floors, floor{s, s.rv, s.deletes})
			}
		}
		l.mu.Unlock()
		got, err := c.list(ctx, configMaps(loadNamespace), nil)
		if err != nil {
			pause(ctx, 100*time.Millisecond)
			continue
		}
		l.told(got.rv())
		if got.rv() < newest {
			l.violate("a list is of resource version %d, though %d was told before", got.rv(), newest)
		}
		versions := map[string]uint64{}
		for _, item := range got.Items {
			versions[item.name()] = item.rv()
		}
		for _, f := range floors {
			rv, present := versions[f.slot.name]
			l.mu.Lock()
			deletes := f.slot.deletes
			l.mu.Unlock()
			if !present && deletes == f.deletes {
				l.violate("a list of %d lacks %s, acknowledged at %d", got.rv(), f.slot.name, f.rv)
			}
			if present && rv < f.rv {
				l.violate("a list of %d has %s at %d, acknowledged at %d", got.rv(), f.slot.name, rv, f.rv)
			}
		}
		l.mu.Lock()
		l.lists++
		l.mu.Unlock()
		pause(ctx, 250*time.Millisecond)
	}
}

func (l *ledger) verdict() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.violationNum == 0 {
		return nil
	}
	return fmt.Errorf("%d violations, first: %s", l.violationNum, strings.Join(l.violations, "; "))
}

// check compares what is there, resource version and content by name, with the ledger. Without contents only the
// resource versions are compared.
func (l *ledger) check(rvs map[string]uint64, contents map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wrong []string
	known := map[string]bool{}
	for _, s := range l.slots {
		known[s.name] = true
		rv, present := rvs[s.name]
		ok := false
		content := ""
		switch {
		case contents != nil:
			content = contents[s.name]
			ok = s.allows(content, rv)
		case !present:
			ok = s.allows("", 0)
		default:
			content = "some content"
			written := slices.ContainsFunc(s.maybe, func(content string) bool { return content != "" })
			ok = rv == s.rv && s.content != "" || written && rv > s.rv
		}
		if !ok {
			wrong = append(wrong, s.name+": "+s.against(content, rv))
		}
	}
	for name := range rvs {
		if !known[name] {
			wrong = append(wrong, name+": nobody wrote it")
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return fmt.Errorf("%d objects are wrong: %s", len(wrong), strings.Join(wrong[:min(5, len(wrong))], "; "))
}

// verifyAPI compares with the ledger through each apiserver, and then through one that starts anew.
func (s *scenario) verifyAPI(l *ledger, servers []*apiserver) (string, error) {
	look := func(c *client) (int, error) {
		got, err := c.list(s.ctx, configMaps(loadNamespace), nil)
		if err != nil {
			return 0, err
		}
		if newest, _ := l.now(); got.rv() < newest {
			return 0, fmt.Errorf("the list is of resource version %d, though %d was told before", got.rv(), newest)
		}
		rvs, contents := map[string]uint64{}, map[string]string{}
		for _, item := range got.Items {
			rvs[item.name()], contents[item.name()] = item.rv(), contentOf(item)
		}
		return len(got.Items), l.check(rvs, contents)
	}
	var errs []error
	for i, server := range servers {
		if _, err := look(server.client); err != nil {
			errs = append(errs, fmt.Errorf("through apiserver %d: %w", i+1, err))
		}
	}
	if err := s.restartA(); err != nil {
		return "", errors.Join(append(errs, err)...)
	}
	count, err := look(s.a.client)
	if err != nil {
		errs = append(errs, fmt.Errorf("through an apiserver that starts anew: %w", err))
	}
	return fmt.Sprintf("%d objects", count), errors.Join(errs...)
}

// verifyStore compares with the ledger past the apiserver.
func (s *scenario) verifyStore(l *ledger) (string, error) {
	prefix := "/registry/configmaps/" + loadNamespace + "/"
	answer, err := s.etcd.Get(s.ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return "", err
	}
	rvs := map[string]uint64{}
	for _, kv := range answer.Kvs {
		rvs[strings.TrimPrefix(string(kv.Key), prefix)] = uint64(kv.ModRevision)
	}
	return fmt.Sprintf("%d keys at revision %d", len(rvs), answer.Header.Revision), l.check(rvs, nil)
}

// loadWatch follows the load, and opens its watch anew where it left off when that ends.
type loadWatch struct {
	*ledger
	client *client
	name   string
	mu     sync.Mutex
	last   uint64
	seen   map[uint64]string // object and content by resource version
	missed [][2]uint64       // where the apiserver had no history: after, up to
	opened int
	wrong  []string
}

func (w *loadWatch) run(ctx context.Context) {
	path := configMaps(loadNamespace)
	for ctx.Err() == nil {
		w.mu.Lock()
		last := w.last
		w.mu.Unlock()
		events, err := w.client.watch(ctx, path, url.Values{"resourceVersion": {fmt.Sprint(last)}, "allowWatchBookmarks": {"true"}})
		if err == nil {
			w.opened++
			err = w.follow(events)
		}
		if codeOf(err) == http.StatusGone {
			// An apiserver that had to fill its cache anew has no history before that.
			if l, listErr := w.client.list(ctx, path, nil); listErr == nil {
				w.mu.Lock()
				w.missed = append(w.missed, [2]uint64{w.last, l.rv()})
				w.last = l.rv()
				w.mu.Unlock()
				continue
			}
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// follow notes events until the watch ends, with the error that the server gave for it.
func (w *loadWatch) follow(events <-chan event) error {
	for e := range events {
		if e.Type == "ERROR" {
			return e.refusal()
		}
		rv := e.Object.rv()
		w.mu.Lock()
		switch {
		case e.Type == "BOOKMARK":
			if rv < w.last {
				w.wrong = append(w.wrong, fmt.Sprintf("bookmark %d after %d", rv, w.last))
			}
		case rv <= w.last:
			w.wrong = append(w.wrong, fmt.Sprintf("%s of %s at %d after %d", e.Type, e.Object.name(), rv, w.last))
		case e.Type == "DELETED":
			w.seen[rv] = e.Object.name() + " deleted"
		default:
			w.seen[rv] = e.Object.name() + " " + contentOf(e.Object)
		}
		w.last = max(w.last, rv)
		w.mu.Unlock()
	}
	return nil
}

// waitForAll waits until the watch has shown all that was acknowledged.
func (w *loadWatch) waitForAll(ctx context.Context) error {
	return waitFor(ctx, 20*time.Second, 50*time.Millisecond, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if missing := w.unseen(); len(missing) > 0 {
			return fmt.Errorf("the watch of %s is at %d and lacks %s at %d", w.name, w.last, missing[0].name, missing[0].rv)
		}
		return nil
	})
}

// unseen gives the acknowledged writes that the watch did not show and should have.
func (w *loadWatch) unseen() (missing []acknowledgement) {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	for _, ack := range w.acks {
		excused := slices.ContainsFunc(w.missed, func(m [2]uint64) bool { return ack.rv > m[0] && ack.rv <= m[1] })
		if !excused && w.seen[ack.rv] != ack.name+" "+ack.content {
			missing = append(missing, ack)
		}
	}
	return missing
}

func (w *loadWatch) verify() (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) > 0 {
		return "", fmt.Errorf("%d events out of order: %s", len(w.wrong), strings.Join(w.wrong[:min(5, len(w.wrong))], "; "))
	}
	if missing := w.unseen(); len(missing) > 0 {
		return "", fmt.Errorf("%d of %d writes not seen, first %v", len(missing), len(w.acks), missing[0])
	}
	deletes := 0
	for _, what := range w.seen {
		if strings.HasSuffix(what, " deleted") {
			deletes++
		}
	}
	if len(w.missed) == 0 && deletes < w.deleted {
		return "", fmt.Errorf("%d deletes seen, %d acknowledged", deletes, w.deleted)
	}
	if len(w.seen) == 0 {
		return "", errors.New("the watch saw nothing")
	}
	return fmt.Sprintf("%s: %d events, opened %d times, history missing %d times", w.name, len(w.seen), w.opened, len(w.missed)), nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
