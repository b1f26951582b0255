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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"weft/bench"
	"weft/bench/traffic"
	"weft/deploy/lab"
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

	// What prepare makes of them.
	plan bench.Plan
	file *os.File // to write the result to
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
	f, status, done := parseBench(args)
	if done {
		return status
	}
	if err := f.prepare(); err != nil {
		return fail(os.Stderr, err)
	}
	status, err := lab.Run(func() int { return measureInside(f) })
	if err != nil {
		return fail(os.Stderr, err)
	}
	return status
}

// parseBench reads the flags; done means that there is nothing to measure.
func parseBench(args []string) (f benchFlags, status int, done bool) {
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
	flags.StringVar(&f.out, "out", "result.json", "`file` for the result; - is the standard output")
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
		return f, status, done
	}
	f.shorten(flags)
	return f, 0, false
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
	traffic.RaiseGOMAXPROCS()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := f.run(ctx, f.screen()); err != nil {
		return fail(os.Stderr, err)
	}
	return 0
}

// prepare does what can go wrong before the lab is there, and before hours of measuring. The file is opened here since the
// lab has a /run of its own.
func (f *benchFlags) prepare() error {
	if f.ablate || f.names("weftd", "portable", "wireguard") {
		if err := findDaemon(&f.weftd); err != nil {
			return err
		}
	}
	if err := f.makePlan(); err != nil {
		return err
	}
	f.file = os.Stdout
	if f.out == "-" {
		return nil
	}
	var err error
	if f.file, err = os.OpenFile(f.out, os.O_WRONLY|os.O_CREATE, 0o666); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}

// screen is for people: the standard output, unless that is for the result.
func (f benchFlags) screen() io.Writer {
	if f.file == os.Stdout {
		return os.Stderr
	}
	return os.Stdout
}

// run measures inside a lab, and saves and shows what there is at the end, also when something came in between.
func (f benchFlags) run(ctx context.Context, screen io.Writer) error {
	if f.ablate || len(f.others) > 0 || f.names("weftd", "portable", "bare") {
		if err := lab.CheckTUN(); err != nil {
			return err
		}
	}
	if err := f.addAblation(ctx); err != nil {
		return err
	}
	result, err := bench.Run(ctx, f.plan, bench.GatherFacts(cmp.Or(version, "unknown"), cmp.Or(commit, "unknown"), os.Args[1:]), screen)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	if len(result.Series) == 0 {
		return err
	}
	if err != nil {
		result.Incomplete = err.Error()
	}
	saved := f.save(result)
	fmt.Fprintln(screen)
	shown := result.Markdown(screen)
	if saved == nil && f.file != os.Stdout {
		fmt.Fprintf(screen, "\nThe result is in %s; weft bench report %s makes a page of it.\n", f.out, f.out)
	}
	return errors.Join(err, saved, shown)
}

// save writes the result, in place of what the file held before.
func (f benchFlags) save(result *bench.Result) error {
	if f.file == os.Stdout {
		return result.Write(f.file)
	}
	info, err := f.file.Stat()
	if err == nil && info.Mode().IsRegular() { // devices and pipes have no length
		err = f.file.Truncate(0)
	}
	return errors.Join(err, result.Write(f.file), f.file.Close())
}

// makePlan checks the flags and makes the plan of them, all but the rivals of --ablation.
func (f *benchFlags) makePlan() error {
	f.plan = bench.Plan{Rounds: f.rounds, Seconds: f.seconds}
	if f.rounds < 1 {
		return fmt.Errorf("--rounds: %d is less than 1", f.rounds)
	}
	if err := errors.Join(checkSeconds("--seconds", f.seconds.Measure), checkSeconds("--probe", f.seconds.Probe)); err != nil {
		return err
	}
	var err error
	if f.plan.Cases, err = bench.SelectCases(split(f.cases)); err != nil {
		return fmt.Errorf("--cases: %w", err)
	}
	if f.plan.Environments, err = f.environments(); err != nil {
		return err
	}
	if f.plan.Rivals, err = f.rivalList(); err != nil {
		return err
	}
	return distinct(f.plan.Rivals)
}

// checkSeconds keeps measurements long enough to measure something and short enough to end.
func checkSeconds(name string, s float64) error {
	if s >= 0.01 && s <= 3600 {
		return nil
	}
	return fmt.Errorf("%s: %v is not from 0.01 to 3600", name, s)
}

// split cuts a list at its commas; blanks around them do not matter.
func split(list string) []string {
	parts := strings.Split(list, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// names says whether --rivals names one of these.
func (f benchFlags) names(oneOf ...string) bool {
	return slices.ContainsFunc(split(f.rivals), func(name string) bool { return slices.Contains(oneOf, name) })
}

// environments are all modes with all MTUs.
func (f benchFlags) environments() ([]bench.Environment, error) {
	var list []bench.Environment
	for _, text := range split(f.mtus) {
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu < 1280 || mtu > 65535 {
			return nil, fmt.Errorf("--mtus: %q is no MTU from 1280 to 65535", text)
		}
		for _, mode := range split(f.modes) {
			if mode != string(lab.ModeWire) && mode != string(lab.ModeOff) {
				return nil, fmt.Errorf("--modes: %q is neither %s nor %s", mode, lab.ModeWire, lab.ModeOff)
			}
			e := bench.Environment{Mode: lab.Mode(mode), MTU: mtu}
			if slices.Contains(list, e) {
				return nil, fmt.Errorf("--modes, --mtus: %s is given twice", e)
			}
			list = append(list, e)
		}
	}
	return list, nil
}

// distinct refuses two rivals of one name: nobody could tell their figures apart.
func distinct(rivals []bench.Rival) error {
	for i, r := range rivals {
		if slices.ContainsFunc(rivals[:i], func(x bench.Rival) bool { return x.Name == r.Name }) {
			return fmt.Errorf("--rivals, --rival: two rivals are called %q", r.Name)
		}
	}
	return nil
}

// rivalName is what the names of other daemons consist of, which stand in tables, pages and on command lines.
var rivalName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// rivalList makes the rivals that --rivals and --rival name.
func (f benchFlags) rivalList() ([]bench.Rival, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	known := append(bench.KernelRivals(), bench.WireGuard(f.weftd),
		bench.Weftd("weftd", "our daemon as it comes", f.weftd),
		bench.Weftd("portable", "our daemon with --engine=portable", f.weftd, "--engine=portable"), bench.Bare(self, "bench", "bare"))
	var list []bench.Rival
	for _, name := range split(f.rivals) {
		i := slices.IndexFunc(known, func(r bench.Rival) bool { return r.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("--rivals: no rival is called %q: there are %s", name, defaultRivals)
		}
		list = append(list, known[i])
	}
	for _, text := range f.others {
		name, argv, _ := strings.Cut(text, "=")
		if len(strings.Fields(argv)) == 0 {
			return nil, fmt.Errorf("--rival: %q is not name=program", text)
		}
		if !rivalName.MatchString(name) {
			return nil, fmt.Errorf("--rival: the name %q has other characters than letters, digits and . _ -, or none", name)
		}
		list = append(list, bench.Other(name, strings.Fields(argv)...))
	}
	return list, nil
}

// addAblation adds our daemon without each of the abilities that it finds here.
func (f *benchFlags) addAblation(ctx context.Context) error {
	if !f.ablate {
		return nil
	}
	names, err := bench.AbilityNames(ctx, f.weftd)
	if err != nil {
		return fmt.Errorf("--ablation: %w", err)
	}
	for _, name := range names {
		f.plan.Rivals = append(f.plan.Rivals, bench.Weftd("no-"+name, "our daemon with --engine-without="+name, f.weftd, "--engine-without="+name))
	}
	return distinct(f.plan.Rivals)
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
