package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// store is what is under test: one member, or several, each run as kubeadm's static pod runs it.
type store struct {
	dir, binary      string
	progressInterval time.Duration
	ca               *authority
	server, peer     pair
	client           pair // what kube-apiserver shows
	members          []*member
	made             int // how many members there ever were

	mu      sync.Mutex
	excuses []excuse
}

// member is one process of the store, with a folder of its own.
type member struct {
	store                          *store
	name, dataDir, log             string
	clientURL, peerURL, metricsURL string
	args                           []string
	process                        *process
}

// excuse is a time in which complaints of the store's clients are our doing: the store is down on purpose, or a
// step asks for what must be refused.
type excuse struct {
	from, to time.Time
	about    string                 // the line must contain it
	kinds    func(line string) bool // and be of these kinds, where set
}

func newStore(dir, binary string, members int, progressInterval time.Duration) (*store, error) {
	ca, err := newAuthority(filepath.Join(dir, "etcd-pki"), "etcd-ca")
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, binary: binary, progressInterval: progressInterval, ca: ca}
	if s.server, err = ca.issue("server", ""); err != nil {
		return nil, err
	}
	if s.peer, err = ca.issue("peer", ""); err != nil {
		return nil, err
	}
	if s.client, err = ca.issue("kube-apiserver-etcd-client", "kubeadm:cluster-admins"); err != nil {
		return nil, err
	}
	for range members {
		m, err := s.newMember("")
		if err != nil {
			return nil, err
		}
		s.members = append(s.members, m)
	}
	for _, m := range s.members {
		m.configure("new")
	}
	return s, nil
}

// newMember names a member's folder and addresses. It gets a client URL of its own if none is given.
func (s *store) newMember(clientURL string) (*member, error) {
	s.made++
	name := fmt.Sprintf("node%d", s.made)
	m := &member{store: s, name: name, dataDir: filepath.Join(s.dir, name), log: filepath.Join(s.dir, name+".log"), clientURL: clientURL}
	var ports [3]int
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	if clientURL == "" {
		m.clientURL = fmt.Sprintf("https://127.0.0.1:%d", ports[0])
	}
	m.peerURL = fmt.Sprintf("https://127.0.0.1:%d", ports[1])
	m.metricsURL = fmt.Sprintf("http://127.0.0.1:%d", ports[2])
	return m, nil
}

// configure makes the command line, once all members are known.
func (m *member) configure(state string) {
	s := m.store
	var all []string
	for _, other := range s.members {
		all = append(all, other.name+"="+other.peerURL)
	}
	m.args = []string{
		"--name=" + m.name,
		"--data-dir=" + m.dataDir,
		"--listen-client-urls=" + m.clientURL,
		"--advertise-client-urls=" + m.clientURL,
		"--listen-peer-urls=" + m.peerURL,
		"--initial-advertise-peer-urls=" + m.peerURL,
		"--initial-cluster=" + strings.Join(all, ","),
		"--initial-cluster-state=" + state,
		"--listen-metrics-urls=" + m.metricsURL,
		"--cert-file=" + s.server.cert,
		"--key-file=" + s.server.key,
		"--trusted-ca-file=" + s.ca.caFile,
		"--client-cert-auth=true",
		"--peer-cert-file=" + s.peer.cert,
		"--peer-key-file=" + s.peer.key,
		"--peer-trusted-ca-file=" + s.ca.caFile,
		"--peer-client-cert-auth=true",
		"--snapshot-count=10000",
		"--feature-gates=InitialCorruptCheck=true",
		"--watch-progress-notify-interval=" + s.progressInterval.String(),
	}
}

// start starts all members that do not run and waits until their probes say ready. It returns how long that took.
func (s *store) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	for _, m := range s.members {
		if m.process == nil || m.process.running() != nil {
			if err := m.launch(); err != nil {
				return 0, err
			}
		}
	}
	for _, m := range s.members {
		if err := m.waitReady(ctx); err != nil {
			return time.Since(began), err
		}
	}
	return time.Since(began), nil
}

func (m *member) launch() (err error) {
	m.process, err = startProcess(m.name, m.log, m.store.binary, m.args...)
	return err
}

func (m *member) waitReady(ctx context.Context) error {
	return waitFor(ctx, time.Minute, 20*time.Millisecond, func() error {
		if err := m.process.running(); err != nil {
			return fatalError{err}
		}
		return m.probe(ctx, "/readyz")
	})
}

// probe asks what the kubelet asks: plain HTTP on the metrics address.
func (m *member) probe(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.metricsURL+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", path, response.StatusCode, body)
	}
	return nil
}

// kill kills all members at once.
func (s *store) kill() {
	for _, m := range s.members {
		if m.process != nil {
			_ = m.process.cmd.Process.Kill()
		}
	}
	for _, m := range s.members {
		if m.process != nil {
			m.process.kill()
		}
	}
}

// stop asks all members to end, one after the other.
func (s *store) stop(within time.Duration) error {
	var errs []error
	for _, m := range s.members {
		errs = append(errs, m.process.stop(within))
	}
	return errors.Join(errs...)
}

// running is nil while all members live.
func (s *store) running() error {
	for _, m := range s.members {
		if err := m.process.running(); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) endpoints() (urls []string) {
	for _, m := range s.members {
		urls = append(urls, m.clientURL)
	}
	return urls
}

// logs are of all members that ever were.
func (s *store) logs() (paths []string) {
	for n := range s.made {
		paths = append(paths, filepath.Join(s.dir, fmt.Sprintf("node%d.log", n+1)))
	}
	return paths
}

// excuse marks that log lines with this text are ours from now on; the result ends it.
func (s *store) excuse(about string) (end func()) {
	return s.excuseKinds(about, nil)
}

// excuseKinds excuses only lines of some kinds.
func (s *store) excuseKinds(about string, kinds func(line string) bool) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := len(s.excuses)
	s.excuses = append(s.excuses, excuse{from: time.Now(), about: about, kinds: kinds})
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.excuses[index].to = time.Now()
	}
}

// isExcused says whether a line logged at that moment is our doing.
func (s *store) isExcused(moment time.Time, line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.excuses, func(e excuse) bool {
		return strings.Contains(line, e.about) && (e.kinds == nil || e.kinds(line)) &&
			!moment.Before(e.from) && (e.to.IsZero() || !moment.After(e.to))
	})
}

// etcdClient opens the official client on the store, to look past the apiserver.
func (s *store) etcdClient() (*clientv3.Client, error) {
	config, err := s.ca.clientTLS(s.client)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: s.endpoints(), TLS: config, DialTimeout: 10 * time.Second})
}
