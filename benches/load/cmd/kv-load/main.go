// kv-load puts load on an etcd-compatible server with the official Go client and reports what that cost both sides.
//
//	kv-load [common flags] <workload> [flags] [arguments]
//
// Workloads and their parameters are those of etcd's tools/benchmark.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"kvd.dev/load/internal/measure"
	"kvd.dev/load/internal/workload"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kv-load:", err)
		os.Exit(1)
	}
}

// common are the flags that every workload takes, before or after its name.
type common struct {
	endpoints      string
	conns, clients uint
	dialTimeout    time.Duration
	ca, cert, key  string
	user           string
	output         string
	options        workload.Options
}

func (c *common) declare(fs *flag.FlagSet) {
	fs.StringVar(&c.endpoints, "endpoints", c.endpoints, "gRPC endpoints, separated by commas")
	fs.UintVar(&c.conns, "conns", c.conns, "connections")
	fs.UintVar(&c.clients, "clients", c.clients, "clients, which share the connections")
	fs.DurationVar(&c.dialTimeout, "dial-timeout", c.dialTimeout, "time limit of a connection's start")
	fs.StringVar(&c.ca, "cacert", c.ca, "certificate authority of the server; switches TLS on")
	fs.StringVar(&c.cert, "cert", c.cert, "certificate of this client")
	fs.StringVar(&c.key, "key", c.key, "key of this client's certificate")
	fs.StringVar(&c.user, "user", c.user, "name:password to get a token with")
	fs.StringVar(&c.output, "write-out", c.output, "table, or json for one line of JSON")
	fs.IntVar(&c.options.Total, "total", c.options.Total, "operations; 0 no bound, -1 the workload's default, which --duration lifts")
	fs.DurationVar(&c.options.Duration, "duration", c.options.Duration, "time limit of the measured part; 0 none")
	fs.Float64Var(&c.options.Rate, "rate", c.options.Rate, "operations a second over all clients; 0 no bound")
	fs.Int64Var(&c.options.Seed, "seed", c.options.Seed, "seed of keys, values and choices")
	fs.Func("server-pid", "process of the server, to report its CPU time, memory and writes; several are separated by commas", func(list string) error {
		c.options.ServerPIDs = nil
		for text := range strings.SplitSeq(list, ",") {
			pid, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			c.options.ServerPIDs = append(c.options.ServerPIDs, pid)
		}
		return nil
	})
}

func run(ctx context.Context, args []string) error {
	c := common{endpoints: "127.0.0.1:2379", conns: 1, clients: 1, dialTimeout: 5 * time.Second, output: "table"}
	c.options.Total, c.options.Seed = -1, 1
	global := flag.NewFlagSet("kv-load", flag.ContinueOnError)
	c.declare(global)
	global.Usage = func() { usage(global) }
	if err := global.Parse(args); err != nil {
		return help(err)
	}
	if global.NArg() == 0 {
		usage(global)
		return fmt.Errorf("which workload?")
	}
	chosen, err := find(global.Arg(0))
	if err != nil {
		return err
	}
	own := flag.NewFlagSet("kv-load "+chosen.Name, flag.ContinueOnError)
	c.declare(own)
	body := chosen.Flags(own)
	positional, err := parse(own, global.Args()[1:])
	if err != nil {
		return help(err)
	}
	if c.options.Total < 0 {
		c.options.Total = chosen.Total
		if c.options.Duration > 0 {
			c.options.Total = 0
		}
	}
	if c.output != "table" && c.output != "json" {
		return fmt.Errorf("--write-out is %q, table or json is needed", c.output)
	}
	clients, err := c.connect()
	if err != nil {
		return err
	}
	measured := workload.Run{Options: c.options, Clients: clients}
	if err := body(ctx, &measured, positional); err != nil {
		return err
	}
	report := measure.Report{Workload: chosen.Name, Main: chosen.Main, Params: parameters(own, positional)}
	measured.Report(&report)
	write := report.WriteTable
	if c.output == "json" {
		write = report.WriteJSON
	}
	if err := write(os.Stdout); err != nil {
		return err
	}
	if report.Ops == 0 {
		return fmt.Errorf("no operation succeeded: %v", report.Errors)
	}
	return nil
}

// parse reads flags and arguments in any order.
func parse(fs *flag.FlagSet, args []string) (positional []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return positional, nil
		}
		positional, args = append(positional, fs.Arg(0)), fs.Args()[1:]
	}
}

// connect opens the connections and deals them to the clients in turn.
func (c *common) connect() ([]*clientv3.Client, error) {
	if c.conns < 1 || c.clients < c.conns {
		return nil, fmt.Errorf("--clients %d and --conns %d: at least one connection and no fewer clients than connections", c.clients, c.conns)
	}
	config := clientv3.Config{Endpoints: strings.Split(c.endpoints, ","), DialTimeout: c.dialTimeout, Logger: zap.NewNop()}
	if c.ca != "" || c.cert != "" {
		var err error
		if config.TLS, err = c.tls(); err != nil {
			return nil, err
		}
	}
	if c.user != "" {
		var separated bool
		if config.Username, config.Password, separated = strings.Cut(c.user, ":"); !separated {
			return nil, fmt.Errorf("--user is %q, name:password is needed", c.user)
		}
	}
	conns := make([]*clientv3.Client, c.conns)
	for i := range conns {
		var err error
		if conns[i], err = clientv3.New(config); err != nil {
			return nil, err
		}
	}
	clients := make([]*clientv3.Client, c.clients)
	for i := range clients {
		clients[i] = conns[i%len(conns)]
	}
	return clients, nil
}

func (c *common) tls() (*tls.Config, error) {
	config := new(tls.Config)
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--cacert %s holds no certificate", c.ca)
		}
	}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// parameters are the flags that were set, for the report.
func parameters(fs *flag.FlagSet, positional []string) map[string]string {
	parameters := make(map[string]string)
	fs.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "endpoints", "server-pid", "write-out", "key", "cert", "cacert", "user":
		default:
			parameters[f.Name] = f.Value.String()
		}
	})
	if len(positional) > 0 {
		parameters["arguments"] = fmt.Sprintf("%q", positional)
	}
	return parameters
}

func find(name string) (workload.Workload, error) {
	var names []string
	for _, w := range workload.All() {
		if w.Name == name {
			return w, nil
		}
		names = append(names, w.Name)
	}
	return workload.Workload{}, fmt.Errorf("unknown workload %q, there are: %s", name, strings.Join(names, ", "))
}

func usage(fs *flag.FlagSet) {
	fmt.Fprintln(os.Stderr, "usage: kv-load [common flags] <workload> [flags] [arguments]\n\nworkloads (kv-load <workload> --help shows its flags):")
	for _, w := range workload.All() {
		fmt.Fprintf(os.Stderr, "  %-16s %s\n", strings.TrimSpace(w.Name), w.Summary)
	}
	fmt.Fprintln(os.Stderr, "\ncommon flags:")
	fs.PrintDefaults()
}

// help turns the request for help into success.
func help(err error) error {
	if err == flag.ErrHelp {
		return nil
	}
	return err
}
