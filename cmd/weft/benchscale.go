package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/bench/scale"
	"weft/cmd/weft/cli"
	"weft/deploy/lab"
)

// newBenchScale returns weft bench scale.
func newBenchScale() *cobra.Command {
	o := scale.Options{Patience: time.Minute}
	var daemon, weftd string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "measure one daemon among thousands of nodes that come and go",
		Long: "weft bench scale runs one daemon with a real etcd and the leases of many nodes, " +
			"changes leases, and follows packets to the nodes that own them.",
		Args: cli.Operands(),
		RunE: func(_ *cobra.Command, _ []string) error {
			o.Daemon = strings.Fields(daemon)
			if daemon == "" {
				if err := findDaemon(&weftd); err != nil {
					return err
				}
				o.Daemon = []string{weftd, "--iptables-forward-rules=false"}
			}
			status, err := lab.Run(func() int { return scaleInside(o, asJSON) })
			return errors.Join(err, cli.ExitStatus(status))
		},
	}
	f := cmd.Flags()
	f.StringVar(&weftd, "weftd", "", "weftd to measure; default: beside weft, else in PATH")
	f.StringVar(&daemon, "daemon", "", "command line of another daemon to measure instead")
	f.StringVar(&o.Backend, "backend", "udp", "udp or vxlan")
	f.IntVar(&o.Leases, "leases", 10_000, "leases of other nodes")
	f.IntSliceVar(&o.Rates, "rates", []int{10, 100, 1000}, "changes per second")
	f.DurationVar(&o.Duration, "duration", 20*time.Second, "time of each measurement")
	f.DurationVar(&o.Outage, "outage", 10*time.Second, "outage of the store; 0: none")
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

// scaleInside runs as the lab's first process.
func scaleInside(o scale.Options, asJSON bool) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	figures, err := scale.Measure(ctx, o, os.Stderr)
	switch {
	case figures != nil && asJSON:
		err = errors.Join(err, cli.WriteJSON(os.Stdout, figures))
	case figures != nil:
		err = errors.Join(err, figures.Write(os.Stdout))
	}
	if err != nil {
		return cli.Fail(os.Stderr, err)
	}
	return 0
}
