package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/bench"
	"weft/bench/traffic"
	"weft/cmd/weft/cli"
	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

const (
	demoNodes   = 3
	demoNetwork = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	demoPrefix  = "/coreos.com/network"

	etcdPort   = 2379
	udpPort    = 8285 // of the udp backend
	healthPort = 8286 // of each daemon, in its node's network namespace

	// The demo takes a few seconds. These limits are for slow machines.
	demoTimeout  = 60 * time.Second
	readyTimeout = 20 * time.Second

	pingCount    = 10
	pingInterval = 10 * time.Millisecond
	tcpDuration  = time.Second
	udpDuration  = 300 * time.Millisecond // of each probe of the search
	udpPayload   = 1400                   // bytes

	tailLines = 15 // of a daemon's log, after a failure
)

// demoFlags is the demo's command line.
type demoFlags struct {
	weftd string
	args  string
	keep  bool
	json  bool
}

// newDemo returns weft demo.
func newDemo() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "run three nodes with pods on this machine",
		Args:  cli.Operands(),
		RunE: func(*cobra.Command, []string) error {
			if f.keep && f.json {
				return errors.New("--keep and --json exclude each other")
			}
			if err := findDaemon(&f.weftd); err != nil {
				return err
			}
			status, err := lab.Run(func() int { return demoInside(f, os.Stdout) })
			return errors.Join(err, cli.ExitStatus(status))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.weftd, "weftd", "", "`path` of weftd (default: in the directory of weft)")
	flags.StringVar(&f.args, "weftd-flags", "",
		"additional `flags` for every daemon, separated by spaces")
	flags.BoolVar(&f.keep, "keep", false,
		"keep the lab running until Ctrl-C, and print commands to inspect it")
	flags.BoolVar(&f.json, "json", false, "print a line of JSON per step")
	return cmd
}

// demoInside runs as the lab's first process and returns the exit status.
func demoInside(f demoFlags, out io.Writer) int {
	traffic.RaiseGOMAXPROCS()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	d := &demonstration{flags: f, out: out, daemons: make([]*lab.Process, demoNodes),
		start: time.Now()}
	limited, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	err := d.run(limited)
	if err == nil && f.keep {
		err = d.keep(ctx)
	}
	if err != nil {
		d.printFailure(err)
	}
	exited := d.exitedDaemons()
	if cerr := d.close(); err == nil && cerr != nil {
		err = cerr
		d.printFailure(fmt.Errorf("close the lab: %w", cerr))
	}
	if err != nil {
		return 1
	}
	if len(exited) > 0 {
		d.log("done", "the steps succeeded; later the daemon exited on %s", strings.Join(exited, ", "))
		return 0
	}
	d.log("done", "all steps succeeded")
	return 0
}

// demonstration is a running demo.
type demonstration struct {
	flags   demoFlags
	out     io.Writer
	start   time.Time
	lab     *lab.Lab
	etcd    *testetcd.Server
	daemons []*lab.Process // by node
}

// stepError is the failure of a step.
type stepError struct {
	node int // index of the node whose log to print, -1 for none
	step string
	err  error
}

// Error returns the step and the cause.
func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }

// Unwrap returns the cause.
func (e *stepError) Unwrap() error { return e.err }

func (d *demonstration) log(subject, format string, args ...any) {
	e := demoEvent{Seconds: time.Since(d.start).Seconds(), Subject: subject,
		Text: fmt.Sprintf(format, args...)}
	if d.flags.json {
		d.encode(e)
		return
	}
	fmt.Fprintf(d.out, "%5.1fs  %-6s %s\n", e.Seconds, e.Subject, e.Text)
}

func (d *demonstration) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.createLab, d.startEtcd, d.startDaemons,
		d.attach, d.pingAll, d.measure, d.table} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) createLab(ctx context.Context) error {
	if err := lab.CheckTUN(); err != nil {
		return &stepError{-1, "check TUN devices", err}
	}
	var err error
	if d.lab, err = lab.New(ctx, lab.Options{Nodes: demoNodes}); err != nil {
		return &stepError{-1, "create the lab", err}
	}
	names := make([]string, 0, demoNodes)
	for _, n := range d.lab.Nodes {
		names = append(names, n.Name+" "+n.Addr.String())
	}
	d.log("lab", "%s, each with a pod, in network namespaces", strings.Join(names, ", "))
	return nil
}

func (d *demonstration) startEtcd(context.Context) error {
	var err error
	config := testetcd.Config{Dir: d.lab.Root.Path("etcd"),
		Listen: netip.AddrPortFrom(d.lab.Root.Addr, etcdPort)}
	if d.etcd, err = testetcd.Start(config); err != nil {
		return &stepError{-1, "start etcd", err}
	}
	if err := d.etcd.Put(demoPrefix+"/config", demoNetwork); err != nil {
		return &stepError{-1, "write the network config", err}
	}
	d.log("etcd", "%s holds %s", d.etcd.Endpoint(), demoNetwork)
	return nil
}

// startDaemons starts all daemons and waits until they are ready.
func (d *demonstration) startDaemons(ctx context.Context) error {
	argv := append([]string{d.flags.weftd, "--etcd-endpoints=" + d.etcd.Endpoint(),
		"--etcd-prefix=" + demoPrefix,
		"--healthz-port=" + strconv.Itoa(healthPort)}, strings.Fields(d.flags.args)...)
	started := time.Now()
	for i, n := range d.lab.Nodes {
		var err error
		if d.daemons[i], err = n.Start(argv); err != nil {
			return &stepError{-1, "start the daemon", err}
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, demoNodes)
	for i := range d.lab.Nodes {
		wg.Go(func() { errs[i] = d.awaitReady(ctx, i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.log("weftd", "%d daemons ready after %.1f s", demoNodes, time.Since(started).Seconds())
	return nil
}

// health returns the address of a daemon's health server.
func (d *demonstration) health(i int) netip.AddrPort {
	return netip.AddrPortFrom(d.lab.Nodes[i].Addr, healthPort)
}

func (d *demonstration) awaitReady(ctx context.Context, i int) error {
	node := d.lab.Nodes[i]
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-d.daemons[i].Done():
			cancel(errors.New("daemon exited"))
		case <-ctx.Done():
		}
	}()
	err := lab.Await(ctx, readyTimeout, "/readyz of "+node.Name, func() error {
		_, err := bench.Get(ctx, d.health(i), "/readyz")
		return err
	})
	if err != nil {
		return &stepError{i, "wait for the daemon on " + node.Name, err}
	}
	return nil
}

// attach connects the pods to their nodes, as CNI plugins do with subnet.env.
func (d *demonstration) attach(context.Context) error {
	for i, n := range d.lab.Nodes {
		env, err := subnetenv.Read(n.Path("flannel/subnet.env"))
		if err == nil {
			err = n.Attach(env)
		}
		if err != nil {
			return &stepError{i, "attach the pod of " + n.Name, err}
		}
		d.log(n.Name, "has %s; %s is %s, MTU %d", env.Subnet.Masked(), n.Pods[0].Name,
			n.Pods[0].Addr, env.MTU)
	}
	return nil
}

// pingAll pings from every pod to every other one.
func (d *demonstration) pingAll(ctx context.Context) error {
	for i, from := range d.lab.Nodes {
		for _, to := range d.lab.Nodes {
			if from == to {
				continue
			}
			if err := d.ping(ctx, from.Pods[0], to.Pods[0]); err != nil {
				return &stepError{i, fmt.Sprintf("ping from %s to %s", from.Pods[0].Name,
					to.Pods[0].Name), err}
			}
		}
	}
	return nil
}

func (d *demonstration) ping(ctx context.Context, from, to *lab.Pod) error {
	// The nodes learn of each other within moments of being ready; the first answer says that they
	// have.
	err := lab.Await(ctx, readyTimeout, "first answer", func() error {
		r, err := from.Ping(ctx, to.Addr, lab.Ping{Timeout: 200 * time.Millisecond})
		if err == nil && r.Received == 0 {
			err = errors.Join(errors.New("no answer"), r.LastError)
		}
		return err
	})
	if err != nil {
		return err
	}
	r, err := from.Ping(ctx, to.Addr, lab.Ping{Count: pingCount, Interval: pingInterval})
	if err != nil {
		return err
	}
	if r.Received != pingCount {
		return fmt.Errorf("%d of %d answers", r.Received, pingCount)
	}
	d.log("ping", "%s -> %s  %d of %d answers, median %.0f µs", from.Name, to.Name, r.Received,
		r.Sent,
		float64(r.RTTMedian())/float64(time.Microsecond))
	return nil
}

// measure measures TCP and UDP between the first two pods.
func (d *demonstration) measure(ctx context.Context) error {
	from, to := d.lab.Nodes[0].Pods[0], d.lab.Nodes[1].Pods[0]
	tcp, err := traffic.TCP(ctx, traffic.PodEnd(from), traffic.PodEnd(to), 1, tcpDuration)
	if err != nil {
		return &stepError{0, "measure TCP", err}
	}
	d.log("tcp", "%s -> %s  %.2f Gbit/s on one stream", from.Name, to.Name, tcp.BitsPerSecond/1e9)
	udp, err := traffic.HighestRate(ctx, traffic.PodEnd(from), traffic.PodEnd(to),
		traffic.UDPLoad{Size: udpPayload, Flows: 1}, udpDuration)
	if err == nil && udp.FloodRate == 0 {
		err = errors.New("nothing arrived")
	}
	if err != nil {
		return &stepError{0, "measure UDP", err}
	}
	rate, remark := udp.ReceivedRate, "less than 0.1 % lost"
	if rate == 0 { // every rate was lossy on a busy machine
		rate, remark = udp.FloodRate, "received from a flood"
	}
	d.log("udp", "%s -> %s  %.2f Gbit/s in %d-byte datagrams (%.0f per second), %s", from.Name,
		to.Name,
		rate*udpPayload*8/1e9, udpPayload, rate, remark)
	return nil
}

// close stops the lab and etcd.
func (d *demonstration) close() error {
	var err error
	if d.lab != nil {
		err = d.lab.Close()
	}
	if d.etcd != nil {
		d.etcd.Close()
	}
	return err
}
