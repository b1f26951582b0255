package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/cmd/control"
)

// nodeAnswer is a node's own account of itself, for weft status --all.
type nodeAnswer struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	// Ready and Reasons are the node's answer.
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
	// Error is why there is no answer.
	Error string `json:"error,omitempty"`
	// Nodes are the other nodes as the node sees them; absent if its --page does not permit that.
	Nodes []control.Node `json:"nodes,omitempty"`
}

const (
	// answerTimeout limits the time for the answer of one node.
	answerTimeout = 3 * time.Second
	// maxAsked is the number of nodes that are asked at the same time.
	maxAsked = 64
	// maxAnswer limits the answer of one node, in bytes: the status of 10,000 nodes has about 4 MB.
	maxAnswer = 32 << 20
)

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
	answers[0] = nodeAnswer{Name: self.Node, Ready: self.Ready, Nodes: self.Nodes,
		Reasons: unmet(self.Conditions)}
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

// askNode returns the answer of one node.
func askNode(ctx context.Context, n control.Node, port uint16) nodeAnswer {
	a := nodeAnswer{Name: n.Name, Address: n.Public}
	var s control.Status // a summary has a part of its fields
	if err := askStatus(ctx, n, port, &s); err != nil {
		a.Error = err.Error()
		return a
	}
	a.Ready, a.Reasons, a.Nodes = s.Ready, unmet(s.Conditions), s.Nodes
	return a
}

// askStatus asks a node for its whole status, and for the summary if that is not permitted.
func askStatus(ctx context.Context, n control.Node, port uint16, v any) error {
	base := url.URL{Scheme: "http",
		Host: net.JoinHostPort(n.Public.String(), strconv.Itoa(int(port)))}
	err := getJSON(ctx, base.JoinPath(control.StatusPath), v)
	if errors.Is(err, errNotPermitted) {
		err = getJSON(ctx, base.JoinPath("status"), v)
	}
	return err
}

// errNotPermitted means that a node keeps a path from other hosts.
var errNotPermitted = errors.New("not permitted")

func getJSON(ctx context.Context, u *url.URL, v any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(v)
	case http.StatusForbidden, http.StatusNotFound:
		return errNotPermitted
	}
	return errors.New(response.Status)
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
	p.add(false, "NODE", "ADDRESS", "STATE")
	for _, a := range answers {
		state := "ready"
		switch {
		case a.Error != "":
			state = "no answer: " + a.Error
		case !a.Ready:
			state = "NOT READY: " + strings.Join(a.Reasons, "; ")
		}
		p.add(a.Error != "" || !a.Ready, a.Name, a.Address.String(), state)
	}
	if len(answers) > maxMatrix {
		return &p
	}
	p.gap()
	head := []string{"FROM \\ TO"}
	for _, a := range answers {
		head = append(head, a.Address.String())
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
	seen := map[netip.Addr]control.Node{}
	for _, n := range from.Nodes {
		seen[n.Public] = n
	}
	cells = []string{from.Address.String()}
	for _, to := range all {
		n, ok := seen[to.Address]
		switch rtt, loss, _ := pathCells(n.Path, n.Path6); {
		case to.Address == from.Address:
			cells = append(cells, "")
		case len(from.Nodes) == 0:
			cells = append(cells, "?")
		case !ok:
			cells, broken = append(cells, "unknown"), true
		case n.Unreachable != "":
			cells, broken = append(cells, "unreachable"), true
		case n.Error != "":
			cells, broken = append(cells, "refused"), true
		case loss == "-": // not probed, or not yet
			cells = append(cells, "-")
		case rtt == "-":
			cells, broken = append(cells, fmt.Sprintf("lost %s", loss)), true
		default:
			cells = append(cells, rtt)
		}
	}
	return cells, broken
}
