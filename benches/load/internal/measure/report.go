package measure

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// Report is the outcome of one run. Its JSON form, one line, is read by benches/compare.
type Report struct {
	Workload string            `json:"workload"`
	Params   map[string]string `json:"params"`
	// Ops is the number of operations everything "per op" is divided by: the count of the series Main.
	Ops          uint64             `json:"ops"`
	Main         string             `json:"main"`
	Seconds      float64            `json:"seconds"`
	OpsPerSecond float64            `json:"ops_per_s"`
	ClientCPU    float64            `json:"client_cpu_us_per_op"`
	Server       *ServerReport      `json:"server,omitempty"`
	Latency      map[string]Summary `json:"latency"`
	Errors       map[string]uint64  `json:"errors,omitempty"`
}

// ServerReport is the server's part, known when its process is.
type ServerReport struct {
	CPU          float64 `json:"cpu_us_per_op"`
	CPUSeconds   float64 `json:"cpu_s"`
	PeakRSS      uint64  `json:"peak_rss_bytes"`
	PeakAnon     uint64  `json:"peak_anon_bytes"`
	PeakFile     uint64  `json:"peak_file_bytes"`
	WrittenBytes uint64  `json:"written_bytes"`
}

// Fill computes the figures per operation from the counts already set.
func (r *Report) Fill(cost Cost, memory *Memory) {
	r.Ops = r.Latency[r.Main].Count
	ops := max(float64(r.Ops), 1)
	r.Seconds = cost.Elapsed.Seconds()
	r.OpsPerSecond = float64(r.Ops) / r.Seconds
	r.ClientCPU = cost.ClientCPU.Seconds() * 1e6 / ops
	if memory != nil {
		r.Server = &ServerReport{
			CPU: cost.ServerCPU.Seconds() * 1e6 / ops, CPUSeconds: cost.ServerCPU.Seconds(),
			PeakRSS: memory.PeakRSS, PeakAnon: memory.PeakAnon, PeakFile: memory.PeakFile,
			WrittenBytes: cost.WrittenBytes,
		}
	}
}

// WriteJSON writes the report as one line.
func (r *Report) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

// WriteTable writes the report for a person.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s\t%d %s in %.2f s\t%.0f/s\n", r.Workload, r.Ops, r.Main, r.Seconds, r.OpsPerSecond)
	fmt.Fprintf(t, "client CPU\t%.1f µs/op\n", r.ClientCPU)
	if s := r.Server; s != nil {
		const mib = 1 << 20
		fmt.Fprintf(t, "server CPU\t%.1f µs/op\t%.2f s\n", s.CPU, s.CPUSeconds)
		fmt.Fprintf(t, "server peak RSS\t%.1f MiB\tanonymous %.1f MiB, file-backed %.1f MiB\n",
			float64(s.PeakRSS)/mib, float64(s.PeakAnon)/mib, float64(s.PeakFile)/mib)
		fmt.Fprintf(t, "server wrote\t%.1f MiB\t%.0f B/op\n",
			float64(s.WrittenBytes)/mib, float64(s.WrittenBytes)/max(float64(r.Ops), 1))
	}
	fmt.Fprintf(t, "\nlatency, µs\tcount\tp50\tp99\tp99.9\tmax\n")
	for _, name := range slices.Sorted(maps.Keys(r.Latency)) {
		l := r.Latency[name]
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\n", name, l.Count, l.P50, l.P99, l.P999, l.Max)
	}
	for _, text := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Fprintf(t, "error\t%d\t%s\n", r.Errors[text], text)
	}
	return t.Flush()
}
