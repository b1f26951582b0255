package cli

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"weft/ctrl/conntest"
	"weft/dataplane/probe"
)

// testPlan describes the test that one pod of Kubernetes does.
type testPlan struct {
	Node     string            `json:"node"`
	Host     bool              `json:"host"` // the pod has the network of its node
	Port     uint16            `json:"port"`
	Targets  []conntest.Target `json:"targets"`
	Services []netip.AddrPort  `json:"services"`
}

// newTestAnswer returns weft test answer, which the pods of Kubernetes run.
func newTestAnswer() *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:    "answer",
		Short:  "answer weft test in this network namespace only",
		Args:   Operands(),
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			var s conntest.Server
			if err := s.Listen(port); err != nil {
				return err
			}
			return s.Serve(ctx)
		},
	}
	cmd.Flags().Uint16Var(&port, "port", conntest.DefaultPort, "TCP and UDP `port` to listen on")
	return cmd
}

// newTestRun returns weft test run, which does the test of one pod of Kubernetes.
func newTestRun() *cobra.Command {
	return &cobra.Command{
		Use:    "run",
		Short:  "do the test that the standard input describes, and print its results as JSON",
		Args:   Operands(),
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var plan testPlan
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&plan); err != nil {
				return fmt.Errorf("read the plan: %w", err)
			}
			// Whether there is a fast path is not known here: both of its ways are tested.
			source := conntest.Source{Node: plan.Node, Port: plan.Port, Services: plan.Services,
				Priority: probe.WorkerPriority}
			if plan.Host {
				source.Host = conntest.Here{}
			} else {
				source.Pod = conntest.Here{}
			}
			return WriteJSON(cmd.OutOrStdout(), conntest.Run(cmd.Context(), source, plan.Targets))
		},
	}
}
