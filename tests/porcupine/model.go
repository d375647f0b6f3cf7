package main

import (
	"fmt"
	"hash/fnv"
	"sort"
	"strings"

	"github.com/anishathalye/porcupine"
)

// revisionModel is the store's revision alone: it rises with each change and is told with each answer.
func revisionModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(state, input, _ any) (bool, any) {
			before, r := state.(int64), input.(record)
			if r.changed() {
				return r.Outcome.Revision > before, r.Outcome.Revision
			}
			return r.Outcome.Revision >= before, r.Outcome.Revision
		},
	}
}

// storeModel holds keys and leases. A request without an answer leads to the state with it and to the one without.
func storeModel() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Partition: partition,
		Init:      func() []any { return []any{&state{}} },
		Step: func(from, input, _ any) []any {
			r, before := input.(record), from.(*state)
			next := before.step(r)
			if r.unknown() {
				next = append(next, before)
			}
			out := make([]any, len(next))
			for i, s := range next {
				out[i] = s
			}
			return out
		},
		Equal: func(a, b any) bool { return a.(*state).text() == b.(*state).text() },
		Hash: func(s any) uint64 {
			h := fnv.New64a()
			h.Write([]byte(s.(*state).text()))
			return h.Sum64()
		},
	}
	return model.ToModel()
}

// partition splits a history into parts that share neither keys nor leases.
func partition(history []porcupine.Operation) [][]porcupine.Operation {
	parents := map[string]string{}
	var root func(string) string
	root = func(name string) string {
		parent, ok := parents[name]
		if !ok || parent == name {
			parents[name] = name
			return name
		}
		top := root(parent)
		parents[name] = top
		return top
	}
	first := make([]string, len(history))
	for i, operation := range history {
		for _, name := range names(operation.Input.(record).Op) {
			if first[i] == "" {
				first[i] = name
			}
			parents[root(name)] = root(first[i])
		}
	}
	parts := map[string][]porcupine.Operation{}
	for i, operation := range history {
		top := root(first[i])
		parts[top] = append(parts[top], operation)
	}
	var out [][]porcupine.Operation
	for _, part := range parts {
		out = append(out, part)
	}
	return out
}

func names(o op) []string {
	var out []string
	for _, a := range o.actions() {
		out = append(out, "key "+a.Key)
		if a.Lease != 0 {
			out = append(out, fmt.Sprint("lease ", a.Lease))
		}
	}
	for _, c := range o.Compare {
		out = append(out, "key "+c.Key)
	}
	if o.Lease != 0 {
		out = append(out, fmt.Sprint("lease ", o.Lease))
	}
	return out
}

// revision is known, or only known to be greater than floor.
type revision struct {
	known bool
	at    int64
}

func (r revision) seen(at int64) (revision, bool) {
	if r.known {
		return r, r.at == at
	}
	return revision{true, at}, at > r.at
}

type stored struct {
	value             string
	version           int64
	modified, created revision
	lease             int64
}

type state struct {
	revision int64
	keys     map[string]stored
	leases   map[int64]bool
	shown    string
}

func (s *state) text() string {
	if s.shown == "" {
		var lines []string
		for key, kv := range s.keys {
			lines = append(lines, fmt.Sprintf("%q %v", key, kv))
		}
		for id, lives := range s.leases {
			lines = append(lines, fmt.Sprint(id, lives))
		}
		sort.Strings(lines)
		s.shown = fmt.Sprint(s.revision, "\n", strings.Join(lines, "\n"))
	}
	return s.shown
}

func (s *state) copy() *state {
	next := &state{revision: s.revision, keys: make(map[string]stored, len(s.keys)+1), leases: make(map[int64]bool, len(s.leases)+1)}
	for key, kv := range s.keys {
		next.keys[key] = kv
	}
	for id, lives := range s.leases {
		next.leases[id] = lives
	}
	return next
}

func one(s *state) []*state {
	if s == nil {
		return nil
	}
	return []*state{s}
}

func (s *state) step(r record) []*state {
	switch r.Op.Type {
	case "single":
		return one(s.act([]action{r.Op.Action}, true, r))
	case "txn":
		return s.txn(r)
	case "grant":
		if _, ok := s.leases[r.Op.Lease]; ok {
			return nil
		}
		next := s.copy()
		next.leases[r.Op.Lease] = true
		return one(next.moved(r, false))
	}
	return one(s.endLease(r))
}

func (s *state) txn(r record) []*state {
	held := s.copy()
	holds, open := true, false
	for _, c := range r.Op.Compare {
		may, mayNot := held.holds(c)
		open = open || may && mayNot
		if !may {
			holds = false
			break
		}
	}
	told := func(succeeded bool) bool { return r.unknown() || r.Outcome.Succeeded == succeeded }
	var out []*state
	if holds && told(true) {
		out = append(out, one(held.act(r.Op.Success, true, r))...)
	}
	if (!holds || open) && told(false) {
		out = append(out, one(s.act(r.Op.Failure, false, r))...)
	}
	return out
}

// holds says whether a condition may hold and whether it may not; if it may, the state is made one where it does.
func (s *state) holds(c compare) (bool, bool) {
	kv, ok := s.keys[c.Key]
	number := func(of revision, want int64) (revision, bool, bool) {
		seen, may := of.seen(want)
		if !ok {
			return of, want == 0, want != 0
		}
		if !may {
			return of, false, true
		}
		return seen, true, !of.known
	}
	t := c.Target
	var may, mayNot bool
	switch {
	case t.Value != nil:
		may = ok && kv.value == *t.Value
		mayNot = !may
	case t.Version != nil:
		may = kv.version == *t.Version
		mayNot = !may
	case t.ModRevision != nil:
		kv.modified, may, mayNot = number(kv.modified, *t.ModRevision)
	case t.CreateRevision != nil:
		kv.created, may, mayNot = number(kv.created, *t.CreateRevision)
	}
	if ok {
		s.keys[c.Key] = kv
	}
	return may, mayNot
}

func (s *state) act(actions []action, succeeded bool, r record) *state {
	leases := true
	for _, a := range actions {
		leases = leases && (a.Lease == 0 || s.leases[a.Lease])
	}
	if r.Outcome.Type == "no_such_lease" {
		if leases {
			return nil
		}
		return s
	}
	if !leases {
		return nil
	}
	if !r.unknown() && (r.Outcome.Succeeded != succeeded || len(r.Outcome.Results) != len(actions)) {
		return nil
	}
	next := s.copy()
	at := revision{false, s.revision}
	if !r.unknown() {
		at = revision{true, r.Outcome.Revision}
	}
	changed := false
	for i, a := range actions {
		kv, ok := next.keys[a.Key]
		switch a.Type {
		case "put":
			created := at
			if ok {
				created = kv.created
			}
			next.keys[a.Key] = stored{a.Value, kv.version + 1, at, created, a.Lease}
			changed = true
		case "delete":
			if !r.unknown() && r.Outcome.Results[i].Deleted == 1 != ok {
				return nil
			}
			delete(next.keys, a.Key)
			changed = changed || ok
		case "get":
			if r.unknown() {
				continue
			}
			seen := r.Outcome.Results[i].KV
			if ok != (seen != nil) {
				return nil
			}
			if !ok {
				continue
			}
			modified, one := kv.modified.seen(seen.ModRevision)
			created, two := kv.created.seen(seen.CreateRevision)
			if !one || !two || kv.value != seen.Value || kv.version != seen.Version || kv.lease != seen.Lease {
				return nil
			}
			kv.modified, kv.created = modified, created
			next.keys[a.Key] = kv
		}
	}
	return next.moved(r, changed)
}

func (s *state) endLease(r record) *state {
	lives := s.leases[r.Op.Lease]
	if r.Outcome.Type == "no_such_lease" {
		if lives {
			return nil
		}
		return s
	}
	if !lives {
		return nil
	}
	next := s.copy()
	next.leases[r.Op.Lease] = false
	for key, kv := range s.keys {
		if kv.lease == r.Op.Lease {
			delete(next.keys, key)
		}
	}
	return next.moved(r, len(next.keys) < len(s.keys))
}

// moved takes the revision that was told, or the least that it can be.
func (s *state) moved(r record, changed bool) *state {
	least := s.revision
	if changed {
		least++
	}
	s.revision = least
	if !r.unknown() {
		if r.Outcome.Revision < least {
			return nil
		}
		s.revision = r.Outcome.Revision
	}
	return s
}
