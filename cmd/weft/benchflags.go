package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"weft/bench"
	"weft/bench/report"
	"weft/deploy/lab"
)

// benchFlags is the command line of a measurement.
type benchFlags struct {
	weftd               string
	cases, modes, mtus  string
	targets             string
	others              []string
	rounds              int
	seconds             report.Seconds
	quick, full, ablate bool
	out                 string

	// Set by prepare.
	plan bench.Plan
	file *os.File // for the result
}

// Defaults, and the values that --quick and --full set.
const (
	defaultCases, quickCases = "tcp,udp,rtt,connect", "tcp-1,tcp-4,udp-64-1,rtt-idle"
	defaultTargets           = "none,vxlan,ipip,wireguard,weftd,fast,portable,bare"
	otherTargets             = "fou,wireguard-go"
	quickTargets             = "none,vxlan,weftd,portable"
	fullCases, fullMTUs      = "tcp,udp,rtt,connect,fan-out", "1500,9000"
	fullModes                = "wire,nic,off"

	defaultRounds, quickRounds, fullRounds = 5, 3, 10
)

// register adds the flags to flags.
func (f *benchFlags) register(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&f.weftd, "weftd", "", "`path` of weftd (default: in the directory of weft)")
	flags.StringVar(&f.cases, "cases", defaultCases,
		"`workloads` to measure, by name or prefix, such as udp or udp-64")
	flags.StringVar(&f.modes, "modes", "wire,off",
		"underlay `modes`: wire cuts every frame to the MTU, nic also offloads no checksums, "+
			"off passes 64 KiB frames whole")
	flags.StringVar(&f.mtus, "mtus", "1500", "underlay `MTUs`")
	flags.StringVar(&f.targets, "targets", defaultTargets,
		"`targets` to compare; others are "+otherTargets)
	flags.StringArrayVar(&f.others, "target", nil,
		"another daemon with flannel's flags, as `name=program flags...`; repeatable")
	flags.BoolVar(&f.ablate, "ablation", false,
		"also measure weftd without each kernel feature in turn")
	flags.IntVar(&f.rounds, "rounds", defaultRounds,
		"`number` of measurements per target and workload")
	flags.Float64Var(&f.seconds.Measure, "seconds", 2, "`duration` of a measurement in seconds")
	flags.Float64Var(&f.seconds.Probe, "probe", 0.5,
		"`duration` of a probe in the search for the highest UDP rate, in seconds")
	flags.BoolVar(&f.quick, "quick", false, "few short measurements, about two minutes; not for publication")
	flags.BoolVar(&f.full, "full", false, "also fan-out to 100 nodes, mode nic, MTU 9000, ten rounds and --ablation; takes many hours")
	flags.StringVar(&f.out, "out", "result.json", "`file` for the result; - is the standard output")
	flags.BoolFunc("json", "print the result, like --out=-", func(string) error {
		return flags.Set("out", "-")
	})
}

// applyPresets applies --quick and --full to the flags that were not given.
func (f *benchFlags) applyPresets(flags *pflag.FlagSet) {
	set := func(name string, apply func()) {
		if !flags.Changed(name) {
			apply()
		}
	}
	if f.quick {
		set("cases", func() { f.cases = quickCases })
		set("targets", func() { f.targets = quickTargets })
		set("rounds", func() { f.rounds = quickRounds })
		set("seconds", func() { f.seconds.Measure = 0.5 })
		set("probe", func() { f.seconds.Probe = 0.2 })
	}
	if f.full {
		set("cases", func() { f.cases = fullCases })
		set("mtus", func() { f.mtus = fullMTUs })
		set("modes", func() { f.modes = fullModes })
		set("rounds", func() { f.rounds = fullRounds })
		set("ablation", func() { f.ablate = true })
	}
}

// makePlan checks the flags and sets the plan, without the targets of --ablation.
func (f *benchFlags) makePlan() error {
	f.plan = bench.Plan{Rounds: f.rounds, Seconds: f.seconds}
	if f.rounds < 1 {
		return fmt.Errorf("--rounds: %d is less than 1", f.rounds)
	}
	if err := errors.Join(checkSeconds("--seconds", f.seconds.Measure),
		checkSeconds("--probe", f.seconds.Probe)); err != nil {
		return err
	}
	var err error
	if f.plan.Cases, err = bench.SelectCases(split(f.cases)); err != nil {
		return fmt.Errorf("--cases: %w", err)
	}
	if f.plan.Underlays, err = f.underlays(); err != nil {
		return err
	}
	if f.plan.Targets, err = f.targetList(); err != nil {
		return err
	}
	return checkDistinct(f.plan.Targets)
}

// checkSeconds returns an error if the duration of a measurement is out of range.
func checkSeconds(name string, s float64) error {
	if s >= 0.01 && s <= 3600 {
		return nil
	}
	return fmt.Errorf("%s: %v is out of range: want 0.01 to 3600", name, s)
}

// split splits a comma-separated list and trims spaces.
func split(list string) []string {
	parts := strings.Split(list, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// hasTarget reports whether --targets contains one of the names.
func (f benchFlags) hasTarget(names ...string) bool {
	return slices.ContainsFunc(split(f.targets),
		func(name string) bool { return slices.Contains(names, name) })
}

// underlays returns all combinations of --mtus and --modes.
func (f benchFlags) underlays() ([]report.Underlay, error) {
	var list []report.Underlay
	for _, text := range split(f.mtus) {
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu < 1280 || mtu > 65535 {
			return nil, fmt.Errorf("--mtus: %q is not an MTU: want 1280 to 65535", text)
		}
		for _, mode := range split(f.modes) {
			if !slices.Contains(lab.Modes(), lab.Mode(mode)) {
				return nil, fmt.Errorf("--modes: unknown mode %q: want %v", mode, lab.Modes())
			}
			u := report.Underlay{Mode: mode, MTU: mtu}
			if slices.Contains(list, u) {
				return nil, fmt.Errorf("--modes, --mtus: duplicate %s", u)
			}
			list = append(list, u)
		}
	}
	return list, nil
}

// checkDistinct returns an error if two targets have the same name.
func checkDistinct(targets []bench.Target) error {
	for i, t := range targets {
		if slices.ContainsFunc(targets[:i], func(x bench.Target) bool { return x.Name == t.Name }) {
			return fmt.Errorf("--targets, --target: duplicate target %q", t.Name)
		}
	}
	return nil
}

// targetName matches the allowed names of other daemons. Names are used in tables and on command
// lines.
var targetName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// targetList returns the targets of --targets and --target.
func (f benchFlags) targetList() ([]bench.Target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	known := append(bench.KernelTargets(), bench.WireGuard(f.weftd),
		bench.UserspaceWireGuard(f.weftd),
		bench.Weftd("weftd", "weftd with --fast-path=off", f.weftd, "--fast-path=off"),
		bench.FastPath("fast", f.weftd),
		bench.Weftd("portable", "weftd with --engine=portable", f.weftd, "--engine=portable",
			"--fast-path=off"),
		bench.Bare(self, "bench", "bare"))
	var list []bench.Target
	for _, name := range split(f.targets) {
		i := slices.IndexFunc(known, func(t bench.Target) bool { return t.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("--targets: unknown target %q: want names of %s,%s",
				name, defaultTargets, otherTargets)
		}
		list = append(list, known[i])
	}
	for _, text := range f.others {
		name, argv, _ := strings.Cut(text, "=")
		if len(strings.Fields(argv)) == 0 {
			return nil, fmt.Errorf("--target: %q is not name=program", text)
		}
		if !targetName.MatchString(name) {
			return nil, fmt.Errorf("--target: invalid name %q: want letters, digits and . _ -",
				name)
		}
		list = append(list, bench.Other(name, strings.Fields(argv)...))
	}
	return list, nil
}
