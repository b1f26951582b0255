package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"weft/lease"
)

// roster is what the reflector has told: the lease of every node. It is a cache.ReflectorStore, which keeps of each Node
// only what a lease holds, so that a change of anything else (a kubelet writes its Node every few minutes) costs no list.
type roster struct {
	names annotations
	log   *slog.Logger

	mu       sync.Mutex // guards what is below
	network  lease.Network
	nodes    map[string]record // by name
	synced   bool              // nodes is complete
	revision int64
	trouble  error // why the API server does not answer; nil: it does
	own      ownNode
	ownSeen  func(*corev1.Node) // told every version of our own node
	changed  chan struct{}      // closed and replaced by every change of what Watch looks at
}

// record is one node. The Node itself is kept in the little that it takes to read it again under another network.
type record struct {
	node  *corev1.Node // pared
	lease lease.Lease
	ok    bool   // it has a lease
	wrong string // what was said to be wrong with it
}

// ownNode is our own node as we wrote it last, to notice that it is no longer so.
type ownNode struct {
	name     string
	revision int64       // resource version of what we wrote
	attrs    lease.Attrs // what we want to say
	lost     error       // it says something else
}

func newRoster(names annotations, log *slog.Logger, ownSeen func(*corev1.Node)) *roster {
	return &roster{names: names, log: log, ownSeen: ownSeen, nodes: map[string]record{}, changed: make(chan struct{})}
}

// wake tells every Watch to look again. The caller holds mu.
func (r *roster) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// setNetwork reads all nodes again if the network is another than before.
func (r *roster) setNetwork(n lease.Network) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.network
	r.network = n
	if before.Network == n.Network && before.IPv6Network == n.IPv6Network &&
		before.EnableIPv4 == n.EnableIPv4 && before.EnableIPv6 == n.EnableIPv6 {
		return
	}
	for _, rec := range r.nodes {
		r.read(rec.node)
	}
	r.wake()
}

func (r *roster) currentNetwork() lease.Network {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.network
}

// setOwn notes what we say of ourselves and the Node that came of it.
func (r *roster) setOwn(n *corev1.Node, a lease.Attrs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own = ownNode{name: n.Name, revision: revisionOf(n.ResourceVersion), attrs: a}
}

// judge looks whether our own node, as the API server tells it now, still says what we want. The caller holds mu.
func (r *roster) judge(n *corev1.Node) {
	if n.Name == r.own.name {
		r.ownSeen(n)
	}
	if n.Name != r.own.name || revisionOf(n.ResourceVersion) < r.own.revision || n.Annotations[r.names.managed] != "true" {
		return // another's, older than our last word, or without a lease, which the list shows
	}
	says, _ := published(n, r.names, r.own.attrs)
	var differ []string
	for name := range changes(n, r.names, says) {
		differ = append(differ, name)
	}
	if len(differ) > 0 {
		slices.Sort(differ)
		r.own.lost = fmt.Errorf("%w: annotations of node %s no longer say what they should: %q", lease.ErrLost, n.Name, differ)
	}
}

// read takes over one node. The caller holds mu.
func (r *roster) read(n *corev1.Node) bool {
	before := r.nodes[n.Name]
	l, ok, err := leaseOf(n, r.names, r.network)
	now := record{node: r.pared(n), lease: l, ok: ok}
	if err != nil {
		now.wrong = err.Error()
	}
	if now.wrong != "" && now.wrong != before.wrong {
		r.log.Warn("what a node says of itself is wrong, that part is left out", "node", n.Name, "err", err)
	}
	r.nodes[n.Name] = now
	return before.ok != ok || ok && !before.lease.Equal(l)
}

// pared is a copy of n with nothing but what is looked at here: of a Node that a kubelet keeps, a twentieth.
func (r *roster) pared(n *corev1.Node) *corev1.Node {
	p := &corev1.Node{}
	p.Name, p.ResourceVersion = n.Name, n.ResourceVersion
	p.Annotations = map[string]string{}
	for _, name := range r.names.all() {
		if text, ok := n.Annotations[name]; ok {
			p.Annotations[name] = text
		}
	}
	p.Spec.PodCIDR, p.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			p.Status.Conditions = []corev1.NodeCondition{c}
		}
	}
	return p
}

// Transformer has the reflector pare Nodes down one by one as a list comes in, so that it never holds all of them whole:
// measured with 5,000 nodes, the daemon takes 72 MiB instead of 103.
func (r *roster) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		n, err := asNode(obj)
		if err != nil {
			return nil, err
		}
		return r.pared(n), nil
	}
}

// Add is Update.
func (r *roster) Add(obj any) error { return r.Update(obj) }

// Update takes over one node.
func (r *roster) Update(obj any) error {
	n, err := asNode(obj)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revision = max(r.revision, revisionOf(n.ResourceVersion))
	r.judge(n)
	if r.read(n) || r.own.lost != nil {
		r.wake()
	}
	return nil
}

// Delete drops one node.
func (r *roster) Delete(obj any) error {
	n, err := asNode(obj)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revision = max(r.revision, revisionOf(n.ResourceVersion))
	had := r.nodes[n.Name].ok
	delete(r.nodes, n.Name)
	if had {
		r.wake()
	}
	return nil
}

// Replace takes over a whole list.
func (r *roster) Replace(list []any, revision string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make(map[string]bool, len(list))
	for _, obj := range list {
		n, err := asNode(obj)
		if err != nil {
			return err
		}
		names[n.Name] = true
		r.judge(n)
		r.read(n)
	}
	for name := range r.nodes {
		if !names[name] {
			delete(r.nodes, name)
		}
	}
	r.synced, r.revision, r.trouble = true, revisionOf(revision), nil
	r.wake()
	return nil
}

// fits says why our own node could not live with the network, if that is known.
func (r *roster) fits(n lease.Network) error {
	r.mu.Lock()
	rec, ok := r.nodes[r.own.name]
	r.mu.Unlock()
	if !ok {
		return nil
	}
	_, err := subnetsOf(rec.node, n)
	return err
}

// Resync does nothing: whoever looks at the roster sees the whole of it.
func (r *roster) Resync() error { return nil }

// answered notes how the last call for the list or the watch of nodes went.
func (r *roster) answered(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && r.trouble == nil {
		return
	}
	r.trouble = err
	r.wake()
}

// sight is what Watch sees of a roster at one moment.
type sight struct {
	snapshot lease.Snapshot
	synced   bool
	err      error           // why it is not kept up to date, or why our own lease is lost
	changed  <-chan struct{} // closed when there is more to see
}

// look returns the roster as it is. A lost lease is told once.
func (r *roster) look() sight {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := sight{synced: r.synced, err: r.trouble, changed: r.changed}
	if s.err == nil {
		s.err, r.own.lost = r.own.lost, nil
	}
	if s.err != nil || !s.synced {
		return s
	}
	s.snapshot.Revision = r.revision
	for _, rec := range r.nodes {
		if rec.ok {
			s.snapshot.Leases = append(s.snapshot.Leases, rec.lease)
		}
	}
	slices.SortFunc(s.snapshot.Leases, lease.Compare)
	return s
}

// asNode is the Node that the reflector hands over.
func asNode(obj any) (*corev1.Node, error) {
	if n, ok := obj.(*corev1.Node); ok && n != nil {
		return n, nil
	}
	return nil, errors.New("the API server's list of nodes holds something that is no Node")
}

// revisionOf is a resource version as a number. Kubernetes orders those of one resource type as numbers (KEP-5504). 0 stands
// for one that is none: where all are so, each is taken for the newest.
func revisionOf(resourceVersion string) int64 {
	n, err := strconv.ParseInt(resourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
