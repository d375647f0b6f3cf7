// Package proc starts one etcd-compatible server process on free loopback ports and stops it by its own process id.
//
// kvd takes etcd's flags, so both servers are started the same way. Every server has its own temporary data folder,
// removed by Close; the log lies beside it and its end is shown when a start fails.
package proc

import (
	"context"
	"crypto/tls"
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

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Options says how a server is started.
type Options struct {
	// Label names the server in messages ("etcd", "kvd").
	Label string
	// Bin is the server binary.
	Bin string
	// Args are appended after the flags this package sets; {dir} in them is the server's folder, {url} its client URL.
	Args []string
	// TLS switches the client port to https.
	TLS *TLSFiles
	// Prepare is called before the first start, to fill the data folder.
	Prepare func(*Server) error
	// name and cluster are those of a member of several; empty for a server alone.
	name, cluster string
}

// TLSFiles are the certificate flags of the server and the configuration a client needs to reach it.
type TLSFiles struct {
	Cert, Key, TrustedCA  string
	ClientCert, ClientKey string
	Client                *tls.Config
	ca                    *certificate
}

// ClientNamed is what a client needs whose certificate has this common name.
func (f *TLSFiles) ClientNamed(name string) (*tls.Config, error) {
	client, err := newClientCertificate(f.ca, name)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		RootCAs:      f.Client.RootCAs,
		Certificates: []tls.Certificate{{Certificate: [][]byte{client.der}, PrivateKey: client.key}},
	}, nil
}

// Server is a running (or killed and restartable) server process.
type Server struct {
	Options
	dir        string
	clientPort int
	peerPort   int
	cmd        *exec.Cmd
	exited     chan struct{}
	log        *os.File
}

// Name is what every server is called in its cluster of one.
const Name = "interop"

// startAttempts covers the gap between choosing a free port and the server binding it.
const startAttempts = 3

// startTimeout is generous: the machine may be compiling something else.
const startTimeout = 60 * time.Second

// Start runs a server and waits until it answers a health check.
func Start(opts Options) (*Server, error) {
	bin, err := exec.LookPath(opts.Bin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opts.Label, err)
	}
	if opts.Bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		s, err := start(opts)
		if err == nil {
			return s, nil
		}
		if attempt == startAttempts {
			return nil, err
		}
	}
}

func start(opts Options) (*Server, error) {
	dir, err := os.MkdirTemp("", "interop-"+opts.Label+"-")
	if err != nil {
		return nil, err
	}
	s := &Server{Options: opts, dir: dir}
	if s.clientPort, err = freePort(); err == nil {
		s.peerPort, err = freePort()
	}
	if err == nil && opts.Prepare != nil {
		err = opts.Prepare(s)
	}
	if err == nil {
		err = s.Run()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// StartSeveral starts the members m0, m1, ... of one new cluster and waits until all answer a health check.
func StartSeveral(opts Options, size int) ([]*Server, error) {
	bin, err := exec.LookPath(opts.Bin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opts.Label, err)
	}
	if opts.Bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	var members []*Server
	var cluster []string
	closeAll := func() {
		for _, s := range members {
			s.Close()
		}
	}
	for n := range size {
		opts.name = fmt.Sprintf("m%d", n)
		s := &Server{Options: opts}
		members = append(members, s)
		if s.dir, err = os.MkdirTemp("", "interop-"+opts.Label+"-"); err == nil {
			s.clientPort, err = freePort()
		}
		if err == nil {
			s.peerPort, err = freePort()
		}
		if err != nil {
			closeAll()
			return nil, err
		}
		cluster = append(cluster, opts.name+"="+s.PeerURL())
	}
	for _, s := range members {
		s.cluster = strings.Join(cluster, ",")
	}
	if err := RunAll(members); err != nil {
		closeAll()
		return nil, err
	}
	return members, nil
}

// Joining prepares one more member of the cluster that members are, before it is added there. Launch starts it.
func Joining(members []*Server) (*Server, error) {
	opts := members[0].Options
	opts.name = fmt.Sprintf("m%d", len(members))
	s := &Server{Options: opts}
	var err error
	if s.dir, err = os.MkdirTemp("", "interop-"+opts.Label+"-"); err == nil {
		s.clientPort, err = freePort()
	}
	if err == nil {
		s.peerPort, err = freePort()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	s.cluster = members[0].cluster + "," + opts.name + "=" + s.PeerURL()
	s.Args = append(append([]string(nil), opts.Args...), "--initial-cluster-state=existing")
	return s, nil
}

// RunAll runs the members of a cluster at the same time: none serves before most of them are there.
func RunAll(members []*Server) error {
	started := make(chan error, len(members))
	for _, s := range members {
		go func() { started <- s.Run() }()
	}
	var first error
	for range members {
		if err := <-started; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Run starts the process on the server's own ports and data folder; used for the first start and after Kill.
func (s *Server) Run() error {
	if err := s.Launch(); err != nil {
		return err
	}
	if err := s.waitServing(); err != nil {
		return fmt.Errorf("%s (%s): %w; end of its log:\n%s", s.Label, s.Bin, err, s.LogTail(40))
	}
	return nil
}

// Launch is Run without waiting until the server answers a health check, which a learner never does.
func (s *Server) Launch() error {
	var err error
	if s.log, err = os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	peer := s.PeerURL()
	name, cluster := s.name, s.cluster
	if name == "" {
		name, cluster = Name, Name+"="+peer
	}
	args := []string{
		"--name=" + name,
		"--data-dir=" + s.DataDir(),
		"--listen-client-urls=" + s.URL(),
		"--advertise-client-urls=" + s.URL(),
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + cluster,
	}
	if s.TLS != nil {
		args = append(args, "--cert-file="+s.TLS.Cert, "--key-file="+s.TLS.Key,
			"--trusted-ca-file="+s.TLS.TrustedCA, "--client-cert-auth=true")
	}
	own := strings.NewReplacer("{dir}", s.dir, "{url}", s.URL())
	for _, arg := range s.Args {
		args = append(args, own.Replace(arg))
	}
	s.cmd = exec.Command(s.Bin, args...)
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// A killed test run must not leave servers behind.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.Label, err)
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	return nil
}

func (s *Server) waitServing() error {
	conn, err := s.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		cancel()
		if err == nil && resp.Status == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("exited before it served")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("does not serve after %v", startTimeout)
}

// Dial opens a connection without size limits of its own, so that a large answer is the server's doing.
func (s *Server) Dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if s.TLS != nil {
		creds = credentials.NewTLS(s.TLS.Client)
	}
	return s.dial(creds)
}

// DialAs is Dial with another client certificate of the same authority.
func (s *Server) DialAs(client *tls.Config) (*grpc.ClientConn, error) {
	return s.dial(credentials.NewTLS(client))
}

func (s *Server) dial(creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	const noLimit = 1<<31 - 1
	return grpc.NewClient("passthrough:///"+s.Addr(), grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(noLimit), grpc.MaxCallSendMsgSize(noLimit)))
}

// Addr is host:port of the client listener.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.clientPort) }

// URL is the client URL with its scheme.
func (s *Server) URL() string {
	if s.TLS != nil {
		return "https://" + s.Addr()
	}
	return "http://" + s.Addr()
}

// DataDir is the server's own data folder.
func (s *Server) DataDir() string { return filepath.Join(s.dir, "data") }

// PeerURL is the URL of the peer listener.
func (s *Server) PeerURL() string { return "http://" + s.PeerAddr() }

// Dir is the folder of the server, with its data folder inside.
func (s *Server) Dir() string { return s.dir }

// PeerAddr is host:port of the peer listener.
func (s *Server) PeerAddr() string { return fmt.Sprintf("127.0.0.1:%d", s.peerPort) }

// PID is the process of the running server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Kill ends the process with SIGKILL and keeps its data folder, so that Run can start it again.
func (s *Server) Kill() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
	_ = s.log.Close()
}

// Exited reports whether the process has ended by itself.
func (s *Server) Exited() bool { return s.ExitsWithin(0) }

// ExitsWithin waits for the end of the process, which comes a moment after that of its connections.
func (s *Server) ExitsWithin(limit time.Duration) bool {
	select {
	case <-s.exited:
		return true
	default:
	}
	select {
	case <-s.exited:
		return true
	case <-time.After(limit):
		return false
	}
}

// Close kills the process and removes its folder.
func (s *Server) Close() {
	s.Kill()
	_ = os.RemoveAll(s.dir)
}

// LogTail returns the last lines the server logged.
func (s *Server) LogTail(lines int) string {
	data, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "log") }

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
