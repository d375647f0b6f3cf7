package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// column is one figure of a row; of all its values over the rounds the median is shown.
type column struct {
	name   string
	format string
	value  func(result) float64
}

const mib = 1 << 20

var columns = []column{
	{"ops/s", "%.0f", func(r result) float64 { return r.Report.OpsPerSecond }},
	{"p50 µs", "%.0f", func(r result) float64 { return r.Report.Latency[r.Report.Main].P50 }},
	{"p99 µs", "%.0f", func(r result) float64 { return r.Report.Latency[r.Report.Main].P99 }},
	{"p99.9 µs", "%.0f", func(r result) float64 { return r.Report.Latency[r.Report.Main].P999 }},
	{"server CPU µs/op", "%.1f", func(r result) float64 { return r.Report.Server.CPU }},
	{"client CPU µs/op", "%.1f", func(r result) float64 { return r.Report.ClientCPU }},
	{"peak RSS MiB", "%.0f", func(r result) float64 { return float64(r.Report.Server.PeakRSS) / mib }},
	{"anonymous MiB", "%.0f", func(r result) float64 { return float64(r.Report.Server.PeakAnon) / mib }},
	{"file MiB", "%.0f", func(r result) float64 { return float64(r.Report.Server.PeakFile) / mib }},
	{"written B/op", "%.0f", func(r result) float64 {
		return float64(r.Report.Server.WrittenBytes) / float64(max(r.Report.Ops, 1))
	}},
}

// writeTable shows three lines a row: each server's median, and the median of the ratios of the rounds.
func writeTable(w io.Writer, chosen []scenario, results []result) {
	fmt.Fprint(w, "| workload | |")
	for _, c := range columns {
		fmt.Fprintf(w, " %s |", c.name)
	}
	fmt.Fprintf(w, "\n| --- | --- |%s\n", strings.Repeat(" ---: |", len(columns)))
	for _, s := range chosen {
		for _, step := range s.steps {
			if step.row != "" {
				writeRow(w, step, of(results, step.row, "kvd"), of(results, step.row, "etcd"))
			}
		}
	}
}

func writeRow(w io.Writer, step step, kvd, etcd []result) {
	both := min(len(kvd), len(etcd))
	if both == 0 {
		return
	}
	if step.restart {
		seconds := func(r result) float64 { return r.Restart.Seconds() }
		fmt.Fprintf(w, "| %s | | kvd %.2f s, etcd %.2f s |%s\n", step.row,
			median(kvd, seconds), median(etcd, seconds), strings.Repeat(" |", len(columns)-1))
		return
	}
	if step.figures != nil {
		writeFigures(w, step, kvd, etcd)
		return
	}
	lines := []string{"| " + step.row + " | kvd |", "| | etcd |", "| | **ratio** |"}
	for _, c := range columns {
		lines[0] += fmt.Sprintf(" "+c.format+" |", median(kvd, c.value))
		lines[1] += fmt.Sprintf(" "+c.format+" |", median(etcd, c.value))
		ratios := make([]float64, 0, both)
		for i := range both {
			if divisor := c.value(etcd[i]); divisor > 0 {
				ratios = append(ratios, c.value(kvd[i])/divisor)
			}
		}
		if len(ratios) > 0 {
			lines[2] += fmt.Sprintf(" **%.2f** |", median(ratios, func(ratio float64) float64 { return ratio }))
		} else {
			lines[2] += " |"
		}
	}
	fmt.Fprintln(w, strings.Join(lines, "\n"))
	for _, r := range slices.Concat(kvd, etcd) {
		for text, count := range r.Report.Errors {
			fmt.Fprintf(w, "| | %s, round %d | %d errors: %s |%s\n", r.Server, r.Round+1, count, text, strings.Repeat(" |", len(columns)-1))
		}
	}
}

// writeFigures shows the figures of the last round in words.
func writeFigures(w io.Writer, step step, kvd, etcd []result) {
	words := func(rows []result) string {
		var all []string
		for _, f := range rows[len(rows)-1].Figures {
			all = append(all, fmt.Sprintf("%s %.1f", f.Name, f.Value))
		}
		return strings.Join(all, ", ")
	}
	fmt.Fprintf(w, "| %s | | kvd: %s; etcd: %s |%s\n", step.row, words(kvd), words(etcd), strings.Repeat(" |", len(columns)-1))
}

func of(results []result, row, server string) (rows []result) {
	for _, r := range results {
		if r.Row == row && r.Server == server {
			rows = append(rows, r)
		}
	}
	return rows
}

func median[T any](rows []T, value func(T) float64) float64 {
	values := make([]float64, len(rows))
	for i, row := range rows {
		values[i] = value(row)
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2
	}
	return values[middle]
}

// machineFacts say where the figures come from.
type machineFacts struct{ text, load string }

func machine(dir string) machineFacts {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte("unknown")
	}
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	if dir == "" {
		dir = os.TempDir()
	}
	var disk syscall.Statfs_t
	filesystem := "unknown file system"
	if syscall.Statfs(dir, &disk) == nil {
		filesystem = map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs"}[disk.Type]
	}
	return machineFacts{
		text: fmt.Sprintf("%s: %d x %s, Linux %s, %s", time.Now().UTC().Format(time.DateOnly),
			runtime.NumCPU(), model, strings.TrimSpace(string(kernel)), filesystem),
		load: strings.Join(strings.Fields(string(load))[:1], " "),
	}
}

// versions are the last and the first line of what the servers say of themselves: kvd's own version and etcd's.
func versions(kvd, etcd string) string {
	lines := func(bin string) []string {
		output, err := exec.Command(bin, "--version").Output()
		if err != nil {
			return []string{err.Error()}
		}
		return strings.Split(strings.TrimSpace(string(output)), "\n")
	}
	own, other := lines(kvd), lines(etcd)
	return own[len(own)-1] + ", " + other[0]
}
