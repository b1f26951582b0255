// Command weftd is the node daemon: it leases a pod subnet for this machine and carries pod
// traffic to and from the other nodes.
//
// Flags, environment, files and ports are flannel's. Package config reads flags and environment,
// package agent runs the daemon. The command cleanup (cleanup.go) removes the kernel state that a
// stopped daemon leaves behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"weft/cmd/buildinfo"
	"weft/cmd/weft/cli"
	"weft/cmd/weftd/agent"
	"weft/cmd/weftd/config"
)

func main() {
	if filepath.Base(os.Args[0]) == toolName {
		root := cli.NewRoot(buildinfo.Read(version, commit))
		os.Exit(cli.Run(root, os.Args[1:]))
	}
	os.Exit(run(untilSignal(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// toolName is the name by which this program is the operator's tool without its lab: an image then
// holds one program, not two that share most of their code.
const toolName = "weft"

// untilSignal returns a context that is canceled by the first SIGINT or SIGTERM. The second one has
// its default effect and kills the process.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals)
		cancel(fmt.Errorf("signal: %v", s))
	}()
	return ctx
}

// run is main without access to the process. It returns the exit code: 0 if ctx ended it, 1 if it
// failed.
func run(
	ctx context.Context, args, environ []string, stdout, stderr io.Writer,
) int {
	if len(args) > 0 && args[0] == cleanupCommand {
		return cleanup(ctx, args[1:], stdout, stderr)
	}
	cfg, err := config.Parse(args, environ)
	switch {
	case errors.Is(err, config.ErrHelp):
		return exitCode(config.PrintUsage(stdout))
	case err != nil:
		fmt.Fprintf(stderr, "weftd: %v\n", err)
		return 1
	case cfg.ShowVersion:
		b := build()
		_, err := fmt.Fprintf(stdout, "weftd %s commit %s %s\n", b.Version, b.Commit, b.GoVersion)
		return exitCode(err)
	}
	log := newLogger(cfg.Log, stderr)
	logIgnored(cfg, log)
	if err := checkNetAdmin(); err != nil {
		log.Error("exiting", "err", err)
		return 1
	}
	if err := agent.Run(ctx, cfg, build(), log); err != nil {
		log.Error("exiting", "err", err)
		return 1
	}
	return 0
}

func exitCode(err error) int {
	if err != nil {
		return 1
	}
	return 0
}
