package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/cmd/control"
)

// nodeAnswer is a node's own account of itself, for weft status --all.
type nodeAnswer struct {
	ID      string     `json:"id,omitempty"`
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	// Ready and Reasons are the node's answer.
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
	// Error is why there is no answer.
	Error string `json:"error,omitempty"`
	// Foreign means that the node runs flannel, which has no answer of its own.
	Foreign bool `json:"foreign,omitempty"`
	// Paths are the paths to the other nodes; absent if its --metrics does not permit that.
	Paths []control.PeerPath `json:"paths,omitempty"`
}

// maxAsked is the number of nodes that are asked at the same time.
const maxAsked = 64

// showCluster prints the answers of all nodes. port is that of their health servers, or 0.
func showCluster(
	ctx context.Context, w io.Writer, asJSON bool, port uint16, self control.Status,
) error {
	answers, err := clusterAnswers(ctx, port, self)
	if err != nil {
		return err
	}
	return show(w, asJSON, answers, clusterScreen(answers))
}

// clusterAnswers returns the answers of all nodes. port is that of their health servers, or 0 for
// that of this node.
func clusterAnswers(
	ctx context.Context, port uint16, self control.Status,
) (answers []nodeAnswer, err error) {
	if port == 0 {
		if port, err = healthPort(self); err != nil {
			return nil, err
		}
	}
	return askCluster(ctx, self, port), nil
}

// healthPort returns the port of the health server among a daemon's flags; all nodes are taken to
// have the same.
func healthPort(s control.Status) (uint16, error) {
	port, err := strconv.ParseUint(s.Flags["healthz-port"], 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("--all: the daemons have no --healthz-port to ask; set --health-port")
	}
	return uint16(port), nil
}

// askCluster returns the answers of all nodes: this one, whose status is given, and those that it
// knows.
func askCluster(ctx context.Context, self control.Status, port uint16) []nodeAnswer {
	answers := make([]nodeAnswer, len(self.Nodes)+1)
	answers[0] = nodeAnswer{ID: self.ID(), Name: self.Node}
	answers[0].set(control.NewRow(self, time.Now()))
	if self.Interface != nil {
		answers[0].Address = self.Interface.Public
	}
	var wg sync.WaitGroup
	turns := make(chan struct{}, maxAsked)
	for i, n := range self.Nodes {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			answers[i+1] = askNode(ctx, n, port)
		})
	}
	wg.Wait()
	return answers
}

// askNode returns the answer of one node: its row, or less if that is not permitted.
func askNode(ctx context.Context, n control.Node, port uint16) nodeAnswer {
	a := nodeAnswer{ID: n.ID(), Name: n.DisplayName(), Address: n.Public}
	var row control.Row
	err := control.AskPeer(ctx, n, port, control.RowPath, &row)
	if withheld(err) {
		err = control.AskPeer(ctx, n, port, summaryPath, &row)
	}
	switch {
	case errors.Is(err, control.ErrNotServed):
		a.Foreign = true
	case err != nil:
		a.Error = err.Error()
	default:
		a.set(row)
	}
	return a
}

// set takes over a node's row, or a summary, which has a part of its fields.
func (a *nodeAnswer) set(row control.Row) {
	a.Ready, a.Reasons, a.Paths = row.Ready, unmet(row.Conditions), row.Paths
}

// summaryPath is the path of the health server that every client may read. For others than those on
// the node, the answer is a summary.
const summaryPath = "status"

// withheld reports whether a node answers, but does not have a path for this client.
func withheld(err error) bool {
	return errors.Is(err, control.ErrNotPermitted) || errors.Is(err, control.ErrNotServed)
}

// askStatus asks a node for its whole status, and for the summary if that is not permitted.
func askStatus(ctx context.Context, n control.Node, port uint16, v any) error {
	err := control.AskPeer(ctx, n, port, control.StatusPath, v)
	if withheld(err) {
		err = control.AskPeer(ctx, n, port, summaryPath, v)
	}
	return err
}

// unmet lists the conditions that are not met.
func unmet(conditions []control.Condition) []string {
	var reasons []string
	for _, c := range conditions {
		if !c.OK {
			reasons = append(reasons, c.Name+": "+c.Reason)
		}
	}
	return reasons
}

// maxMatrix is the number of nodes up to which the matrix fits a screen.
const maxMatrix = 16

// clusterScreen shows the nodes' answers, and the matrix of their paths in a small cluster.
func clusterScreen(answers []nodeAnswer) *screen {
	var p screen
	shares, head := kernelShares(answers), []string{"NODE", "ADDRESS"}
	if shares != nil {
		head = append(head, "KERNEL")
	}
	p.add(false, append(head, "STATE")...)
	for i, a := range answers {
		state := "ready"
		switch {
		case a.Error != "":
			state = "no answer: " + a.Error
		case a.Foreign:
			state = "flannel, no answer of its own"
		case !a.Ready:
			state = "NOT READY: " + strings.Join(a.Reasons, "; ")
		}
		cells := []string{a.Name, a.Address.String()}
		if shares != nil {
			cells = append(cells, shares[i])
		}
		p.add(a.Error != "" || !a.Ready && !a.Foreign, append(cells, state)...)
	}
	if len(answers) > maxMatrix {
		return &p
	}
	p.gap()
	head = []string{"FROM \\ TO"}
	for _, a := range answers {
		head = append(head, a.Name)
	}
	p.add(false, head...)
	for _, from := range answers {
		row, lossy := matrixRow(from, answers)
		p.add(lossy, row...)
	}
	return &p
}

// matrixRow describes the paths from a node to each of the others, and reports whether one of them
// is broken.
func matrixRow(from nodeAnswer, all []nodeAnswer) (cells []string, broken bool) {
	paths := map[string]control.PeerPath{}
	for _, p := range from.Paths {
		paths[p.ID] = p
	}
	cells = []string{from.Name}
	for _, to := range all {
		p, ok := paths[to.ID]
		switch {
		case to.ID == from.ID:
			cells = append(cells, "")
		case from.Paths == nil:
			cells = append(cells, "?")
		case !ok:
			cells, broken = append(cells, "unknown"), true
		default:
			cell, bad := pathCell(p)
			cells, broken = append(cells, cell), broken || bad
		}
	}
	return cells, broken
}

// pathCell describes a path, and reports whether it is broken.
func pathCell(p control.PeerPath) (cell string, broken bool) {
	switch {
	case p.Unreachable != "":
		return "unreachable", true
	case p.Refused != "":
		return "refused", true
	case p.Sent == 0: // not probed, or not yet
		return "-", false
	case p.Lost == p.Sent:
		return fmt.Sprintf("lost %d/%d", p.Lost, p.Sent), true
	}
	cell = fmt.Sprintf("%.2f ms", p.RTT*1e3)
	if p.Lost > 0 {
		cell += fmt.Sprintf(" lost %d/%d", p.Lost, p.Sent)
	}
	return cell, false
}
