package proc

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Skip says why tests that compare kvd with etcd cannot run here; empty if they can. The tests' package is one folder below the module.
func Skip() string {
	if os.Getenv("KVD_BIN") == "" {
		return "KVD_BIN not set"
	}
	if _, err := os.Stat(filepath.Join("..", "bin", "etcd")); err != nil {
		return "bin/etcd is missing, run build.sh"
	}
	return ""
}

// MainOfPair runs a package's tests, unless something they need is missing.
func MainOfPair(m *testing.M) {
	if why := Skip(); why != "" {
		fmt.Println("SKIPPED interop: " + why)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// options are those of etcd or of the server in KVD_BIN.
func options(label string, args []string) Options {
	if label == "etcd" {
		return Options{Label: label, Bin: filepath.Join("..", "bin", "etcd"), Args: args}
	}
	return Options{Label: label, Bin: os.Getenv("KVD_BIN"), Args: append(strings.Fields(os.Getenv("KVD_ARGS")), args...)}
}

// StartCluster starts members of one cluster, of etcd or kvd by the label, until the test ends.
func StartCluster(t *testing.T, label string, size int) []*Server {
	t.Helper()
	members, err := StartSeveral(options(label, nil), size)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range members {
		t.Cleanup(s.Close)
	}
	return members
}

// StartPair starts a real etcd and the server in KVD_BIN, both with the same further flags, until the test ends.
func StartPair(t *testing.T, args ...string) []*Server {
	t.Helper()
	var servers []*Server
	for _, label := range []string{"etcd", "kvd"} {
		servers = append(servers, StartOne(t, label, args...))
	}
	return servers
}

// StartOne starts a real etcd or the server in KVD_BIN, by the label, until the test ends.
func StartOne(t *testing.T, label string, args ...string) *Server {
	t.Helper()
	server, err := Start(options(label, args))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

// Proxy is a process before a server: `gateway` or `grpc-proxy`.
type Proxy struct {
	// Addr is where it listens.
	Addr string
	cmd  *exec.Cmd
}

// StartProxy runs a subcommand of etcd or kvd, by the label, until the test ends, and returns once it accepts connections.
// {addr} in the flags is where it listens.
func StartProxy(t *testing.T, label, subcommand string, args ...string) *Proxy {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := filepath.Abs(options(label, nil).Bin)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	flags := []string{subcommand, "start", "--listen-addr=" + p.Addr}
	for _, arg := range args {
		flags = append(flags, strings.ReplaceAll(arg, "{addr}", p.Addr))
	}
	p.cmd = exec.Command(bin, flags...)
	p.cmd.Dir = t.TempDir()
	log, err := os.Create(filepath.Join(p.cmd.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(exited) }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-exited })
	for deadline := time.Now().Add(startTimeout); ; {
		if conn, err := net.Dial("tcp", p.Addr); err == nil {
			_ = conn.Close()
			return p
		}
		select {
		case <-exited:
			out, _ := os.ReadFile(log.Name())
			t.Fatalf("%s %s ended before it served:\n%s", label, subcommand, out)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s %s does not serve", label, subcommand)
		}
	}
}
