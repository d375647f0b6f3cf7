package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

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
		"--etcd-servers=" + strings.Join(c.store.endpoints(), ","),
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
