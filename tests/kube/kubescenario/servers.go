package main

import (
	"context"
	"crypto/tls"
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

// store is the one member under test, run as kubeadm's static pod runs it.
type store struct {
	binary, dataDir, log string
	clientURL            string
	metricsURL           string
	args                 []string
	ca                   *authority
	client               pair // what kube-apiserver shows
	process              *process

	mu      sync.Mutex
	excuses []excuse
}

// excuse is a time in which complaints of the store's clients are our doing: the store is down on purpose, or a
// step asks for what must be refused.
type excuse struct {
	from, to time.Time
	about    string // the line must contain it
}

func newStore(dir, binary string, progressInterval time.Duration) (*store, error) {
	ca, err := newAuthority(filepath.Join(dir, "etcd-pki"), "etcd-ca")
	if err != nil {
		return nil, err
	}
	server, err := ca.issue("server", "")
	if err != nil {
		return nil, err
	}
	peer, err := ca.issue("peer", "")
	if err != nil {
		return nil, err
	}
	s := &store{binary: binary, dataDir: filepath.Join(dir, "store"), log: filepath.Join(dir, "store.log"), ca: ca}
	if s.client, err = ca.issue("kube-apiserver-etcd-client", "kubeadm:cluster-admins"); err != nil {
		return nil, err
	}
	var ports [3]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	s.clientURL = fmt.Sprintf("https://127.0.0.1:%d", ports[0])
	peerURL := fmt.Sprintf("https://127.0.0.1:%d", ports[1])
	s.metricsURL = fmt.Sprintf("http://127.0.0.1:%d", ports[2])
	s.args = []string{
		"--name=node1",
		"--data-dir=" + s.dataDir,
		"--listen-client-urls=" + s.clientURL,
		"--advertise-client-urls=" + s.clientURL,
		"--listen-peer-urls=" + peerURL,
		"--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=node1=" + peerURL,
		"--listen-metrics-urls=" + s.metricsURL,
		"--cert-file=" + server.cert,
		"--key-file=" + server.key,
		"--trusted-ca-file=" + ca.caFile,
		"--client-cert-auth=true",
		"--peer-cert-file=" + peer.cert,
		"--peer-key-file=" + peer.key,
		"--peer-trusted-ca-file=" + ca.caFile,
		"--peer-client-cert-auth=true",
		"--snapshot-count=10000",
		"--feature-gates=InitialCorruptCheck=true",
		"--watch-progress-notify-interval=" + progressInterval.String(),
	}
	return s, nil
}

// start starts the store and waits until its probe says ready. It returns how long that took.
func (s *store) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	var err error
	if s.process, err = startProcess("store", s.log, s.binary, s.args...); err != nil {
		return 0, err
	}
	err = waitFor(ctx, time.Minute, 20*time.Millisecond, func() error {
		if err := s.process.running(); err != nil {
			return fatalError{err}
		}
		return s.probe(ctx, "/readyz")
	})
	return time.Since(began), err
}

// probe asks what the kubelet asks: plain HTTP on the metrics address.
func (s *store) probe(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.metricsURL+path, nil)
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

// excuse marks that log lines with this text are ours from now on; the result ends it.
func (s *store) excuse(about string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := len(s.excuses)
	s.excuses = append(s.excuses, excuse{from: time.Now(), about: about})
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
		return strings.Contains(line, e.about) && !moment.Before(e.from) && (e.to.IsZero() || !moment.After(e.to))
	})
}

// etcdClient opens the official client on the store, to look past the apiserver.
func (s *store) etcdClient() (*clientv3.Client, error) {
	config, err := s.ca.clientTLS(s.client)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: []string{s.clientURL}, TLS: config, DialTimeout: 10 * time.Second})
}

// cluster is what all apiservers of a run share.
type cluster struct {
	dir     string
	binary  string
	store   *store
	ca      *authority
	serving pair
	signing pair
	admin   *tls.Config
}

func newCluster(dir, binary string, store *store) (*cluster, error) {
	ca, err := newAuthority(filepath.Join(dir, "kube-pki"), "kubernetes-ca")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, binary: binary, store: store, ca: ca}
	if c.serving, err = ca.issue("kube-apiserver", ""); err != nil {
		return nil, err
	}
	if c.signing, err = issueSigningKey(ca.dir); err != nil {
		return nil, err
	}
	admin, err := ca.issue("kubernetes-admin", "system:masters")
	if err != nil {
		return nil, err
	}
	c.admin, err = ca.clientTLS(admin)
	return c, err
}

// apiserver is one kube-apiserver.
type apiserver struct {
	*client
	log     string
	process *process
}

// startAPIServer starts kube-apiserver and waits until it says ready. The number names it.
func (c *cluster) startAPIServer(ctx context.Context, number int, extra ...string) (*apiserver, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	a := &apiserver{
		client: newClient(fmt.Sprintf("https://127.0.0.1:%d", port), c.admin.Clone()),
		log:    filepath.Join(c.dir, fmt.Sprintf("apiserver-%d.log", number)),
	}
	args := append([]string{
		"--etcd-servers=" + c.store.clientURL,
		"--etcd-cafile=" + c.store.ca.caFile,
		"--etcd-certfile=" + c.store.client.cert,
		"--etcd-keyfile=" + c.store.client.key,
		"--etcd-compaction-interval=" + compactionInterval.String(),
		"--etcd-count-metric-poll-period=10s",
		"--etcd-db-metric-poll-interval=5s",
		"--event-ttl=" + eventTTL.String(),
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		// Only written into the store, as the address of this apiserver; loopback is refused there. Nothing connects to it.
		fmt.Sprintf("--advertise-address=192.0.2.%d", number),
		"--tls-cert-file=" + c.serving.cert,
		"--tls-private-key-file=" + c.serving.key,
		"--client-ca-file=" + c.ca.caFile,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.signing.cert,
		"--service-account-signing-key-file=" + c.signing.key,
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		// It waits for a controller that makes the accounts.
		"--disable-admission-plugins=ServiceAccount",
		"--v=2",
	}, extra...)
	if a.process, err = startProcess(fmt.Sprintf("apiserver %d", number), a.log, c.binary, args...); err != nil {
		return nil, err
	}
	err = waitFor(ctx, 2*time.Minute, 200*time.Millisecond, func() error {
		if err := a.process.running(); err != nil {
			return fatalError{err}
		}
		_, err := a.raw(ctx, "/readyz?verbose")
		return err
	})
	if err != nil {
		a.process.kill()
		return nil, fmt.Errorf("apiserver %d is not ready: %w", number, err)
	}
	return a, nil
}

// stop ends the apiserver as a restart of its pod does.
func (a *apiserver) stop() error {
	err := a.process.stop(90 * time.Second)
	a.http.CloseIdleConnections()
	return err
}

// fatalError ends waitFor at once.
type fatalError struct{ error }

// waitFor repeats check until it passes, and gives its last error when time is up.
func waitFor(ctx context.Context, limit, pause time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if fatal, ok := err.(fatalError); ok {
			return fatal.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-time.After(pause):
		}
	}
}
