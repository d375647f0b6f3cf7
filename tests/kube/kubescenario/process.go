package main

import (
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a child of ours, ended only by its own id.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, readable after done
}

// startProcess appends the child's output to logPath, so that restarts share one file.
func startProcess(name, logPath, binary string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, log: logPath, cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// The group of its own keeps Ctrl-C for us: we end the children in order. Should we be killed, they are too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// running is nil while the process lives, else how it ended.
func (p *process) running() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended by itself: %v; its last words:\n%s", p.name, p.cmd.ProcessState, lastLines(p.log, 5))
	default:
		return nil
	}
}

// lastLines gives the end of a file.
func lastLines(path string, count int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// kill is kill -9, and waits for the end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop asks politely, and kills and complains after the given time.
func (p *process) stop(within time.Duration) error {
	if err := p.running(); err != nil {
		return err
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		p.kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM", p.name, within)
	}
}

var (
	portsMu   sync.Mutex
	portsUsed = map[int]bool{}
)

// freePort gives a free loopback port below the range the system hands to outgoing connections. A port of that
// range could be taken by some client while the store is down, and the store could not come back on it.
func freePort() (int, error) {
	portsMu.Lock()
	defer portsMu.Unlock()
	for range 1000 {
		port := 15000 + rand.Intn(15000)
		if portsUsed[port] {
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = listener.Close()
		portsUsed[port] = true
		return port, nil
	}
	return 0, fmt.Errorf("no free port found on 127.0.0.1")
}
