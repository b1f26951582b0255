package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/bench/clients"
	"weft/cmd/weft/cli"
)

// newBenchClients returns weft bench clients.
func newBenchClients() *cobra.Command {
	o := clients.Options{Patience: 2 * time.Minute}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "clients",
		Short: "measure one etcd with the store clients of many daemons",
		Long: "weft bench clients starts an etcd and the store clients of many daemons, and counts " +
			"what they ask of it: at their start, without changes, after an outage, and when all " +
			"restart. Figures are per client, except the memory.",
		Args: cli.Operands(),
		RunE: func(_ *cobra.Command, _ []string) error {
			weft, err := os.Executable()
			if err != nil {
				return err
			}
			o.Etcd = []string{weft, "bench", "etcd"}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			rows, err := clients.Measure(ctx, o, os.Stderr)
			if asJSON {
				return errors.Join(err, cli.WriteJSON(os.Stdout, rows))
			}
			return errors.Join(err, clients.WriteTable(os.Stdout, o, rows))
		},
	}
	cli.AddJSON(cmd, &asJSON)
	f := cmd.Flags()
	f.IntVar(&o.Clients, "clients", 1000, "number of clients")
	f.IntVar(&o.Leases, "leases", 0, "leases of other nodes")
	f.DurationVar(&o.Spread, "spread", time.Minute, "time over which the clients start")
	f.DurationVar(&o.Duration, "duration", time.Minute, "time of the measurement without changes")
	f.DurationVar(&o.Outage, "outage", 20*time.Second, "outage of etcd; 0: none")
	return cmd
}
