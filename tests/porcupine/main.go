// Command porcupine judges history files of the fault runs with the porcupine checker, beside the project's own.
//
//	porcupine [-timeout 60s] FILE...
//
// It prints one line a file: "ok", "illegal" or "unknown" (the time was up), and the file. The exit code is 0 whatever the
// verdicts are, and 1 if a file cannot be read.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

func main() {
	timeout := flag.Duration("timeout", time.Minute, "time for one file")
	flag.Parse()
	for _, file := range flag.Args() {
		history, err := load(file)
		if err != nil {
			fmt.Fprintf(os.Stderr, "porcupine: %s: %v\n", file, err)
			os.Exit(1)
		}
		fmt.Println(verdict(history, *timeout), file)
	}
}

// verdict is that of the revisions of all requests together, and of each part that shares keys and leases.
func verdict(history []record, timeout time.Duration) string {
	revisions := porcupine.CheckOperationsTimeout(revisionModel(), answered(history), timeout)
	store := porcupine.CheckOperationsTimeout(storeModel(), operations(history), timeout)
	switch {
	case revisions == porcupine.Illegal || store == porcupine.Illegal:
		return "illegal"
	case revisions == porcupine.Unknown || store == porcupine.Unknown:
		return "unknown"
	}
	return "ok"
}

func load(file string) ([]record, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var history []record
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(history)+1, err)
		}
		history = append(history, r)
	}
	return history, lines.Err()
}

// record is one line of a history file; tests/src/history.rs says what it means.
type record struct {
	Client  uint32  `json:"client"`
	Call    uint64  `json:"call"`
	Return  *uint64 `json:"return"`
	Op      op      `json:"op"`
	Outcome outcome `json:"outcome"`
}

type op struct {
	Type    string    `json:"type"`
	Action  action    `json:"action"`
	Compare []compare `json:"compare"`
	Success []action  `json:"success"`
	Failure []action  `json:"failure"`
	Lease   int64     `json:"lease"`
}

type action struct {
	Type  string `json:"type"`
	Key   string `json:"key"`
	Value string `json:"value"`
	Lease int64  `json:"lease"`
}

type compare struct {
	Key    string `json:"key"`
	Target struct {
		Version        *int64  `json:"version"`
		ModRevision    *int64  `json:"mod_revision"`
		CreateRevision *int64  `json:"create_revision"`
		Value          *string `json:"value"`
	} `json:"target"`
}

type outcome struct {
	Type      string   `json:"type"`
	Revision  int64    `json:"revision"`
	Succeeded bool     `json:"succeeded"`
	Results   []result `json:"results"`
}

type result struct {
	Type    string    `json:"type"`
	KV      *keyValue `json:"kv"`
	Deleted int64     `json:"deleted"`
}

type keyValue struct {
	Value          string `json:"value"`
	Version        int64  `json:"version"`
	ModRevision    int64  `json:"mod_revision"`
	CreateRevision int64  `json:"create_revision"`
	Lease          int64  `json:"lease"`
}

func (r record) unknown() bool { return r.Outcome.Type == "unknown" || r.Return == nil }

// actions are all that the request may come to.
func (o op) actions() []action {
	switch o.Type {
	case "single":
		return []action{o.Action}
	case "txn":
		return append(append([]action{}, o.Success...), o.Failure...)
	}
	return nil
}

func (o op) read() bool {
	for _, a := range o.actions() {
		if a.Type != "get" {
			return false
		}
	}
	return o.Type == "single" || o.Type == "txn"
}

// changed says whether the request is known to have made a revision.
func (r record) changed() bool {
	var done []action
	switch {
	case r.Op.Type == "single":
		done = []action{r.Op.Action}
	case r.Op.Type == "txn" && r.Outcome.Succeeded:
		done = r.Op.Success
	case r.Op.Type == "txn":
		done = r.Op.Failure
	}
	for i, a := range done {
		if a.Type == "put" || a.Type == "delete" && r.Outcome.Results[i].Deleted > 0 {
			return true
		}
	}
	return false
}

func operations(history []record) []porcupine.Operation {
	var out []porcupine.Operation
	for _, r := range history {
		if r.unknown() && r.Op.read() {
			continue
		}
		out = append(out, operation(r))
	}
	return out
}

// answered are the requests that were told a revision.
func answered(history []record) []porcupine.Operation {
	var out []porcupine.Operation
	for _, r := range history {
		if r.Outcome.Type == "done" {
			out = append(out, operation(r))
		}
	}
	return out
}

// operation of a request: one without an answer may take effect until the end of time.
func operation(r record) porcupine.Operation {
	end := int64(math.MaxInt64)
	if !r.unknown() {
		end = int64(*r.Return)
	}
	call := int64(math.MaxInt64)
	if r.Call < math.MaxInt64 {
		call = int64(r.Call)
	}
	return porcupine.Operation{Input: r, Call: call, Return: end}
}
