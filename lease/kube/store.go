package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft/lease"
)

// Store is the Node objects of a cluster as a lease.Store.
type Store struct {
	nodes          nodeAPI
	pods           podAPI // of our namespace
	names          annotations
	log            *slog.Logger
	pod, namespace string
	networkFile    string
	poll           time.Duration // of the network config file

	ctx       context.Context // of what runs in the background
	stop      context.CancelFunc
	running   sync.WaitGroup
	hangUp    func()    // closes connections that are idle
	follow    sync.Once // starts the reflector
	roster    *roster
	condition *condition // nil: not ours to write

	mu     sync.Mutex // guards what is below
	node   string     // our name; empty until it is known
	logged string     // the last trouble with our own annotations
}

// callTimeout bounds one call to the API server.
const callTimeout = 10 * time.Second

// NodeHints is what our Node says to us before we have said anything.
type NodeHints struct {
	// PublicIP and PublicIPv6 are taken instead of the --public-ip flags if they are valid.
	PublicIP, PublicIPv6 netip.Addr
	// Previous is what the node published when the daemon last ran, so that devices can be made as they were (a VXLAN
	// device's MAC). It is the zero Attrs if there is nothing.
	Previous lease.Attrs
}

// NodeHints reads our Node. It fails with lease.ErrNoSubnet while there is none.
func (s *Store) NodeHints(ctx context.Context) (NodeHints, error) {
	n, err := s.own(ctx)
	if err != nil {
		return NodeHints{}, err
	}
	var hints NodeHints
	given := lease.Lease{}
	before := lease.Lease{Attrs: lease.Attrs{BackendType: n.Annotations[s.names.backendType]}}
	for _, f := range families() {
		names := f.names(s.names)
		a, err := f.address(n, names.nodePublicIP)
		if err != nil {
			return NodeHints{}, fmt.Errorf("node %s: %w", n.Name, err)
		}
		_, public, _ := f.part(&given)
		*public = a
		// What was published is only a hint: text that cannot be read is replaced by what we publish.
		_, public, data := f.part(&before)
		if a, err := f.address(n, names.publicIP); err == nil {
			*public = a
		}
		if d, err := f.data(n, names.data); err == nil {
			*data = d
		}
	}
	hints.PublicIP, hints.PublicIPv6 = given.PublicIP, given.PublicIPv6
	if n.Annotations[s.names.managed] == "true" {
		hints.Previous = before.Attrs
	}
	return hints, nil
}

// Claim publishes r.Attrs on our Node and takes the subnets that the cluster gave it. Previous subnets and the name in
// the request do not matter. It fails with lease.ErrNoSubnet while the Node is missing or has no pod CIDR.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	n, err := s.own(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	l, err := subnetsOf(n, r.Network)
	if err != nil {
		return lease.Lease{}, fmt.Errorf("%w: %w", lease.ErrNoSubnet, err)
	}
	s.roster.setNetwork(r.Network)
	return s.publish(ctx, n, l, r.Attrs)
}

// Renew publishes l.Attrs. A lease here has no end: it is lost when the Node is gone or has other pod CIDRs.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	n, err := s.own(ctx)
	if errors.Is(err, lease.ErrNoSubnet) {
		return lease.Lease{}, fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	if err != nil {
		return lease.Lease{}, err
	}
	if n.Annotations[s.names.managed] != "true" {
		return lease.Lease{}, fmt.Errorf("%w: annotation %s is gone from node %s", lease.ErrLost, s.names.managed, n.Name)
	}
	now, err := subnetsOf(n, s.roster.currentNetwork())
	if err != nil {
		return lease.Lease{}, fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	if !now.SameSubnets(l) {
		return lease.Lease{}, fmt.Errorf("%w: the podCIDRs of node %s are %q now", lease.ErrLost, n.Name, podCIDRs(n))
	}
	return s.publish(ctx, n, now, l.Attrs)
}

// own reads our Node from the API server itself, not from its cache.
func (s *Store) own(ctx context.Context) (*corev1.Node, error) {
	name, err := s.nodeName(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := s.nodes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%w: node %s is not in the cluster yet", lease.ErrNoSubnet, name)
	}
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", name, err)
	}
	return n, nil
}

// nodeName is the name of our Node, asked of our pod if it was not given.
func (s *Store) nodeName(ctx context.Context) (string, error) {
	s.mu.Lock()
	name := s.node
	s.mu.Unlock()
	if name != "" {
		return name, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pod, err := s.pods.Get(ctx, s.pod, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("get pod %s/%s for the name of this node: %w", s.namespace, s.pod, err)
	}
	if pod.Spec.NodeName == "" {
		return "", fmt.Errorf("pod %s/%s is on no node", s.namespace, s.pod)
	}
	s.mu.Lock()
	s.node = pod.Spec.NodeName
	s.mu.Unlock()
	return pod.Spec.NodeName, nil
}

// publish makes our Node n say a, and returns l with what it says now.
func (s *Store) publish(ctx context.Context, n *corev1.Node, l lease.Lease, a lease.Attrs) (lease.Lease, error) {
	says, wrong := published(n, s.names, a)
	s.complain(wrong)
	if change := changes(n, s.names, says); len(change) > 0 {
		// The UID makes the patch fail if the Node was made anew since we read its pod CIDRs.
		patch := map[string]any{"metadata": map[string]any{"uid": n.UID, "annotations": change}}
		patched, err := s.patchStatus(ctx, n.Name, patch)
		if err != nil {
			return lease.Lease{}, fmt.Errorf("publish annotations: %w", err)
		}
		n = patched
	}
	s.roster.setOwn(n, a)
	s.ownSeen(n)
	l.Attrs = says
	return l, nil
}

// patchStatus sends a strategic merge patch to the status of a Node, which is all that our service account may write.
func (s *Store) patchStatus(ctx context.Context, node string, patch any) (*corev1.Node, error) {
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := s.nodes.Patch(ctx, node, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, fmt.Errorf("patch status of node %s: %w", node, err)
	}
	return n, nil
}

// complain logs what is wrong with our own annotations once for as long as it stays the same.
func (s *Store) complain(wrong error) {
	text := ""
	if wrong != nil {
		text = wrong.Error()
	}
	s.mu.Lock()
	same := s.logged == text
	s.logged = text
	s.mu.Unlock()
	if !same && text != "" {
		s.log.Error("our own node's annotations are wrong, they are passed over", "err", wrong)
	}
}
