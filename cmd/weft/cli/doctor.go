package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"weft/cmd/control"
	"weft/ctrl/doctor"
	"weft/dataplane/probe"
)

// newDoctor returns weft doctor.
func newDoctor() *cobra.Command {
	var (
		a            asking
		fix, verbose bool
		all          bool
		port         uint16
		o            = doctor.Options{Priority: probe.WorkerPriority}
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "find faults of the overlay on this node and name their causes",
		Long: "Finds faults of the overlay on this node and names the causes. Without a daemon, the kernel's\n" +
			"state alone is examined. docs/troubleshooting.md has a section for each finding.\n\n" +
			"With --all, the other nodes are judged by the answers of their health ports: whether they are\n" +
			"ready and why not, and more of those with --page=all. Filters and routes of a node are only\n" +
			"visible to a doctor there.\n\n" +
			"The exit status is 1 if there is a finding.",
		Args:    Operands(),
		PreRunE: a.permitted,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Status = a.rawStatus
			report := doctor.Examine(doctor.Gather(cmd.Context(), o))
			if fix {
				if _, err := report.Fix(cmd.ErrOrStderr()); err != nil {
					return err
				}
				report = doctor.Examine(doctor.Gather(cmd.Context(), o))
			}
			var err error
			if all {
				return examineCluster(cmd, &a, report, port)
			}
			if a.json {
				err = WriteJSON(cmd.OutOrStdout(), report)
			} else {
				err = report.Text(cmd.OutOrStdout(), lineWidth(cmd.OutOrStdout()), verbose)
			}
			if err == nil && len(report.Findings) > 0 {
				return statusError(statusProblem)
			}
			return err
		},
	}
	a.register(cmd)
	cmd.Flags().BoolVar(&fix, "fix", false, "write the settings that mend a finding without a risk, and look again")
	cmd.Flags().BoolVar(&all, "all", false, "judge the other nodes, too, by their daemons' answers")
	cmd.Flags().Uint16Var(&port, "health-port", 0,
		"`port` of the nodes' health servers for --all (default: this node's)")
	cmd.Flags().BoolVar(&o.Probe, "probe", true, "send a few packets to other nodes and to the store")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list the checks that found nothing, too")
	cmd.Flags().StringVar(&o.CNIDir, "cni-dir", doctor.DefaultCNIDir,
		"`directory` of the container runtime's CNI configuration")
	cmd.Flags().StringVar(&o.SubnetFile, "subnet-file", doctor.DefaultSubnetFile,
		"`path` of the daemon's subnet file")
	return cmd
}

// permitted returns an error if this user may not ask the daemon. Nor may such a user read packet
// filters or send echoes, so that a judgement would be wrong.
func (a *asking) permitted(cmd *cobra.Command, _ []string) error {
	if _, err := a.rawStatus(cmd.Context()); errors.Is(err, control.ErrPermission) {
		return err
	}
	return nil
}

// rawStatus returns the daemon's status as it is sent.
func (a *asking) rawStatus(ctx context.Context) ([]byte, error) {
	body, err := a.client().Stream(ctx, control.StatusPath, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}
