package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"weft/bench"
	"weft/bench/clients"
	"weft/bench/report"
	"weft/bench/traffic"
	"weft/cmd/buildinfo"
	"weft/cmd/weft/cli"
	"weft/deploy/lab"
)

// newBench returns weft bench with its own subcommands.
func newBench() *cobra.Command {
	var f benchFlags
	var workloads strings.Builder
	for _, c := range bench.Cases() {
		fmt.Fprintf(&workloads, "\n  %-16s %s", c.Name, c.Title)
	}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "compare the speed of weftd with other targets",
		Long: "weft bench measures weftd and other targets on this machine.\n\nWorkloads:" +
			workloads.String(),
		Args: cli.Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.applyPresets(cmd.Flags())
			if err := f.prepare(); err != nil {
				return err
			}
			status, err := lab.Run(func() int { return measureInside(f) })
			return errors.Join(err, cli.ExitStatus(status))
		},
	}
	f.register(cmd.Flags())
	cmd.AddCommand(newBenchReport(), newBenchCompare(), newBenchScale(), newBenchClients(), &cobra.Command{
		Use: "bare", Hidden: true, DisableFlagParsing: true, // started by the target of that name
		RunE: func(_ *cobra.Command, args []string) error { return bench.RunBare(args) },
	}, &cobra.Command{
		Use: "etcd", Hidden: true, DisableFlagParsing: true, // started by weft bench clients
		RunE: func(_ *cobra.Command, args []string) error { return clients.Serve(args) },
	})
	return cmd
}

// measureInside runs as the lab's first process.
func measureInside(f benchFlags) int {
	traffic.RaiseGOMAXPROCS()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGINT,
		syscall.SIGTERM)
	defer stop()
	if err := f.run(ctx, f.progress()); err != nil {
		return cli.Fail(os.Stderr, err)
	}
	return 0
}

// prepare checks the flags and opens the result file before the lab is created. The lab has its own
// /run, so a path may mean another file inside it.
func (f *benchFlags) prepare() error {
	if f.ablate || f.hasTarget("weftd", "fast", "portable", "wireguard", "wireguard-go") {
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

// progress returns the writer for progress and tables: the standard output, unless the result goes
// there.
func (f benchFlags) progress() io.Writer {
	if f.file == os.Stdout {
		return os.Stderr
	}
	return os.Stdout
}

// run measures inside a lab, then saves and prints the result, even an incomplete one.
func (f benchFlags) run(ctx context.Context, progress io.Writer) error {
	if f.ablate || len(f.others) > 0 || f.hasTarget("weftd", "fast", "portable", "bare") {
		if err := lab.CheckTUN(); err != nil {
			return err
		}
	}
	if err := f.addAblation(ctx); err != nil {
		return err
	}
	build := buildinfo.Read(version, commit)
	host := report.ReadHost(build.Version, build.Commit, os.Args[1:])
	if host.Privileges != "root" {
		fmt.Fprint(progress, limitedNote)
	}
	result, err := bench.Run(ctx, f.plan, host, progress)
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
	fmt.Fprintln(progress)
	shown := result.Tables(progress)
	if saved == nil && f.file != os.Stdout {
		fmt.Fprintf(progress, "\nThe result is in %s; weft bench report %s writes a page with charts.\n", f.out, f.out)
	}
	return errors.Join(err, saved, shown)
}

// limitedNote is for runs in a user namespace or with few capabilities.
const limitedNote = `Running with limited privileges: no priority for weftd's workers and no large socket buffers.
The kernel's tunnels need neither, so weftd looks slower than in production; use sudo for figures to
publish.

`

// save writes the result over the file's old content.
func (f benchFlags) save(result *report.Result) error {
	if f.file == os.Stdout {
		return result.Write(f.file)
	}
	info, err := f.file.Stat()
	if err == nil && info.Mode().IsRegular() { // devices and pipes have no length
		err = f.file.Truncate(0)
	}
	return errors.Join(err, result.Write(f.file), f.file.Close())
}

// addAblation adds targets that are weftd without each of the kernel features that it uses on this
// machine.
func (f *benchFlags) addAblation(ctx context.Context) error {
	if !f.ablate {
		return nil
	}
	names, err := bench.UsedFeatures(ctx, f.weftd)
	if err != nil {
		return fmt.Errorf("--ablation: %w", err)
	}
	for _, name := range names {
		flag := "--engine-without=" + name
		f.plan.Targets = append(f.plan.Targets,
			bench.Weftd("no-"+name, "weftd with "+flag, f.weftd, flag))
	}
	return checkDistinct(f.plan.Targets)
}
