// Package gateway sends the same HTTP requests to the JSON gateway of a real etcd and of the server in KVD_BIN and compares
// status, headers and bodies.
package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"kvd.dev/interop/proc"
)

// callTimeout bounds each request.
const callTimeout = 30 * time.Second

func TestMain(m *testing.M) { proc.MainOfPair(m) }

// comparedHeaders are those that a client or a browser looks at.
var comparedHeaders = []string{
	"Content-Type", "Grpc-Metadata-Content-Type", "Www-Authenticate", "Allow", "X-Content-Type-Options",
	"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers",
}

// masked are fields whose values belong to one server; they must be in both answers or in neither.
var masked = map[string]bool{
	"cluster_id": true, "member_id": true, "raft_term": true, "leader": true, "raftTerm": true, "raftIndex": true,
	"raftAppliedIndex": true, "dbSize": true, "dbSizeInUse": true, "peerURLs": true, "clientURLs": true,
	"token": true, "blob": true, "remaining_bytes": true, "storageVersion": true, "downgradeInfo": true,
}

// unreadable begins what protojson and encoding/json say about a body; the words are the library's.
var unreadable = regexp.MustCompile(`^(proto:|invalid character|unexpected EOF|unexpected end|Failed to decode)`)

// step is one request. {name} in a body is the base64 form of name.
type step struct {
	method, path, body string
	header             map[string]string
	// masks are further fields that belong to one server.
	masks []string
	// lines is how many lines of a stream are read; 0 reads everything.
	lines int
	// anyOrder is for lines that a server may send in any order.
	anyOrder bool
	// ownBody compares whether there is a body, not what is in it.
	ownBody bool
}

func post(path, body string) step { return step{path: path, body: body} }

var names = regexp.MustCompile(`\{=([^}]*)\}`)

func (s step) content() string {
	return names.ReplaceAllStringFunc(s.body, func(name string) string {
		return `"` + base64.StdEncoding.EncodeToString([]byte(name[2:len(name)-1])) + `"`
	})
}

// answer is what is compared.
type answer struct {
	Status  int
	Headers map[string]string
	Body    any
}

func (a answer) String() string {
	body, _ := json.Marshal(a.Body)
	return fmt.Sprintf("%d %v %s", a.Status, a.Headers, body)
}

var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// send makes the request and reads as much of the answer as the step says.
func send(t *testing.T, server *proc.Server, s step) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	method := s.method
	if method == "" {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, server.URL()+s.path, strings.NewReader(s.content()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	for name, value := range s.header {
		if name == "Host" {
			request.Host = value
		}
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("%s %s %s: %v", server.Label, s.path, s.body, err)
	}
	defer response.Body.Close()
	a := answer{Status: response.StatusCode, Headers: map[string]string{}}
	for _, name := range comparedHeaders {
		if value := response.Header.Get(name); value != "" {
			a.Headers[name] = value
		}
	}
	body, err := read(response.Body, s.lines)
	if err != nil {
		t.Fatalf("%s %s %s: %v", server.Label, s.path, s.body, err)
	}
	if s.ownBody {
		a.Body = len(body) > 0
	} else {
		a.Body = s.normal(body)
	}
	return a
}

func read(body io.Reader, lines int) ([]byte, error) {
	if lines == 0 {
		return io.ReadAll(body)
	}
	var all []byte
	in := bufio.NewReader(body)
	for range lines {
		line, err := in.ReadBytes('\n')
		all = append(all, line...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// normal parses the JSON values of a body, or returns its text, without what belongs to one server.
func (s step) normal(body []byte) any {
	var values []any
	for decoder := json.NewDecoder(bytes.NewReader(body)); ; {
		decoder.UseNumber()
		var value any
		if err := decoder.Decode(&value); err == io.EOF {
			if s.anyOrder {
				sort.Slice(values, func(i, j int) bool { return fmt.Sprint(values[i]) < fmt.Sprint(values[j]) })
			}
			return values
		} else if err != nil {
			return string(body)
		}
		values = append(values, s.mask("", value))
	}
}

func (s step) mask(key string, value any) any {
	for _, name := range s.masks {
		if key == name {
			return "masked"
		}
	}
	if masked[key] {
		return "masked"
	}
	switch value := value.(type) {
	case map[string]any:
		for name, field := range value {
			value[name] = s.mask(name, field)
		}
	case []any:
		for n, item := range value {
			value[n] = s.mask("", item)
		}
	case string:
		if key == "message" && unreadable.MatchString(value) {
			return "unreadable"
		}
	}
	return value
}

// compare sends the steps to both servers, one after the other.
func compare(t *testing.T, servers []*proc.Server, steps []step) {
	t.Helper()
	for n, s := range steps {
		want, got := send(t, servers[0], s), send(t, servers[1], s)
		if !reflect.DeepEqual(want, got) {
			t.Errorf("step %d: %s %s %s %v\n etcd: %s\n kvd:  %s", n, s.method, s.path, s.body, s.header, want, got)
		}
	}
}
