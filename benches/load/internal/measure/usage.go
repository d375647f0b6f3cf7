package measure

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Usage is what client and server have spent at one moment; two of them make a Cost.
type Usage struct {
	at                   time.Time
	clientCPU, serverCPU time.Duration
	written              uint64
}

// Cost is the difference of two usages.
type Cost struct {
	Elapsed              time.Duration
	ClientCPU, ServerCPU time.Duration
	// WrittenBytes is what the server caused to be sent to the disk.
	WrittenBytes uint64
}

// clockTick is USER_HZ, which Linux fixes at 100 for everything in /proc.
const clockTick = 10 * time.Millisecond

// ReadUsage reads the CPU time of this process, and CPU time and writes of the server's processes together.
func ReadUsage(server []int) (Usage, error) {
	usage := Usage{at: time.Now()}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return usage, err
	}
	usage.clientCPU = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	for _, pid := range server {
		if err := usage.add(pid); err != nil {
			return usage, err
		}
	}
	return usage, nil
}

func (u *Usage) add(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	// The name of the program, in parentheses, may itself hold spaces.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return err
		}
		u.serverCPU += time.Duration(ticks) * clockTick
	}
	io, err := procFields(fmt.Sprintf("/proc/%d/io", pid))
	u.written += io["write_bytes"]
	return err
}

// Since is the cost between an earlier usage and this one.
func (u Usage) Since(earlier Usage) Cost {
	return Cost{u.at.Sub(earlier.at), u.clientCPU - earlier.clientCPU, u.serverCPU - earlier.serverCPU, u.written - earlier.written}
}

// Memory is the resident memory of all the server's processes together, in bytes.
type Memory struct {
	// PeakRSS is the kernel's high-water mark since the server started, the sum of its processes' marks.
	PeakRSS uint64
	// PeakAnon and PeakFile are the largest of the samples taken while measuring, each for itself: memory the
	// server owns, and pages of files it maps.
	PeakAnon, PeakFile uint64
}

// MemorySampler reads a server's memory every 50 ms until it is stopped.
type MemorySampler struct {
	pids    []int
	stop    chan struct{}
	stopped sync.WaitGroup
	memory  Memory
	err     error
}

// SampleMemory starts to sample; without processes it does nothing.
func SampleMemory(pids []int) *MemorySampler {
	s := &MemorySampler{pids: pids, stop: make(chan struct{})}
	s.stopped.Go(func() {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for s.sample(); s.err == nil; s.sample() {
			select {
			case <-s.stop:
				return
			case <-ticker.C:
			}
		}
	})
	return s
}

// Stop takes a last sample and returns the peaks.
func (s *MemorySampler) Stop() (Memory, error) {
	close(s.stop)
	s.stopped.Wait()
	s.sample()
	return s.memory, s.err
}

func (s *MemorySampler) sample() {
	var peak, anon, file uint64
	for _, pid := range s.pids {
		if s.err != nil {
			return
		}
		var status map[string]uint64
		if status, s.err = procFields(fmt.Sprintf("/proc/%d/status", pid)); s.err != nil {
			return
		}
		const kib = 1024
		peak += status["VmHWM"] * kib
		anon += status["RssAnon"] * kib
		file += status["RssFile"] * kib
	}
	s.memory.PeakRSS = max(s.memory.PeakRSS, peak)
	s.memory.PeakAnon = max(s.memory.PeakAnon, anon)
	s.memory.PeakFile = max(s.memory.PeakFile, file)
}

// procFields reads the numeric lines of a "name: number" file.
func procFields(path string) (map[string]uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := make(map[string]uint64)
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		words := strings.Fields(rest)
		if len(words) == 0 {
			continue
		}
		if number, err := strconv.ParseUint(words[0], 10, 64); err == nil {
			fields[name] = number
		}
	}
	return fields, nil
}
