// Command weftd is the node daemon: it leases a pod subnet for this machine and
// carries pod traffic to and from the other nodes.
//
// Flags, environment, files and ports are flannel's. This package is the wiring
// and nothing else: flags become a config (flags.go, env.go, values.go), a config
// becomes the running parts (run.go, the only place where the packages of the
// module meet), and what they say becomes subnet.env, /readyz and /metrics. The
// command cleanup (cleanup.go) removes what a stopped daemon leaves in the kernel.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// errHelp asks for the usage text.
var errHelp = errors.New("help wanted")

func main() {
	os.Exit(run(untilSignal(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. By
// then the next one has its default effect again, and kills.
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

// run is the program with everything it takes from the process as arguments. It
// returns the exit code: 0 when ctx ended it, 1 when it could not start or go on.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == cleanupCommand {
		return cleanup(ctx, args[1:], stdout, stderr)
	}
	cfg, err := parse(args, getenv)
	switch {
	case errors.Is(err, errHelp):
		return printed(printUsage(stdout))
	case err != nil:
		fmt.Fprintf(stderr, "weftd: %v\n", err)
		return 1
	case cfg.showVersion:
		b := buildInfo()
		_, err := fmt.Fprintf(stdout, "weftd %s commit %s %s\n", b.Version, b.Commit, b.GoVersion)
		return printed(err)
	}
	log := newLogger(cfg, stderr)
	noteFlags(cfg, log)
	if err := serve(ctx, cfg, log); err != nil {
		log.Error("weftd stops", "err", err)
		return 1
	}
	return 0
}

func printed(err error) int {
	if err != nil {
		return 1
	}
	return 0
}

// parse reads the command line, then the environment. With --version nothing
// else matters, so the environment is not looked at.
func parse(args []string, getenv func(string) string) (*config, error) {
	var c config
	all := options(&c)
	given, err := parseArgs(all, args)
	if err != nil || c.showVersion {
		return &c, err
	}
	if err := applyEnv(all, given, getenv); err != nil {
		return &c, err
	}
	c.nodeName = cmp.Or(c.nodeName, getenv("NODE_NAME"))
	c.kube.pod, c.kube.namespace = getenv("POD_NAME"), getenv("POD_NAMESPACE")
	c.wireGuardKey = cmp.Or(getenv("WIREGUARD_KEY_FILE"), "/run/flannel/wgkey")
	return &c, c.check()
}
