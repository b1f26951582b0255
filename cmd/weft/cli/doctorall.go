package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"weft/cmd/control"
	"weft/ctrl/doctor"
)

// nodeReport is the report on one node.
type nodeReport struct {
	Name    string         `json:"name"`
	Address netip.Addr     `json:"address,omitzero"`
	Error   string         `json:"error,omitempty"` // why there is no report
	Report  *doctor.Report `json:"report,omitempty"`
}

// examineCluster prints the reports on all nodes: own is that on this node.
func examineCluster(cmd *cobra.Command, a *asking, own doctor.Report, port uint16) error {
	self, err := a.client().Status(cmd.Context())
	if err != nil {
		return err
	}
	if port == 0 {
		if port, err = healthPort(self); err != nil {
			return err
		}
	}
	reports := append([]nodeReport{{Name: self.Node, Report: &own}},
		examineNodes(cmd.Context(), self.Nodes, port)...)
	if a.json {
		err = WriteJSON(cmd.OutOrStdout(), reports)
	} else {
		err = printReports(cmd, reports)
	}
	for _, r := range reports {
		if err == nil && (r.Error != "" || len(r.Report.Findings) > 0) {
			return statusError(statusProblem)
		}
	}
	return err
}

// examineNodes judges the other nodes by their answers.
func examineNodes(ctx context.Context, nodes []control.Node, port uint16) []nodeReport {
	reports := make([]nodeReport, len(nodes))
	var wg sync.WaitGroup
	turns := make(chan struct{}, maxAsked)
	for i, n := range nodes {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			reports[i] = examineNode(ctx, n, port)
		})
	}
	wg.Wait()
	return reports
}

func examineNode(ctx context.Context, n control.Node, port uint16) nodeReport {
	r := nodeReport{Name: n.Name, Address: n.Public}
	var status json.RawMessage
	err := askStatus(ctx, n, port, &status)
	var facts *doctor.Facts
	if err == nil {
		facts, err = doctor.StatusFacts(status, time.Now())
	}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	report := doctor.Examine(facts)
	r.Report = &report
	return r
}

// printReports prints the report on this node, and the findings on the others.
func printReports(cmd *cobra.Command, reports []nodeReport) error {
	w := cmd.OutOrStdout()
	for i, r := range reports {
		fmt.Fprintln(w, "==", r.Name)
		switch {
		case r.Error != "":
			fmt.Fprintf(w, "✗ no answer: %s\n\n", r.Error)
		case i > 0 && len(r.Report.Findings) == 0:
			fmt.Fprintf(w, "✓ nothing found in its answer\n\n")
		default:
			if err := r.Report.Text(w, lineWidth(w), false); err != nil {
				return err
			}
			fmt.Fprintln(w)
		}
	}
	return nil
}
