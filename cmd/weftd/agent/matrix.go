package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/cmd/control"
)

const (
	// rowAge is how long the answer of a node is used again, also for another client.
	rowAge = 2 * time.Second
	// rowErrorAge is the same for a node that has not answered.
	rowErrorAge = 10 * time.Second
	// rowsAsked is the number of nodes that are asked at the same time.
	rowsAsked = 32
	// rowsTimeout limits the time for the answers of all nodes.
	rowsTimeout = 4 * time.Second
)

// matrix collects the rows of the cluster's matrix from the nodes' health servers. It asks only for
// a request, and no node more often than once per rowAge.
type matrix struct {
	status func() control.Status
	// port returns the port of the other nodes' health servers for a request; 0: none is known.
	port func(*http.Request) (uint16, error)

	mu   sync.Mutex
	rows map[string]rowAnswer // by ID
}

// rowAnswer is the last answer of a node.
type rowAnswer struct {
	control.ClusterRow
	port  uint16
	until time.Time // when it is too old
}

func newMatrix(
	status func() control.Status, port func(*http.Request) (uint16, error),
) *matrix {
	return &matrix{status: status, port: port, rows: map[string]rowAnswer{}}
}

// fixedPort returns the port of this node's health server for every request.
func fixedPort(port int) func(*http.Request) (uint16, error) {
	return func(*http.Request) (uint16, error) { return uint16(port), nil }
}

// requestedPort returns the port that a request names, else that of this node's health server.
func requestedPort(port int) func(*http.Request) (uint16, error) {
	return func(r *http.Request) (uint16, error) {
		text := r.URL.Query().Get(control.PortParameter)
		if text == "" {
			return uint16(port), nil
		}
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("%s=%q: want a port from 1 to 65535", control.PortParameter, text)
		}
		return uint16(n), nil
	}
}

// ServeHTTP answers with the rows of the nodes that the request names, else of the first nodes.
func (m *matrix) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	port, err := m.port(r)
	ids := r.URL.Query()[control.NodeParameter]
	if err == nil && len(ids) > control.MaxRows {
		err = fmt.Errorf("%d nodes: want at most %d", len(ids), control.MaxRows)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	answerJSON(w, m.cluster(r.Context(), ids, port))
}

// cluster returns the matrix with the rows of the named nodes.
func (m *matrix) cluster(ctx context.Context, ids []string, port uint16) control.Cluster {
	status := m.status()
	nodes := make(map[string]control.Node, len(status.Nodes))
	for _, n := range status.Nodes {
		nodes[n.ID()] = n
	}
	nodes[status.ID()] = control.Node{Name: status.Node}
	c := control.Cluster{Nodes: len(nodes)}
	if port == 0 && len(nodes) > 1 {
		c.Note = "this daemon has no health port, so that of the others is not known either: " +
			"set --healthz-port to the same port on all nodes"
	}
	if len(ids) == 0 {
		ids = firstIDs(nodes, status.ID())
	}
	c.Rows = make([]control.ClusterRow, len(ids))
	ctx, cancel := context.WithTimeout(ctx, rowsTimeout)
	defer cancel()
	var wg sync.WaitGroup
	turns := make(chan struct{}, rowsAsked)
	for i, id := range ids {
		n, known := nodes[id]
		c.Rows[i] = control.ClusterRow{ID: id, Name: n.DisplayName()}
		switch {
		case id == status.ID():
			row := control.NewRow(status, time.Now())
			c.Rows[i].Row = &row
		case !known:
			c.Rows[i].Error = "not in the cluster"
		case port == 0:
			c.Rows[i].Error = "not asked"
		default:
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				c.Rows[i] = m.row(ctx, n, port)
			})
		}
	}
	wg.Wait()
	m.forgetOld()
	return c
}

// firstIDs returns the ID of this node and the first ones of others.
func firstIDs(nodes map[string]control.Node, self string) []string {
	ids := []string{self}
	for id := range nodes {
		if id != self {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids[1:])
	return ids[:min(len(ids), control.MaxRows)]
}

// row returns the row of a node, which is asked unless it has just answered.
func (m *matrix) row(ctx context.Context, n control.Node, port uint16) control.ClusterRow {
	m.mu.Lock()
	last, ok := m.rows[n.ID()]
	m.mu.Unlock()
	if ok && last.port == port && time.Now().Before(last.until) {
		return last.ClusterRow
	}
	a := rowAnswer{ClusterRow: control.ClusterRow{ID: n.ID(), Name: n.DisplayName()}, port: port}
	var row control.Row
	age := rowAge
	err := control.AskPeer(ctx, n, port, control.RowPath, &row)
	switch {
	case err == nil:
		a.Row = &row
	case ctx.Err() != nil: // of the whole request, so it says nothing of the node
		a.Error = "no answer in time"
		return a.ClusterRow
	default:
		a.Error, age = rowError(n, port, err), rowErrorAge
	}
	a.until = time.Now().Add(age)
	m.mu.Lock()
	m.rows[n.ID()] = a
	m.mu.Unlock()
	return a.ClusterRow
}

// rowError describes why a node has no row of its own.
func rowError(n control.Node, port uint16, err error) string {
	switch {
	case errors.Is(err, control.ErrNotPermitted):
		return "has an answer for itself only: --metrics there is local or off"
	case errors.Is(err, control.ErrNotServed):
		return "no answer of its own: flannel, or an older Weft"
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Sprintf("no answer of its own: nothing listens on port %d of %s "+
			"(flannel, or another --healthz-port or --healthz-ip)", port, n.Public)
	}
	return err.Error()
}

// forgetOld removes answers that are too old, so that their number stays bounded.
func (m *matrix) forgetOld() {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, a := range m.rows {
		if now.After(a.until) {
			delete(m.rows, name)
		}
	}
}

// rowHandler answers with the row of this node.
func rowHandler(read func() control.Status) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, control.NewRow(read(), time.Now()))
	})
}
