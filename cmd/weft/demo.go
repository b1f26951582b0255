package main

import (
	"context"
	"errors"
	"flag"
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

	"weft/bench"
	"weft/bench/traffic"
	"weft/deploy/lab"
	"weft/lease/etcd/testetcd"
	"weft/lease/subnetenv"
)

const (
	demoNodes   = 3
	demoNetwork = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`
	demoPrefix  = "/coreos.com/network"

	etcdPort   = 2379
	healthPort = 8286 // of each daemon, in its node's own network

	// The demo takes a few seconds; on a machine that is too slow even for these, it says where it
	// was.
	demoTimeout  = 60 * time.Second
	readyTimeout = 20 * time.Second

	pingCount    = 10
	pingInterval = 10 * time.Millisecond
	tcpDuration  = time.Second
	udpDuration  = 300 * time.Millisecond // of each probe of the search
	udpPayload   = 1400                   // bytes

	tailLines = 15 // of a daemon's log, when it is to blame
)

// demoFlags is what the command line says.
type demoFlags struct {
	weftd string
	args  string
	keep  bool
}

// demo runs the demo inside a lab of its own and returns the exit status.
func demo(args []string) int {
	var f demoFlags
	flags := flag.NewFlagSet("weft demo", flag.ContinueOnError)
	flags.StringVar(&f.weftd, "weftd", "", "the daemon's `path` (default: beside weft itself)")
	flags.StringVar(&f.args, "weftd-flags", "", "more `flags` for every daemon, separated by blanks")
	flags.BoolVar(&f.keep, "keep", false, "leave it running until Ctrl-C, and print how to look around")
	if status, done := parseFlags(flags, args); done {
		return status
	}
	if err := findDaemon(&f.weftd); err != nil {
		return fail(os.Stderr, err)
	}
	status, err := lab.Run(func() int { return demoInside(f, os.Stdout) })
	if err != nil {
		return fail(os.Stderr, err)
	}
	return status
}

// demoInside runs as the lab's first process.
func demoInside(f demoFlags, out io.Writer) int {
	traffic.RaiseGOMAXPROCS()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	d := &demonstration{flags: f, out: out, daemons: make([]*lab.Process, demoNodes), start: time.Now()}
	limited, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	err := d.run(limited)
	if err == nil && f.keep {
		err = d.keep(ctx)
	}
	if err != nil {
		d.blame(err)
	}
	if cerr := d.close(); err == nil && cerr != nil {
		err = cerr
		fmt.Fprintln(out, "FAILED: clean up:", cerr)
	}
	if err != nil {
		return 1
	}
	d.say("done", "everything worked")
	return 0
}

// demonstration is a demo under way.
type demonstration struct {
	flags   demoFlags
	out     io.Writer
	start   time.Time
	lab     *lab.Lab
	etcd    *testetcd.Server
	daemons []*lab.Process // by node
}

// stepError says where and in which step something failed.
type stepError struct {
	node int // index of the node whose daemon may know more, -1 for none
	step string
	err  error
}

// Error names step and cause.
func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }

// Unwrap returns the cause.
func (e *stepError) Unwrap() error { return e.err }

func (d *demonstration) say(what, format string, args ...any) {
	fmt.Fprintf(d.out, "%5.1fs  %-6s %s\n", time.Since(d.start).Seconds(), what, fmt.Sprintf(format, args...))
}

func (d *demonstration) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.build, d.serve, d.startDaemons, d.attach, d.pingAll, d.measure, d.table} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) build(ctx context.Context) error {
	if err := lab.CheckTUN(); err != nil {
		return &stepError{-1, "look for TUN devices", err}
	}
	var err error
	if d.lab, err = lab.New(ctx, lab.Options{Nodes: demoNodes}); err != nil {
		return &stepError{-1, "build the lab", err}
	}
	names := make([]string, 0, demoNodes)
	for _, n := range d.lab.Nodes {
		names = append(names, n.Name+" "+n.Addr.String())
	}
	d.say("lab", "%s, each with a pod, in network namespaces of this process", strings.Join(names, ", "))
	return nil
}

func (d *demonstration) serve(context.Context) error {
	var err error
	config := testetcd.Config{Dir: d.lab.Root.Path("etcd"), Listen: netip.AddrPortFrom(d.lab.Root.Addr, etcdPort)}
	if d.etcd, err = testetcd.Start(config); err != nil {
		return &stepError{-1, "start etcd", err}
	}
	if err := d.etcd.Put(demoPrefix+"/config", demoNetwork); err != nil {
		return &stepError{-1, "write the network config", err}
	}
	d.say("etcd", "%s holds %s", d.etcd.Endpoint(), demoNetwork)
	return nil
}

// startDaemons starts all daemons and waits until each says that it is ready.
func (d *demonstration) startDaemons(ctx context.Context) error {
	argv := append([]string{d.flags.weftd, "--etcd-endpoints=" + d.etcd.Endpoint(), "--etcd-prefix=" + demoPrefix,
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
	d.say("weftd", "%d daemons ready after %.1f s", demoNodes, time.Since(started).Seconds())
	return nil
}

// health is the address of a daemon's health server.
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
			cancel(errors.New("it has ended"))
		case <-ctx.Done():
		}
	}()
	err := lab.Await(ctx, readyTimeout, "ask "+node.Name+"'s daemon whether it is ready", func() error {
		_, err := bench.Get(ctx, d.health(i), "/readyz")
		return err
	})
	if err != nil {
		return &stepError{i, "wait for the daemon of " + node.Name, err}
	}
	return nil
}

// attach joins the pods to their nodes, as the CNI plugins do from subnet.env.
func (d *demonstration) attach(context.Context) error {
	for i, n := range d.lab.Nodes {
		env, err := subnetenv.Read(n.Path("flannel/subnet.env"))
		if err == nil {
			err = n.Attach(env)
		}
		if err != nil {
			return &stepError{i, "attach the pod of " + n.Name, err}
		}
		d.say(n.Name, "has %s; %s is %s, MTU %d", env.Subnet.Masked(), n.Pods[0].Name, n.Pods[0].Addr, env.MTU)
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
				return &stepError{i, fmt.Sprintf("ping from %s to %s", from.Pods[0].Name, to.Pods[0].Name), err}
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
	d.say("ping", "%s -> %s  %d of %d answers, median %.0f µs", from.Name, to.Name, r.Received, r.Sent,
		float64(r.RTTMedian())/float64(time.Microsecond))
	return nil
}

// measure takes one TCP and one UDP figure between the first two pods.
func (d *demonstration) measure(ctx context.Context) error {
	from, to := d.lab.Nodes[0].Pods[0], d.lab.Nodes[1].Pods[0]
	tcp, err := traffic.TCP(ctx, traffic.PodEnd(from), traffic.PodEnd(to), 1, tcpDuration)
	if err != nil {
		return &stepError{0, "measure TCP", err}
	}
	d.say("tcp", "%s -> %s  %.2f Gbit/s on one stream", from.Name, to.Name, tcp.BitsPerSecond/1e9)
	udp, err := traffic.HighestRate(ctx, traffic.PodEnd(from), traffic.PodEnd(to), traffic.UDPLoad{Size: udpPayload, Flows: 1}, udpDuration)
	if err == nil && udp.FloodRate == 0 {
		err = errors.New("nothing arrived")
	}
	if err != nil {
		return &stepError{0, "measure UDP", err}
	}
	rate, remark := udp.ReceivedRate, "less than 0.1 % lost"
	if rate == 0 { // a machine so busy that each rate loses some
		rate, remark = udp.FloodRate, "the rest of a flood lost"
	}
	d.say("udp", "%s -> %s  %.2f Gbit/s in %d-byte datagrams (%.0f a second), %s", from.Name, to.Name,
		rate*udpPayload*8/1e9, udpPayload, rate, remark)
	return nil
}

// close ends what runs.
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
