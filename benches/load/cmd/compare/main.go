// compare runs kvd and etcd alternately under the same client and prints one table with the ratio of every figure.
//
// Each scenario starts each server on a fresh folder of the same disk, on loopback, one server at a time. CPU time per
// operation is the figure to trust on a busy machine; throughput and latency suffer from whatever else runs.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"kvd.dev/load/internal/measure"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := compare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	kvd, etcd, load, dir, raw string
	rounds, members           int
	limit                     time.Duration
	kvdArgs                   []string
}

func compare(ctx context.Context) error {
	var o options
	flag.StringVar(&o.kvd, "kvd", "", "kvd binary, a release build")
	flag.StringVar(&o.etcd, "etcd", "", "etcd binary")
	flag.StringVar(&o.load, "load", "", "kv-load binary")
	flag.StringVar(&o.dir, "dir", "", "parent of the data folders; decides which disk is used; default the temporary folder")
	flag.StringVar(&o.raw, "raw", "", "file to append every single result to, as JSON lines")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the table shows medians")
	flag.IntVar(&o.members, "members", 1, "members of each cluster; more than one has scenarios of its own")
	flag.DurationVar(&o.limit, "limit", time.Hour, "time limit of the whole comparison")
	profile := flag.String("profile", "quick", "quick: 2 s a workload; full: 10 s, and memory with 1 M keys; api: auth, crowds of watchers and leases, long lists")
	only := flag.String("only", "", "regular expression of scenario names")
	skip := flag.String("skip", "", "regular expression of scenario names to leave out")
	flag.Func("kvd-arg", "extra argument for kvd; may be repeated", func(arg string) error {
		o.kvdArgs = append(o.kvdArgs, arg)
		return nil
	})
	flag.Parse()

	profiles := map[string]func() []scenario{"quick": quick, "full": full, "api": wholeAPI}
	if profiles[*profile] == nil || o.members > 1 && *profile == "api" {
		return fmt.Errorf("--profile is %q, quick, full or (for one member) api is needed", *profile)
	}
	for name, bin := range map[string]*string{"--kvd": &o.kvd, "--etcd": &o.etcd, "--load": &o.load} {
		path, err := exec.LookPath(*bin)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if *bin, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	all := profiles[*profile]()
	if o.members > 1 {
		all = clustered(sizes{seconds: map[string]int{"quick": 2, "full": 10}[*profile]}, map[string]int{"quick": 3, "full": 10}[*profile],
			map[string]int{"quick": 64 * mib, "full": 1024 * mib}[*profile])
	}
	chosen, err := choose(all, *only, *skip)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	before := machine(o.dir)
	results, err := o.runAll(ctx, chosen)
	// What was measured before a failure is shown all the same.
	fmt.Printf("%s; %s, load at the start %s, at the end %s; profile %s, %d rounds, %d members\n\n",
		before.text, versions(o.kvd, o.etcd), before.load, machine(o.dir).load, *profile, o.rounds, o.members)
	writeTable(os.Stdout, chosen, results)
	return err
}

func choose(all []scenario, only, skip string) ([]scenario, error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	unwanted, err := regexp.Compile(skip)
	if err != nil {
		return nil, err
	}
	var chosen []scenario
	for _, s := range all {
		if wanted.MatchString(s.name) && (skip == "" || !unwanted.MatchString(s.name)) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no scenario is left by --only and --skip")
	}
	return chosen, nil
}

// result is one row of one round of one server; a line of the raw file.
type result struct {
	Row    string          `json:"row"`
	Server string          `json:"server"`
	Round  int             `json:"round"`
	Report *measure.Report `json:"report,omitempty"`
	// Restart is the time until a killed server served again.
	Restart time.Duration `json:"restart_ns,omitempty"`
	Figures []figure      `json:"figures,omitempty"`
}

func (o *options) runAll(ctx context.Context, chosen []scenario) ([]result, error) {
	var results []result
	for _, s := range chosen {
		rounds := o.rounds
		if s.rounds > 0 {
			rounds = s.rounds
		}
		for round := range rounds {
			order := []string{"kvd", "etcd"}
			// Neither is always the one that finds a warm or an exhausted disk.
			if round%2 == 1 {
				order = []string{"etcd", "kvd"}
			}
			for _, label := range order {
				fmt.Fprintf(os.Stderr, "%s %s, round %d of %d\n", time.Now().Format(time.TimeOnly), s.name, round+1, rounds)
				rows, err := o.runScenario(ctx, s, label, round)
				results = append(results, rows...)
				if err != nil {
					return results, fmt.Errorf("%s, %s: %w", s.name, label, err)
				}
			}
		}
	}
	return results, nil
}

func (o *options) runScenario(ctx context.Context, s scenario, label string, round int) ([]result, error) {
	bin, extra := o.etcd, s.serverArgs
	if label == "kvd" {
		bin, extra = o.kvd, append(append([]string(nil), s.serverArgs...), o.kvdArgs...)
	}
	cluster, err := startCluster(ctx, o.dir, label, bin, o.members, extra)
	if err != nil {
		return nil, err
	}
	defer cluster.close()
	var rows []result
	for _, step := range s.steps {
		row := result{Row: step.row, Server: label, Round: round}
		switch {
		case step.restart:
			cluster.kill()
			row.Restart, err = cluster.members[0].start(ctx, step.limit)
		case step.figures != nil:
			row.Figures, err = runFigures(ctx, cluster, step)
		default:
			row.Report, err = o.runLoad(ctx, cluster, step)
		}
		if err != nil {
			return rows, fmt.Errorf("%w; end of the server's log:\n%s", err, cluster.logTail())
		}
		if step.row == "" {
			continue
		}
		rows = append(rows, row)
		if err := o.keep(row); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func runFigures(ctx context.Context, cluster *cluster, step step) ([]figure, error) {
	ctx, cancel := context.WithTimeout(ctx, step.limit)
	defer cancel()
	return step.figures(ctx, cluster)
}

func (o *options) runLoad(ctx context.Context, cluster *cluster, step step) (*measure.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, step.limit)
	defer cancel()
	endpoints, err := cluster.at(ctx, step.at)
	if err != nil {
		return nil, err
	}
	args := append([]string{"--endpoints=" + endpoints, "--server-pid=" + cluster.pids(), "--write-out=json"}, step.load...)
	cmd := exec.CommandContext(ctx, o.load, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var output, errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &errors
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kv-load %q: %w: %s", step.load, err, errors.String())
	}
	report := new(measure.Report)
	if err := json.Unmarshal(output.Bytes(), report); err != nil {
		return nil, fmt.Errorf("kv-load %q: %w: %s", step.load, err, output.String())
	}
	return report, nil
}

// keep appends a result to the raw file.
func (o *options) keep(row result) error {
	if o.raw == "" {
		return nil
	}
	file, err := os.OpenFile(o.raw, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	return json.NewEncoder(file).Encode(row)
}
