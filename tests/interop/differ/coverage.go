package main

import (
	"fmt"
	"io"
	"sort"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// coverage counts, per RPC, what both servers answered to. An item is "Message.field" for a field that held a
// non-default value, "Message.field=VALUE" for an enum value, "Message.oneof:none" for an empty oneof and
// "response Message.field" for a field both servers filled.
type coverage struct {
	items   map[string]map[string]int // RPC -> item -> count
	errors  map[string]map[string]int // RPC -> error name -> count
	reasons map[string]int            // watch cancel reasons

	features map[string]bool // what the run could produce

	writes, effective int
}

func newCoverage() *coverage {
	return &coverage{items: map[string]map[string]int{}, errors: map[string]map[string]int{}, reasons: map[string]int{}, features: map[string]bool{}}
}

// add takes over what another run has seen.
func (c *coverage) add(o *coverage) {
	for _, both := range []struct{ to, from map[string]map[string]int }{{c.items, o.items}, {c.errors, o.errors}} {
		for rpc, items := range both.from {
			for item, n := range items {
				c.count(both.to, rpc, item)
				both.to[rpc][item] += n - 1
			}
		}
	}
	for reason, n := range o.reasons {
		c.reasons[reason] += n
	}
	for feature, has := range o.features {
		c.features[feature] = c.features[feature] || has
	}
	c.writes += o.writes
	c.effective += o.effective
}

// wants splits the feature off an item of the scope and tells whether the run must have produced it.
func (c *coverage) wants(item string) (string, bool) {
	feature, rest := needs(item)
	return rest, feature == "" || c.features[feature]
}

func (c *coverage) count(m map[string]map[string]int, rpc, item string) {
	if m[rpc] == nil {
		m[rpc] = map[string]int{}
	}
	m[rpc][item]++
}

func (c *coverage) request(rpc string, msg proto.Message) {
	c.count(c.items, rpc, "(calls)")
	c.walk(rpc, "", msg.ProtoReflect())
}

func (c *coverage) response(rpc string, msg proto.Message) {
	c.walk(rpc, "response ", msg.ProtoReflect())
}

func (c *coverage) failure(rpc, name string) { c.count(c.errors, rpc, name) }

func (c *coverage) walk(rpc, prefix string, m protoreflect.Message) {
	name := prefix + string(m.Descriptor().Name())
	oneofs := m.Descriptor().Oneofs()
	for i := range oneofs.Len() {
		if m.WhichOneof(oneofs.Get(i)) == nil {
			c.count(c.items, rpc, fmt.Sprintf("%s.%s:none", name, oneofs.Get(i).Name()))
		}
	}
	enums := m.Descriptor().Fields()
	for i := range enums.Len() {
		// The default of an enum is a value worth counting too, although it is not on the wire.
		if fd := enums.Get(i); fd.Kind() == protoreflect.EnumKind && !fd.IsList() {
			c.count(c.items, rpc, enumItem(name, fd, m.Get(fd).Enum()))
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		c.count(c.items, rpc, fmt.Sprintf("%s.%s", name, fd.Name()))
		switch {
		case fd.IsList() && fd.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				c.walk(rpc, prefix, v.List().Get(i).Message())
			}
		case fd.IsList() && fd.Kind() == protoreflect.EnumKind:
			for i := range v.List().Len() {
				c.count(c.items, rpc, enumItem(name, fd, v.List().Get(i).Enum()))
			}
		case fd.Kind() == protoreflect.MessageKind:
			c.walk(rpc, prefix, v.Message())
		}
		return true
	})
}

func enumItem(message string, fd protoreflect.FieldDescriptor, n protoreflect.EnumNumber) string {
	value := "unknown"
	if d := fd.Enum().Values().ByNumber(n); d != nil {
		value = string(d.Name())
	}
	return fmt.Sprintf("%s.%s=%s", message, fd.Name(), value)
}

// wanted lists every item of the descriptors of an RPC's request (with unknown enum values and empty oneofs) and
// response (without them: a server never sends those).
func wanted(s rpcScope) []string {
	var items []string
	items = collect(items, map[protoreflect.FullName]bool{}, "", s.req.ProtoReflect().Descriptor(), true)
	return collect(items, map[protoreflect.FullName]bool{}, "response ", s.resp.ProtoReflect().Descriptor(), false)
}

func collect(items []string, seen map[protoreflect.FullName]bool, prefix string, d protoreflect.MessageDescriptor, isRequest bool) []string {
	if seen[d.FullName()] {
		return items
	}
	seen[d.FullName()] = true
	name := prefix + string(d.Name())
	for i := range d.Oneofs().Len() {
		if isRequest {
			items = append(items, fmt.Sprintf("%s.%s:none", name, d.Oneofs().Get(i).Name()))
		}
	}
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		items = append(items, fmt.Sprintf("%s.%s", name, fd.Name()))
		if fd.Kind() == protoreflect.EnumKind && isRequest {
			for j := range fd.Enum().Values().Len() {
				items = append(items, enumItem(name, fd, fd.Enum().Values().Get(j).Number()))
			}
			items = append(items, fmt.Sprintf("%s.%s=unknown", name, fd.Name()))
		}
		if fd.Kind() == protoreflect.MessageKind {
			items = collect(items, seen, prefix, fd.Message(), isRequest)
		}
	}
	return items
}

// report prints every count and returns what was in scope but never produced.
func (c *coverage) report(w io.Writer) (missing []string) {
	fmt.Fprintln(w, "\ncoverage: what both servers answered to")
	for _, s := range inScope {
		if !s.wantedOf(c.features) {
			continue
		}
		fmt.Fprintf(w, "%s: %d calls\n", s.name, c.items[s.name]["(calls)"])
		listed := map[string]bool{"(calls)": true}
		for _, item := range wanted(s) {
			listed[item] = true
			n := c.items[s.name][item]
			note := ""
			if n == 0 {
				if why, ok := leftOut(s.name, item); ok {
					note = "  (not in scope: " + why + ")"
				} else if feature, ok := itemNeeds[s.name+" "+item]; ok && !c.features[feature] {
					note = "  (needs " + feature + ")"
				} else {
					note = "  MISSING"
					missing = append(missing, s.name+" "+item)
				}
			}
			fmt.Fprintf(w, "  %8d %s%s\n", n, item, note)
		}
		for _, item := range sortedKeys(c.items[s.name]) {
			if !listed[item] {
				fmt.Fprintf(w, "  %8d %s\n", c.items[s.name][item], item)
			}
		}
		var known []string
		for _, scoped := range s.errors {
			name, wanted := c.wants(scoped)
			known = append(known, name)
			note := ""
			if !wanted {
				continue
			}
			if c.errors[s.name][name] == 0 {
				note = "  MISSING"
				missing = append(missing, s.name+" error "+name)
			}
			fmt.Fprintf(w, "  %8d error %s%s\n", c.errors[s.name][name], name, note)
		}
		for _, name := range sortedKeys(c.errors[s.name]) {
			if !contains(known, name) {
				fmt.Fprintf(w, "  %8d error %s\n", c.errors[s.name][name], name)
			}
		}
	}
	fmt.Fprintln(w, "errors over all RPCs")
	total := map[string]int{}
	for _, byName := range c.errors {
		for name, n := range byName {
			total[name] += n
		}
	}
	for _, e := range scopedErrors {
		fmt.Fprintf(w, "  %8d %s\n", total[e.name], e.name)
		if total[e.name] == 0 && (e.needs == "" || c.features[e.needs]) {
			missing = append(missing, "error "+e.name)
		}
		delete(total, e.name)
	}
	for _, name := range sortedKeys(total) {
		fmt.Fprintf(w, "  %8d %s  (not in the table)\n", total[name], name)
	}
	fmt.Fprintln(w, "watch cancel reasons")
	var reasons []string
	for _, scoped := range scopedReasons {
		reason, wanted := c.wants(scoped)
		reasons = append(reasons, reason)
		fmt.Fprintf(w, "  %8d %s\n", c.reasons[reason], reason)
		if c.reasons[reason] == 0 && wanted {
			missing = append(missing, "watch cancel reason "+reason)
		}
	}
	for _, reason := range sortedKeys(c.reasons) {
		if !contains(reasons, reason) {
			fmt.Fprintf(w, "  %8d %s  (not in the table)\n", c.reasons[reason], reason)
		}
	}
	fmt.Fprintf(w, "writes: %d, took effect: %d (%.1f %%)\n", c.writes, c.effective, c.effectivePercent())
	return missing
}

func (c *coverage) effectivePercent() float64 {
	if c.writes == 0 {
		return 0
	}
	return 100 * float64(c.effective) / float64(c.writes)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
