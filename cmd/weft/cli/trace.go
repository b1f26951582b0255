package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"weft/ctrl/doctor"
	"weft/dataplane/probe"
)

// newTrace returns weft trace.
func newTrace() *cobra.Command {
	var (
		a    asking
		send bool
		port uint16
		o    = doctor.Options{Priority: probe.WorkerPriority}
	)
	cmd := &cobra.Command{
		Use:   "trace SRC DST [PROTOCOL[/PORT]]",
		Short: "follow a packet through this node and tell whether it arrives",
		Long: "Follows the first packet of a connection through this node and shows the evidence of each step:\n" +
			"neighbours, routes and policy rules, packet filters, devices, the node that has the destination,\n" +
			"the underlay and the MTU. SRC is a pod of this node, this host, or, for the second half of the\n" +
			"way, a pod of another node. PROTOCOL is icmp, tcp or udp.\n\n" +
			"With --send, it sends marked packets from this host. This node and the other one look for them\n" +
			"on their bridge, overlay device and interface, and without an answer the last step tells where\n" +
			"they ended.\n\n" +
			"The exit status is 1 if the packet does not arrive, and 4 if nothing certain keeps it but a step\n" +
			"could not be judged.",
		Example: "  weft trace 10.5.1.2 10.5.2.3 tcp/80\n  weft trace 10.5.1.1 10.5.2.3 --send",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 && len(args) != 3 {
				return usageError{cmd, errors.New("want SRC DST and optionally a protocol")}
			}
			return nil
		},
		PreRunE: a.permitted,
		RunE: func(cmd *cobra.Command, args []string) error {
			flow, err := doctor.ParseFlow(args[0], args[1], append(args, "")[2])
			if err != nil {
				return usageError{cmd, err}
			}
			o.Status, o.Watch = a.rawStatus, a.watch(port)
			trace, err := doctor.TraceFlow(cmd.Context(), flow, o, send)
			if err != nil {
				return err
			}
			if a.json {
				err = WriteJSON(cmd.OutOrStdout(), trace)
			} else {
				err = trace.Text(cmd.OutOrStdout(), lineWidth(cmd.OutOrStdout()))
			}
			if err != nil {
				return err
			}
			return ExitStatus(map[doctor.Outcome]int{doctor.Passes: 0, doctor.Fails: statusProblem,
				doctor.Unknown: statusUnknown}[trace.Arrives])
		},
	}
	a.register(cmd)
	cmd.Flags().BoolVar(&send, "send", false, "send such packets from this host and show where they end")
	cmd.Flags().Uint16Var(&port, "health-port", 0,
		"`port` of the other node's health server for --send (default: this node's)")
	cmd.Flags().StringVar(&o.SubnetFile, "subnet-file", doctor.DefaultSubnetFile,
		"`path` of the daemon's subnet file")
	return cmd
}
