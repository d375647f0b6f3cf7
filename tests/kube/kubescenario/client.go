package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// client speaks the Kubernetes API as plain JSON over HTTP/2: no retry and no cache stands between the test and
// the answers.
type client struct {
	base string
	http *http.Client
}

func newClient(base string, config *tls.Config) *client {
	return &client{base: base, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 4},
	}}
}

// object is any Kubernetes object.
type object map[string]any

// meta gives a text of the object's metadata, "" where it is not set.
func (o object) meta(field string) string {
	metadata, _ := o["metadata"].(map[string]any)
	text, _ := metadata[field].(string)
	return text
}

func (o object) name() string { return o.meta("name") }

// key is namespace/name.
func (o object) key() string { return o.meta("namespace") + "/" + o.name() }

// rv is the resource version, 0 where it is not set.
func (o object) rv() uint64 { return parseRV(o.meta("resourceVersion")) }

// data gives one value of a config map.
func (o object) data(key string) string {
	values, _ := o["data"].(map[string]any)
	text, _ := values[key].(string)
	return text
}

// field follows the path through nested objects, nil where it breaks off.
func (o object) field(path ...string) any {
	var value any = map[string]any(o)
	for _, name := range path {
		inner, _ := value.(map[string]any)
		value = inner[name]
	}
	return value
}

func parseRV(text string) uint64 {
	rv, _ := strconv.ParseUint(text, 10, 64)
	return rv
}

// list is one page.
type list struct {
	Metadata struct {
		ResourceVersion    string `json:"resourceVersion"`
		Continue           string `json:"continue"`
		RemainingItemCount *int64 `json:"remainingItemCount"`
	} `json:"metadata"`
	Items []object `json:"items"`
}

func (l *list) rv() uint64 { return parseRV(l.Metadata.ResourceVersion) }

// statusError is an answer of the apiserver that refuses.
type statusError struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Code, e.Reason, e.Message)
}

// codeOf gives the HTTP code of a refusal, 200 for nil, 0 where there was no answer.
func codeOf(err error) int {
	var refused *statusError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &refused):
		return refused.Code
	default:
		return 0
	}
}

const (
	asJSON       = "application/json"
	asMergePatch = "application/merge-patch+json"
	asJSONPatch  = "application/json-patch+json"
	asStrategic  = "application/strategic-merge-patch+json"
	asApply      = "application/apply-patch+yaml"
)

// do sends one request and reads the answer into out, unless that is nil.
func (c *client) do(ctx context.Context, method, path, contentType string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	response, err := c.send(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

func (c *client) send(ctx context.Context, method, path, contentType string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", asJSON)
	if body != nil {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body)
	refused := &statusError{}
	if json.Unmarshal(answer, refused) != nil || refused.Code == 0 {
		refused.Message = strings.TrimSpace(string(answer))
	}
	refused.Code = response.StatusCode
	return nil, refused
}

// raw reads a path that does not answer JSON.
func (c *client) raw(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	response, err := c.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return string(answer), err
}

func (c *client) get(ctx context.Context, path string) (object, error) {
	var o object
	err := c.do(ctx, http.MethodGet, path, "", nil, &o)
	return o, err
}

func (c *client) create(ctx context.Context, path string, body object) (object, error) {
	var o object
	err := c.do(ctx, http.MethodPost, path, asJSON, body, &o)
	return o, err
}

func (c *client) update(ctx context.Context, path string, body object) (object, error) {
	var o object
	err := c.do(ctx, http.MethodPut, path, asJSON, body, &o)
	return o, err
}

func (c *client) patch(ctx context.Context, path, contentType string, body any) (object, error) {
	var o object
	err := c.do(ctx, http.MethodPatch, path, contentType, body, &o)
	return o, err
}

func (c *client) delete(ctx context.Context, path string) error {
	return c.do(ctx, http.MethodDelete, path, "", nil, nil)
}

// list reads one page or all, as the query says.
func (c *client) list(ctx context.Context, path string, query url.Values) (*list, error) {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var l list
	return &l, c.do(ctx, http.MethodGet, path, "", nil, &l)
}

// event is one of a watch.
type event struct {
	Type   string `json:"type"` // ADDED, MODIFIED, DELETED, BOOKMARK or ERROR
	Object object `json:"object"`
}

// refusal makes an error of an ERROR event.
func (e event) refusal() error {
	code, _ := e.Object["code"].(float64)
	reason, _ := e.Object["reason"].(string)
	message, _ := e.Object["message"].(string)
	return &statusError{Code: int(code), Reason: reason, Message: message}
}

// watch opens a watch; its events come until the server or the context ends it, then the channel is closed.
func (c *client) watch(ctx context.Context, path string, query url.Values) (<-chan event, error) {
	query.Set("watch", "true")
	response, err := c.send(ctx, http.MethodGet, path+"?"+query.Encode(), "", nil)
	if err != nil {
		return nil, err
	}
	events := make(chan event)
	go func() {
		defer close(events)
		defer response.Body.Close()
		decoder := json.NewDecoder(bufio.NewReader(response.Body))
		for {
			var e event
			if decoder.Decode(&e) != nil {
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}

// collect reads events until want of them that are no bookmarks have come, the watch ends, or time is up.
func collect(events <-chan event, want int, limit time.Duration) (got []event) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	changes := 0
	for changes < want {
		select {
		case e, open := <-events:
			if !open {
				return got
			}
			got = append(got, e)
			if e.Type != "BOOKMARK" {
				changes++
			}
		case <-timer.C:
			return got
		}
	}
	return got
}
