package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Watches are compared by what a client may rely on: the control answers (created, canceled, progress) one by one, the
// events of each watch as one sequence. How catch-up events are packed into responses is left open, so each side is
// checked alone for the packing rules: created comes first, revisions rise, the events of one revision are never split
// (other than by fragments), and a live response carries exactly one revision, which is also its header's.
//
// Answers are only compared at points where both servers have nothing left to send (settle): a progress answer says so
// for the whole stream; where none can come, a fence does: a put that a watch of the same stream must deliver.

// watchStream is the same watch stream to both servers.
type watchStream struct {
	name     string
	md       metadata.MD
	who      *caller
	member   int
	sides    [2]*watchSide
	watchers map[int64]*watcher // by watch id, as the reference granted it
	fence    int64              // id of the fence watch
	fenced   bool
	creating *pb.WatchCreateRequest
	gone     bool // a difference was found on it
}

// watcher is a watch that holds its id.
type watcher struct {
	req *pb.WatchCreateRequest
	// compacted: the server cancelled it for compaction. It keeps its id until the client cancels it too.
	compacted bool
}

// watchSide is one server's end of a stream.
type watchSide struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc

	mu     sync.Mutex
	inbox  []*pb.WatchResponse
	err    error
	notify chan struct{}

	control  []*pb.WatchResponse
	progress []*pb.WatchResponse
	events   map[int64]*eventLog
	broken   []string // packing rules this server broke
}

// eventLog holds what one watch delivered since it was last compared.
type eventLog struct {
	req        *pb.WatchCreateRequest
	live       bool
	events     []*mvccpb.Event
	revision   int64 // of the last event
	header     int64 // largest header revision
	inFragment bool
	parts      []string // how fragmented responses were cut, for live watches
	notified   int
}

const (
	streamsMax  = 3
	watchersMax = 12
	fenceKey    = "fence"
	settleWait  = 10 * time.Second
)

// openStream opens a stream of some caller to some member of both sides; it returns nil when one of them refuses.
func (p *pair) openStream() (*watchStream, error) {
	who, err := p.anyone()
	if err != nil {
		return nil, err
	}
	return p.openStreamOf(who, p.anywhere(), p.metadata())
}

func (p *pair) openStreamOf(who *caller, member int, md metadata.MD) (*watchStream, error) {
	ws := &watchStream{watchers: map[int64]*watcher{}, name: fmt.Sprintf("stream %d", p.streamSeq), who: who, member: member, md: md}
	p.streamSeq++
	if err := p.catchUpAt(member); err != nil {
		return nil, err
	}
	for i, s := range p.sides {
		ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(context.Background(), who.metadata(i, md)))
		stream, err := pb.NewWatchClient(p.endOf(i, member, who).conn).Watch(ctx)
		if err != nil {
			cancel()
			return nil, p.watchDiffers(ws, nil, ws.name, fmt.Sprintf("%s cannot open a stream: %v", s.label, err))
		}
		side := &watchSide{stream: stream, cancel: cancel, notify: make(chan struct{}, 1), events: map[int64]*eventLog{}}
		ws.sides[i] = side
		go side.read()
	}
	p.streams = append(p.streams, ws)
	return ws, nil
}

func (w *watchSide) read() {
	for {
		resp, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.err = err
		} else {
			w.inbox = append(w.inbox, resp)
		}
		w.mu.Unlock()
		select {
		case w.notify <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// pump sorts what has arrived into control answers, progress answers and events.
func (p *pair) pump(ws *watchStream) {
	for i, side := range ws.sides {
		side.mu.Lock()
		inbox := side.inbox
		side.inbox = nil
		side.mu.Unlock()
		for _, resp := range inbox {
			normalise(resp, p.sides[i].names)
			if i == 1 {
				p.sabotage(resp)
			}
			side.sort(resp, ws, p.revision)
		}
	}
}

func (w *watchSide) sort(r *pb.WatchResponse, ws *watchStream, revision int64) {
	complain := func(format string, args ...any) {
		w.broken = append(w.broken, fmt.Sprintf(format, args...)+": "+text(r))
	}
	if r.Header.GetRevision() > revision {
		complain("header revision above the store's %d", revision)
	}
	switch {
	case r.Created || r.Canceled:
		if r.Created && !r.Canceled {
			req := ws.creating
			if req == nil {
				complain("created without a request")
				req = &pb.WatchCreateRequest{}
			}
			w.events[r.WatchId] = &eventLog{req: req, live: req.StartRevision == 0 || req.StartRevision > revision}
		}
		if len(r.Events) > 0 {
			complain("a control answer with events")
		}
		w.control = append(w.control, r)
		return
	case r.WatchId == -1:
		if len(r.Events) > 0 {
			complain("events without a watch id")
		}
		w.progress = append(w.progress, r)
		return
	}
	log := w.events[r.WatchId]
	if log == nil {
		complain("events of an unknown watch")
		return
	}
	log.header = max(log.header, r.Header.GetRevision())
	if len(r.Events) == 0 {
		log.notified++
		if !log.req.ProgressNotify {
			complain("a progress notification that was not asked for")
		}
		if r.Header.GetRevision() < log.revision {
			complain("progress revision below the last event %d", log.revision)
		}
		return
	}
	first, last := r.Events[0].Kv.ModRevision, r.Events[len(r.Events)-1].Kv.ModRevision
	if first <= log.revision && !log.inFragment {
		complain("first revision %d is not above the last delivered one %d", first, log.revision)
	}
	if !slices.IsSortedFunc(r.Events, func(a, b *mvccpb.Event) int { return compareInt(a.Kv.ModRevision, b.Kv.ModRevision) }) {
		complain("revisions fall")
	}
	if r.Header.GetRevision() < last {
		complain("header revision below the last event %d", last)
	}
	if log.live && (first != last || last != r.Header.GetRevision()) {
		complain("a live answer must carry one revision, its header's")
	}
	if r.Fragment && !log.req.Fragment {
		complain("a fragment that was not asked for")
	}
	if log.live && (r.Fragment || log.inFragment) {
		log.parts = append(log.parts, fmt.Sprintf("%d:%d more=%v", last, len(r.Events), r.Fragment))
	}
	log.inFragment = r.Fragment
	log.revision = last
	log.events = append(log.events, r.Events...)
}

// await pumps until ready holds for both sides or time is up.
func (p *pair) await(ws *watchStream, limit time.Duration, ready func(*watchSide) bool) bool {
	deadline := time.After(limit)
	for {
		p.pump(ws)
		waiting := -1
		for i, side := range ws.sides {
			if !ready(side) {
				waiting = i
			}
		}
		if waiting < 0 {
			return true
		}
		side := ws.sides[waiting]
		side.mu.Lock()
		failed := side.err != nil && len(side.inbox) == 0
		side.mu.Unlock()
		if failed {
			return ready(side)
		}
		select {
		case <-side.notify:
		case <-deadline:
			p.pump(ws)
			return ready(ws.sides[0]) && ready(ws.sides[1])
		}
	}
}

func (p *pair) sendWatch(ws *watchStream, req *pb.WatchRequest) {
	p.requests++
	p.resendWatch(ws, req)
}

// resendWatch repeats a request without counting it, so that a slow server does not change what comes next.
func (p *pair) resendWatch(ws *watchStream, req *pb.WatchRequest) {
	for i, side := range ws.sides {
		// A failed send shows as a missing answer.
		_ = side.stream.Send(p.sides[i].names.toServer(req).(*pb.WatchRequest))
	}
}

// takeControl waits for one control answer of each side and compares the two.
func (p *pair) takeControl(ws *watchStream, req proto.Message) (*pb.WatchResponse, error) {
	p.await(ws, settleWait, func(w *watchSide) bool { return len(w.control) > 0 })
	var got [2]*pb.WatchResponse
	for i, side := range ws.sides {
		if len(side.control) > 0 {
			got[i] = side.control[0]
			side.control = side.control[1:]
		}
	}
	if got[0] == nil || got[1] == nil || !proto.Equal(got[0], got[1]) {
		return got[0], p.watchDiffers(ws, req, p.showWatch(ws, 0, got[0]), p.showWatch(ws, 1, got[1]))
	}
	p.cov.response("Watch.Watch", got[0])
	return got[0], nil
}

func (p *pair) showWatch(ws *watchStream, i int, r *pb.WatchResponse) string {
	if r != nil {
		return text(r)
	}
	side := ws.sides[i]
	side.mu.Lock()
	defer side.mu.Unlock()
	if side.err != nil {
		return fmt.Sprintf("no answer; the stream ended: %v", side.err)
	}
	return "no answer"
}

func (p *pair) createWatch(ws *watchStream, req *pb.WatchCreateRequest) error {
	if p.auth.on && !ws.who.root {
		straighten(req)
	}
	if err := p.catchUpAt(ws.member); err != nil {
		return err
	}
	past := req.StartRevision != 0 && req.StartRevision <= p.revision
	wrapped := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}
	ws.creating = req
	p.sendWatch(ws, wrapped)
	r, err := p.takeControl(ws, wrapped)
	if err != nil || r == nil {
		return err
	}
	p.cov.request("Watch.Watch", wrapped)
	if r.Canceled {
		p.cov.reasons[r.CancelReason]++
		return nil
	}
	if !r.Created || ws.gone {
		return nil
	}
	w := &watcher{req: req}
	ws.watchers[r.WatchId] = w
	if past && req.StartRevision < p.compacted {
		r, err := p.takeControl(ws, wrapped)
		if err != nil || r == nil {
			return err
		}
		if r.Canceled && r.CompactRevision != 0 {
			w.compacted = true
			p.cov.reasons[reasonCompactRevision]++
		}
		return nil
	}
	if past {
		if !p.answersProgress(ws) {
			// Nothing tells when the server has caught up; it looks for such watches every 100 ms.
			time.Sleep(300 * time.Millisecond)
		}
		return p.settle(ws)
	}
	return nil
}

// answersProgress tells whether a progress request on the stream is answered: it has a watch, none waits for a future
// revision and none was cancelled for compaction without the client having cancelled it too.
func (p *pair) answersProgress(ws *watchStream) bool {
	for _, w := range ws.watchers {
		if w.compacted || w.req.StartRevision > p.revision {
			return false
		}
	}
	return len(ws.watchers) > 0
}

// settle waits until both servers have delivered everything, then compares all events.
func (p *pair) settle(ws *watchStream) error {
	if len(ws.watchers) == 0 {
		return p.compareEvents(ws)
	}
	if p.answersProgress(ws) {
		if err := p.progress(ws); err != nil || ws.gone {
			return err
		}
		return p.compareEvents(ws)
	}
	if err := p.raiseAnyFence(ws); err != nil || ws.gone {
		return err
	}
	// Watches of one stream need not keep step with each other: the others may still be a moment behind the fence.
	p.await(ws, settleWait, func(*watchSide) bool { return sameEvents(ws) })
	return p.compareEvents(ws)
}

// progress asks until both servers answer for the present revision; etcd drops the request while a watch catches up.
func (p *pair) progress(ws *watchStream) error {
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	answered := func(w *watchSide) bool {
		return slices.ContainsFunc(w.progress, func(r *pb.WatchResponse) bool { return r.Header.GetRevision() == p.revision })
	}
	p.requests++
	sent := 0
	for range int(settleWait / (250 * time.Millisecond)) {
		p.resendWatch(ws, req)
		sent++
		if p.await(ws, 250*time.Millisecond, answered) {
			break
		}
	}
	if sent > 1 {
		// A server that answered the repeated requests too must not have these answers taken for later ones.
		time.Sleep(50 * time.Millisecond)
		p.pump(ws)
	}
	var got [2]*pb.WatchResponse
	for i, side := range ws.sides {
		if len(side.progress) > 0 {
			got[i] = side.progress[len(side.progress)-1]
		}
		side.progress = nil
	}
	if got[0] == nil || got[1] == nil || !proto.Equal(got[0], got[1]) {
		return p.watchDiffers(ws, req, p.showWatch(ws, 0, got[0]), p.showWatch(ws, 1, got[1]))
	}
	p.cov.request("Watch.Watch", req)
	p.cov.response("Watch.Watch", got[0])
	return nil
}

// silentProgress sends a progress request that must not be answered.
func (p *pair) silentProgress(ws *watchStream) error {
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	p.sendWatch(ws, req)
	time.Sleep(50 * time.Millisecond)
	p.pump(ws)
	a, b := len(ws.sides[0].progress), len(ws.sides[1].progress)
	ws.sides[0].progress, ws.sides[1].progress = nil, nil
	if a != b {
		return p.watchDiffers(ws, req, fmt.Sprintf("%d answers", a), fmt.Sprintf("%d answers", b))
	}
	return nil
}

// raiseAnyFence raises a fence on the stream, or beside it where its caller may not.
func (p *pair) raiseAnyFence(ws *watchStream) error {
	if p.alarms.raised {
		return nil // nobody can put
	}
	if p.config.auth == authOff {
		return p.raiseFence(ws)
	}
	who, err := p.privileged()
	if err != nil {
		return err
	}
	beside, err := p.openStreamOf(who, ws.member, nil)
	if err != nil || beside == nil {
		return err
	}
	if err := p.raiseFence(beside); err != nil || beside.gone {
		return err
	}
	return p.closeStream(beside)
}

func (p *pair) raiseFence(ws *watchStream) error {
	key := []byte(fenceKey)
	if !ws.fenced {
		ws.fence = 1 << 40
		ws.fenced = true
		if err := p.createWatch(ws, &pb.WatchCreateRequest{Key: key, WatchId: ws.fence}); err != nil || ws.gone {
			return err
		}
	}
	if _, err := p.do(call{rpc: "KV.Put", req: &pb.PutRequest{Key: key}}); err != nil {
		return err
	}
	revision := p.revision
	raised := func(w *watchSide) bool { log := w.events[ws.fence]; return log != nil && log.revision >= revision }
	if !p.await(ws, settleWait, raised) {
		return p.watchDiffers(ws, nil, fmt.Sprintf("fence at %d: %v", revision, raised(ws.sides[0])),
			fmt.Sprintf("fence at %d: %v", revision, raised(ws.sides[1])))
	}
	return nil
}

func sameEvents(ws *watchStream) bool {
	for id := range ws.watchers {
		a, b := ws.sides[0].events[id], ws.sides[1].events[id]
		if a == nil || b == nil || len(a.events) != len(b.events) {
			return false
		}
	}
	return true
}

// compareEvents compares and forgets all events delivered so far, and reports broken packing rules.
func (p *pair) compareEvents(ws *watchStream) error {
	p.pump(ws)
	for i, side := range ws.sides {
		if len(side.broken) > 0 {
			says := [2]string{"-", "-"}
			says[i] = strings.Join(side.broken, "; ")
			return p.watchDiffers(ws, nil, says[0], says[1])
		}
		if len(side.control) > 0 {
			says := [2]string{"no such answer", "no such answer"}
			says[i] = text(side.control[0])
			return p.watchDiffers(ws, nil, says[0], says[1])
		}
	}
	for _, id := range sortedIDs(ws.watchers) {
		a, b := ws.sides[0].events[id], ws.sides[1].events[id]
		if a == nil || b == nil {
			continue // already reported when the watch was created
		}
		if err := p.compareLogs(ws, id, a, b); err != nil {
			return err
		}
		a.events, b.events, a.parts, b.parts = nil, nil, nil, nil
	}
	return nil
}

func (p *pair) compareLogs(ws *watchStream, id int64, a, b *eventLog) error {
	where := func(log *eventLog, i int) string {
		if i >= len(log.events) {
			return fmt.Sprintf("watch %d: %d events, no event %d", id, len(log.events), i)
		}
		return fmt.Sprintf("watch %d: %d events, event %d is %s", id, len(log.events), i, text(log.events[i]))
	}
	for i := range max(len(a.events), len(b.events)) {
		if i >= len(a.events) || i >= len(b.events) || !proto.Equal(a.events[i], b.events[i]) {
			return p.watchDiffers(ws, a.req, where(a, i), where(b, i))
		}
		p.cov.response("Watch.Watch", &pb.WatchResponse{WatchId: id, Events: a.events[i : i+1]})
	}
	if !slices.Equal(a.parts, b.parts) {
		return p.watchDiffers(ws, a.req, fmt.Sprintf("watch %d: fragments %v", id, a.parts), fmt.Sprintf("watch %d: fragments %v", id, b.parts))
	}
	if len(a.parts) > 0 {
		p.cov.response("Watch.Watch", &pb.WatchResponse{Fragment: true})
	}
	if a.notified > 0 && b.notified > 0 {
		p.cov.response("Watch.Watch", &pb.WatchResponse{WatchId: id})
		p.cov.count(p.cov.items, "Watch.Watch", "(watches with progress notifications on both)")
		a.notified, b.notified = 0, 0
	}
	return nil
}

func sortedIDs(m map[int64]*watcher) []int64 {
	ids := make([]int64, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// cancelWatch cancels id, which may be unknown: then nothing is answered.
func (p *pair) cancelWatch(ws *watchStream, id int64) error {
	if err := p.settle(ws); err != nil || ws.gone {
		return err
	}
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
	p.sendWatch(ws, req)
	if ws.watchers[id] == nil {
		p.cov.request("Watch.Watch", req)
		return nil // an answer would be found as an extra one by the next settle
	}
	r, err := p.takeControl(ws, req)
	if err != nil || r == nil {
		return err
	}
	p.cov.request("Watch.Watch", req)
	if r.CancelReason == "" && r.CompactRevision == 0 {
		p.cov.reasons[reasonClientCancel]++
	}
	delete(ws.watchers, id)
	for _, side := range ws.sides {
		delete(side.events, id)
	}
	if id == ws.fence {
		ws.fenced = false
	}
	return nil
}

func (p *pair) closeStream(ws *watchStream) error {
	err := p.settle(ws)
	for _, side := range ws.sides {
		side.cancel()
	}
	p.streams = slices.DeleteFunc(p.streams, func(x *watchStream) bool { return x == ws })
	return err
}

// watchDiffers reports a difference and gives the stream up: whatever follows on it would differ again.
func (p *pair) watchDiffers(ws *watchStream, req proto.Message, a, b string) error {
	for _, side := range ws.sides {
		if side != nil {
			side.cancel()
		}
	}
	ws.gone = true
	ws.watchers = map[int64]*watcher{}
	p.streams = slices.DeleteFunc(p.streams, func(x *watchStream) bool { return x == ws })
	from := call{who: ws.who, member: ws.member, md: ws.md}.from(p)
	return p.differ("Watch.Watch", req, from, a, b)
}

func (p *pair) settleAll() error {
	for _, ws := range slices.Clone(p.streams) {
		if err := p.settle(ws); err != nil {
			return err
		}
	}
	return nil
}

// watchCreateRequest draws a watch of any kind.
func (p *pair) watchCreateRequest(ws *watchStream) *pb.WatchCreateRequest {
	req := &pb.WatchCreateRequest{
		ProgressNotify: p.chance(25), PrevKv: p.chance(40), Fragment: p.chance(25),
	}
	req.Key, req.RangeEnd = p.keyRange()
	if p.chance(3) {
		req.Key = nil
	}
	for range p.rng.IntN(3) {
		if p.chance(30) {
			req.Filters = append(req.Filters, pick(p, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE))
		}
	}
	if p.chance(1) {
		req.Filters = append(req.Filters, 7)
	}
	switch {
	case p.chance(60):
	case p.chance(20) && p.compacted > 1:
		req.StartRevision = 1 + p.rng.Int64N(p.compacted-1)
	case p.chance(70):
		req.StartRevision = min(p.someRevision(), p.revision)
	case p.chance(60):
		req.StartRevision = p.revision + 1 + p.rng.Int64N(30)
	case p.chance(50):
		req.StartRevision = pick[int64](p, -1, -5, math.MinInt64)
	default:
		req.StartRevision = p.revision + 1<<40
	}
	if p.chance(35) {
		req.WatchId = 1 + p.rng.Int64N(10)
		if p.chance(10) {
			req.WatchId = pick[int64](p, -7, math.MaxInt64)
		}
	}
	if p.chance(10) && len(ws.watchers) > 0 {
		req.WatchId = pick(p, sortedIDs(ws.watchers)...)
	}
	return req
}

// watchStep does one thing to one watch stream.
func (p *pair) watchStep() error {
	if len(p.streams) == 0 || len(p.streams) < streamsMax && p.chance(10) {
		_, err := p.openStream()
		return err
	}
	ws := pick(p, p.streams...)
	switch n := p.rng.IntN(100); {
	case n < 50 && len(ws.watchers) < watchersMax:
		return p.createWatch(ws, p.watchCreateRequest(ws))
	case n < 60 && len(ws.watchers) > 0:
		return p.cancelWatch(ws, pick(p, sortedIDs(ws.watchers)...))
	case n < 75:
		// Watches that were cancelled for compaction must be cancelled by the client to free their ids.
		for _, id := range sortedIDs(ws.watchers) {
			if ws.watchers[id].compacted {
				return p.cancelWatch(ws, id)
			}
		}
		return p.settle(ws)
	case n < 79:
		id := int64(100 + p.rng.IntN(3))
		return p.cancelWatch(ws, pick(p, id, -1))
	case n < 90:
		if p.answersProgress(ws) {
			return p.settle(ws)
		}
		return p.silentProgress(ws)
	case n < 92:
		p.sendWatch(ws, &pb.WatchRequest{})
		p.cov.request("Watch.Watch", &pb.WatchRequest{})
		return nil
	default:
		return p.closeStream(ws)
	}
}

// fragmentScenario makes one revision's events exceed what fits one response: three large values deleted at once
// under a watch that wants previous values.
func (p *pair) fragmentScenario() error {
	who, err := p.privileged()
	if err != nil {
		return err
	}
	ws, err := p.openStreamOf(who, p.anywhere(), nil)
	if err != nil || ws == nil {
		return err
	}
	prefix := []byte("large/")
	for _, fragment := range []bool{true, false} {
		req := &pb.WatchCreateRequest{Key: prefix, RangeEnd: prefixEnd(prefix), PrevKv: true, Fragment: fragment}
		if err := p.createWatch(ws, req); err != nil {
			return err
		}
	}
	for i := range 4 {
		req := &pb.PutRequest{Key: fmt.Appendf(nil, "large/%d", i), Value: make([]byte, 700<<10+p.rng.IntN(200<<10))}
		if _, err := p.do(call{rpc: "KV.Put", req: req}); err != nil {
			return err
		}
	}
	if _, err := p.do(call{rpc: "KV.DeleteRange", req: &pb.DeleteRangeRequest{Key: prefix, RangeEnd: prefixEnd(prefix)}}); err != nil {
		return err
	}
	return p.closeStream(ws)
}
