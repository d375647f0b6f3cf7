package main

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// storageErrors are the texts by which a kube-apiserver complains of its store. They must not appear in its log
// but while the store is down on purpose.
var storageErrors = []*regexp.Regexp{
	regexp.MustCompile(`etcdserver: `),                                              // any error text of the store
	regexp.MustCompile(`rpc error: `),                                               // any gRPC error
	regexp.MustCompile(`code = (Unavailable|Unknown|Internal|DataLoss|OutOfRange)`), // in case the text differs
	regexp.MustCompile(`addrConn\.createTransport failed|\[transport\]`),            // gRPC's own warnings
	regexp.MustCompile(`too_many_pings|GOAWAY|ENHANCE_YOUR_CALM`),                   // the store closed the connection
	regexp.MustCompile(`required revision`),                                         // compacted or future
	regexp.MustCompile(`watch chan (error|closed)`),                                 // etcd3/watcher.go
	regexp.MustCompile(`failed to (sync with latest state|prepare current and previous objects)`),
	regexp.MustCompile(`compact failed|etcd: endpoint \(`),                                 // etcd3/compact.go
	regexp.MustCompile(`unexpected ListAndWatch error|Terminating all watchers`),           // cacher.go
	regexp.MustCompile(`watch of .* (ended with|closed with)`),                             // reflector
	regexp.MustCompile(`[Cc]ache consistency check (error|failed)|[Dd]ata consistency`),    // cache against store
	regexp.MustCompile(`RequestWatchProgress|Failed to parse etcd version`),                // feature checker
	regexp.MustCompile(`[Ff]ailed to (update|get) (etcd|storage|db)|storage_size|db size`), // metrics
	regexp.MustCompile(`(lease|etcd|storage).*([Cc]onnection refused|deadline exceeded)`),
	regexp.MustCompile(`[Uu]nable to (decode|transform)|invalid object|corrupt`),
	regexp.MustCompile(`^panic:|fatal error:|Observed a panic`),
}

// harmless are lines that match above and come with a healthy etcd as well.
var harmless = []*regexp.Regexp{
	// The client's first connection of a start is opened and closed at once, on purpose.
	regexp.MustCompile(`authentication handshake failed: context canceled|operation was canceled`),
	// A client of ours gave up its request, or the apiserver ends.
	regexp.MustCompile(`code = Canceled desc = (context canceled|grpc: the client connection is closing)`),
	regexp.MustCompile(`failed to sync with latest state: context canceled$`),
	// Apiservers of one host share one lease of their identity, and the one that ends deletes it.
	regexp.MustCompile(`"Failed to update lease".*Precondition failed: UID in precondition`),
}

// afterwards looks at what the run left in the logs and metrics, and ends all in order.
func (s *scenario) afterwards() bool {
	s.step("metrics tell the storage size and no failed requests", s.metrics)
	s.step("apiservers and store end when asked", func() (string, error) {
		var errs []error
		if s.b != nil {
			errs = append(errs, s.stopB())
		}
		errs = append(errs, s.a.stop(), s.store.stop(30*time.Second))
		return "", errors.Join(errs...)
	})
	s.step(logStep, s.scanLogs)
	return s.step("the store did not panic", s.scanStoreLog)
}

// metrics reads the metrics of the apiserver that was started last, after all kills.
func (s *scenario) metrics() (string, error) {
	var size float64
	var text string
	err := waitFor(s.ctx, 15*time.Second, 500*time.Millisecond, func() error {
		var err error
		if text, err = s.a.raw(s.ctx, "/metrics"); err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "apiserver_storage_size_bytes{") {
				fields := strings.Fields(line)
				size, err = strconv.ParseFloat(fields[len(fields)-1], 64)
				return err
			}
		}
		return errors.New("no apiserver_storage_size_bytes")
	})
	if err != nil {
		return "", err
	}
	if size <= 0 {
		return "", fmt.Errorf("apiserver_storage_size_bytes is %v", size)
	}
	streams := false
	for line := range strings.Lines(text) {
		failed := strings.HasPrefix(line, "etcd_request_errors_total{") || strings.HasPrefix(line, "apiserver_storage_decode_errors_total{")
		if failed && !strings.HasSuffix(line, " 0\n") {
			return "", errors.New(strings.TrimSpace(line))
		}
		streams = streams || strings.HasPrefix(line, "etcd_requests_total{") && strings.Contains(line, `operation="listStream"`)
	}
	how := "lists came by Range"
	if streams {
		how = "lists came by RangeStream"
	}
	return fmt.Sprintf("%.1f MB, %s", size/1e6, how), nil
}

// klogLine is severity, time and the rest.
var klogLine = regexp.MustCompile(`^([IWEF])(\d{4} \d\d:\d\d:\d\d\.\d{6}) `)

// clientLine is one of the etcd client in the apiserver, which logs in its own form.
var clientLine = regexp.MustCompile(`^\{"level":"[a-z]+","ts":"([^"]+)"`)

func (s *scenario) scanLogs() (string, error) {
	var logs []string
	for _, server := range s.servers {
		if !slices.Contains(logs, server.log) {
			logs = append(logs, server.log)
		}
	}
	lines, excused := 0, 0
	kinds := map[string]int{}
	var found []string
	for _, path := range logs {
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		moment := s.started
		scanner := bufio.NewScanner(file)
		scanner.Buffer(nil, 16<<20)
		for scanner.Scan() {
			line := scanner.Text()
			lines++
			severity := ""
			// A line without a time belongs to the one before.
			if parts := klogLine.FindStringSubmatch(line); parts != nil {
				severity = parts[1]
				at, err := time.ParseInLocation("2006 0102 15:04:05.000000", fmt.Sprint(time.Now().Year(), " ", parts[2]), time.Local)
				if err == nil {
					moment = at
				}
			} else if parts := clientLine.FindStringSubmatch(line); parts != nil {
				if at, err := time.Parse(time.RFC3339, parts[1]); err == nil {
					moment = at
				}
			}
			matches := func(r *regexp.Regexp) bool { return r.MatchString(line) }
			if severity == "I" || !slices.ContainsFunc(storageErrors, matches) || slices.ContainsFunc(harmless, matches) {
				continue
			}
			kinds[kindOf(line)]++
			if s.store.isExcused(moment, line) {
				excused++
				continue
			}
			found = append(found, line)
		}
		err = scanner.Err()
		_ = file.Close()
		if err != nil {
			return "", err
		}
	}
	if s.kinds {
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			fmt.Printf("     %4d x %s\n", kinds[kind], kind)
		}
	}
	if len(found) > 0 {
		for i, line := range found {
			// What happened is at one end of the line or at the other.
			if len(line) > 400 {
				found[i] = line[:150] + " ... " + line[len(line)-250:]
			}
		}
		return "", fmt.Errorf("%d storage errors while the store was up, first:\n%s", len(found), strings.Join(found[:min(8, len(found))], "\n"))
	}
	return fmt.Sprintf("%d lines, %d errors of our doing", lines, excused), nil
}

// kindOf is a line without what is of this one time: numbers, and what stands in quotation marks.
func kindOf(line string) string {
	line = klogLine.ReplaceAllString(line, "")
	line = regexp.MustCompile(`"ts":"[^"]*"`).ReplaceAllString(line, "")
	line = regexp.MustCompile(`0x[0-9a-f]+|\d+`).ReplaceAllString(line, "#")
	line = regexp.MustCompile(`"/[^"]*"`).ReplaceAllString(line, `"/..."`)
	if len(line) > 360 {
		line = line[:180] + " ... " + line[len(line)-180:]
	}
	return line
}

// scanStoreLog looks for the ends that no exit code tells when a kill or a stop came first.
func (s *scenario) scanStoreLog() (string, error) {
	bad := regexp.MustCompile(`panicked at|^panic:|^fatal error:|"level":"(panic|fatal)"`)
	lines := 0
	for _, path := range s.store.logs() {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(text)) {
			lines++
			if bad.MatchString(line) {
				return "", errors.New(strings.TrimSpace(line))
			}
		}
	}
	return fmt.Sprintf("%d lines", lines), nil
}
