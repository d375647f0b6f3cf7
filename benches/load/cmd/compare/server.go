package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// server is one process on a data folder of its own, removed by close.
type server struct {
	label, name, bin     string
	args                 []string
	dir                  string
	clientPort, peerPort int
	cmd                  *exec.Cmd
	exited               chan struct{}
}

// newServer makes the folder and picks the ports; the process is yet to be started.
func newServer(parent, label, name, bin string) (*server, error) {
	s := &server{label: label, name: name, bin: bin}
	var err error
	if s.dir, err = os.MkdirTemp(parent, "compare-"+label+"-"); err != nil {
		return nil, err
	}
	if s.clientPort, err = freePort(); err == nil {
		s.peerPort, err = freePort()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// configure sets the command line: the members of the cluster, whether it is new or existing, and what is special.
func (s *server) configure(initialCluster, state string, extra []string) {
	s.args = append([]string{
		"--name=" + s.name, "--data-dir=" + filepath.Join(s.dir, "data"), "--log-level=warn",
		"--listen-client-urls=http://" + s.endpoint(), "--advertise-client-urls=http://" + s.endpoint(),
		"--listen-peer-urls=" + s.peerURL(), "--initial-advertise-peer-urls=" + s.peerURL(),
		"--initial-cluster=" + initialCluster, "--initial-cluster-state=" + state,
	}, extra...)
}

// start runs the process on the server's folder and returns how long it took until it served.
func (s *server) start(ctx context.Context, limit time.Duration) (time.Duration, error) {
	started := time.Now()
	if err := s.launch(); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.waitServing(ctx); err != nil {
		return 0, fmt.Errorf("%s does not serve: %w; end of its log:\n%s", s.label, err, s.logTail())
	}
	return time.Since(started), nil
}

// launch runs the process on the server's folder and waits for nothing.
func (s *server) launch() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.bin, s.args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// An interrupted comparison leaves no server behind.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	return nil
}

// waitServing waits until the server answers a linearizable read.
func (s *server) waitServing(ctx context.Context) error {
	address := s.endpoint()
	for {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.exited:
			return fmt.Errorf("it exited: %v", s.cmd.ProcessState)
		case <-time.After(5 * time.Millisecond):
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := client.Get(attempt, "is it serving")
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func (s *server) endpoint() string { return fmt.Sprintf("127.0.0.1:%d", s.clientPort) }

func (s *server) peerURL() string { return fmt.Sprintf("http://127.0.0.1:%d", s.peerPort) }

func (s *server) pid() int { return s.cmd.Process.Pid }

// kill is kill -9; the folder stays.
func (s *server) kill() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.exited
}

func (s *server) close() {
	s.kill()
	_ = os.RemoveAll(s.dir)
}

func (s *server) logTail() string {
	data, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// freePort picks a port that nobody listens on and that no outgoing connection is given.
func freePort() (int, error) {
	for range 100 {
		port := 10_000 + rand.IntN(22_000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port between 10000 and 32000")
}
