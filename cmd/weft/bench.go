package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"weft/bench"
	"weft/bench/lab"
)

// benchFlags is what the command line of a measurement says.
type benchFlags struct {
	weftd               string
	cases, modes, mtus  string
	rivals              string
	others              listFlag
	rounds              int
	seconds             bench.Seconds
	quick, full, ablate bool
	out                 string
}

// listFlag is a flag that may be given several times.
type listFlag []string

// String shows the list.
func (l *listFlag) String() string { return strings.Join(*l, " ") }

// Set adds one.
func (l *listFlag) Set(v string) error {
	*l = append(*l, v)
	return nil
}

// What is measured without flags, by --quick and by --full.
const (
	defaultCases, quickCases = "tcp,udp,rtt,connect", "tcp-1,tcp-4,udp-64-1,rtt-idle"
	defaultRivals            = "none,vxlan,ipip,wireguard,weftd,portable,bare"
	quickRivals              = "none,vxlan,weftd,portable"
	fullCases, fullMTUs      = "tcp,udp,rtt,connect,fan-out", "1500,9000"

	defaultRounds, quickRounds = 5, 3
)

// measure is `weft bench` and its own subcommands.
func measure(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "report":
			return report(args[1:])
		case "compare":
			return compare(args[1:])
		case "bare": // what the rival of that name starts
			return fail(os.Stderr, bench.RunBare(args[1:]))
		}
	}
	f := benchFlags{}
	flags := flag.NewFlagSet("weft bench", flag.ContinueOnError)
	flags.StringVar(&f.weftd, "weftd", "", "our daemon's `path` (default: beside weft itself)")
	flags.StringVar(&f.cases, "cases", defaultCases, "`workloads` to measure, by the beginnings of their names")
	flags.StringVar(&f.modes, "modes", "wire,off", "underlay `modes`: wire cuts every frame to the MTU, off passes 64 KiB frames whole")
	flags.StringVar(&f.mtus, "mtus", "1500", "underlay `MTUs`")
	flags.StringVar(&f.rivals, "rivals", defaultRivals, "what to compare: `names`")
	flags.Var(&f.others, "rival", "a flannel-compatible daemon to compare with, as `name=program flags...`; repeatable")
	flags.BoolVar(&f.ablate, "ablation", false, "also our daemon without each ability of the kernel in turn")
	flags.IntVar(&f.rounds, "rounds", defaultRounds, "how `often` each rival has its turn at each workload")
	flags.Float64Var(&f.seconds.Measure, "seconds", 2, "`length` of a measurement")
	flags.Float64Var(&f.seconds.Probe, "probe", 0.5, "`length` of one probe of the search for the highest UDP rate, in seconds")
	flags.BoolVar(&f.quick, "quick", false, "few workloads, short and seldom: about two minutes; for a first look, not for publishing")
	flags.BoolVar(&f.full, "full", false, "everything: fan-out to 100 nodes, MTU 9000, --ablation; takes hours")
	flags.StringVar(&f.out, "out", "result.json", "`file` for the result")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "weft bench measures our daemon against its rivals on this machine. Usage: weft bench [flags]\n"+
			"       weft bench report [flags] RESULT.json\n       weft bench compare OLD.json NEW.json\n\n")
		flags.PrintDefaults()
		fmt.Fprintf(flags.Output(), "\nWorkloads:\n")
		for _, c := range bench.Cases() {
			fmt.Fprintf(flags.Output(), "  %-14s %s\n", c.Name, c.Title)
		}
	}
	if status, done := parseFlags(flags, args); done {
		return status
	}
	f.shorten(flags)
	if err := findDaemon(&f.weftd); err != nil {
		return fail(os.Stderr, err)
	}
	status, err := lab.Run(func() int { return measureInside(f) })
	if err != nil {
		return fail(os.Stderr, err)
	}
	return status
}

// shorten applies --quick and --full to what was not given by itself.
func (f *benchFlags) shorten(flags *flag.FlagSet) {
	given := map[string]bool{}
	flags.Visit(func(x *flag.Flag) { given[x.Name] = true })
	set := func(name string, apply func()) {
		if !given[name] {
			apply()
		}
	}
	if f.quick {
		set("cases", func() { f.cases = quickCases })
		set("rivals", func() { f.rivals = quickRivals })
		set("rounds", func() { f.rounds = quickRounds })
		set("seconds", func() { f.seconds.Measure = 0.5 })
		set("probe", func() { f.seconds.Probe = 0.2 })
	}
	if f.full {
		set("cases", func() { f.cases = fullCases })
		set("mtus", func() { f.mtus = fullMTUs })
		set("ablation", func() { f.ablate = true })
	}
}

// findDaemon fills in where our daemon is.
func findDaemon(path *string) error {
	if *path == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		*path = filepath.Join(filepath.Dir(self), "weftd")
	}
	if _, err := os.Stat(*path); err != nil {
		return fmt.Errorf("find the daemon: %w: build it (make build) or name it (--weftd)", err)
	}
	return nil
}

// measureInside runs as the lab's first process.
func measureInside(f benchFlags) int {
	// A generator that comes back from a system call must not wait for a place to run in: the kernel alone deals out the
	// CPUs here, as it would between processes.
	runtime.GOMAXPROCS(runtime.NumCPU() + bench.MostThreads)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := lab.NeedTUN(); err != nil {
		return fail(os.Stderr, err)
	}
	plan, err := f.plan(ctx)
	if err != nil {
		return fail(os.Stderr, err)
	}
	result, err := bench.Run(ctx, plan, bench.GatherFacts(cmp.Or(version, "unknown"), cmp.Or(commit, "unknown"), os.Args[1:]), os.Stdout)
	if err == nil {
		err = writeFile(f.out, result.Write)
	}
	if err != nil {
		return fail(os.Stderr, err)
	}
	fmt.Println()
	if err := result.Markdown(os.Stdout); err != nil {
		return fail(os.Stderr, err)
	}
	fmt.Printf("\nThe result is in %s; weft bench report %s makes a page of it.\n", f.out, f.out)
	return 0
}

func (f benchFlags) plan(ctx context.Context) (bench.Plan, error) {
	p := bench.Plan{Rounds: f.rounds, Seconds: f.seconds}
	var err error
	if p.Cases, err = bench.SelectCases(strings.Split(f.cases, ",")); err != nil {
		return p, fmt.Errorf("--cases: %w", err)
	}
	for _, text := range strings.Split(f.mtus, ",") {
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu < 1280 || mtu > 65535 {
			return p, fmt.Errorf("--mtus: %q is no MTU from 1280 to 65535", text)
		}
		for _, mode := range strings.Split(f.modes, ",") {
			if mode != string(lab.ModeWire) && mode != string(lab.ModeOff) {
				return p, fmt.Errorf("--modes: %q is neither %s nor %s", mode, lab.ModeWire, lab.ModeOff)
			}
			p.Environments = append(p.Environments, bench.Environment{Mode: lab.Mode(mode), MTU: mtu})
		}
	}
	if f.rounds < 1 || f.seconds.Measure <= 0 || f.seconds.Probe <= 0 {
		return p, errors.New("--rounds, --seconds and --probe: want more than nothing")
	}
	p.Rivals, err = f.rivalList(ctx)
	return p, err
}

// rivalList makes the rivals that the flags name.
func (f benchFlags) rivalList(ctx context.Context) ([]bench.Rival, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	known := append(bench.KernelRivals(), bench.WireGuard(f.weftd),
		bench.Weftd("weftd", "our daemon as it comes", f.weftd),
		bench.Weftd("portable", "our daemon with --engine=portable", f.weftd, "--engine=portable"), bench.Bare(self, "bench", "bare"))
	var list []bench.Rival
	for _, name := range strings.Split(f.rivals, ",") {
		found := false
		for _, r := range known {
			if r.Name == name {
				list, found = append(list, r), true
			}
		}
		if !found {
			return nil, fmt.Errorf("--rivals: no rival is called %q", name)
		}
	}
	if f.ablate {
		names, err := bench.AbilityNames(ctx, f.weftd)
		if err != nil {
			return nil, fmt.Errorf("--ablation: %w", err)
		}
		for _, name := range names {
			list = append(list, bench.Weftd("no-"+name, "our daemon with --engine-without="+name, f.weftd, "--engine-without="+name))
		}
	}
	for _, text := range f.others {
		name, argv, ok := strings.Cut(text, "=")
		if !ok || name == "" || len(strings.Fields(argv)) == 0 {
			return nil, fmt.Errorf("--rival: %q is not name=program", text)
		}
		list = append(list, bench.Other(name, strings.Fields(argv)...))
	}
	return list, nil
}

// writeFile writes a file by way of write; "-" is the standard output.
func writeFile(path string, write func(io.Writer) error) (err error) {
	if path == "-" {
		return write(os.Stdout)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return write(file)
}
