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
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"weft/lease"
)

// Store implements lease.Store on the Node objects of a cluster.
type Store struct {
	nodes          nodeAPI
	pods           podAPI // of the daemon's namespace
	names          annotations
	log            *slog.Logger
	pod, namespace string
	networkFile    string
	pollInterval   time.Duration // of networkFile

	ctx            context.Context // of the background goroutines
	stop           context.CancelFunc
	running        sync.WaitGroup
	closeIdle      func() // closes idle connections
	startReflector sync.Once
	cache          *nodeCache
	condition      *condition // nil: not written by this daemon

	mu         sync.Mutex // guards the fields below
	node       string     // name of this daemon's Node; empty until known
	lastLogged string     // last logged error of the Node's annotations
}

// callTimeout bounds one call to the API server.
const callTimeout = 10 * time.Second

// NodeHints holds the data that this daemon's Node provides before anything is published.
type NodeHints struct {
	// PublicIP and PublicIPv6, if valid, take precedence over the --public-ip flags.
	PublicIP, PublicIPv6 netip.Addr
	// Previous holds the attributes that the node published in an earlier run, so that devices can
	// be recreated unchanged (the MAC address of a VXLAN device). It is zero if there are none.
	Previous lease.Attrs
}

// NodeHints reads this daemon's Node. It fails with lease.ErrNoSubnet while the Node does not
// exist.
func (s *Store) NodeHints(ctx context.Context) (NodeHints, error) {
	n, err := s.getNode(ctx)
	if err != nil {
		return NodeHints{}, err
	}
	var hints NodeHints
	configured := lease.Lease{}
	previous := lease.Lease{Attrs: lease.Attrs{BackendType: n.Annotations[s.names.backendType]}}
	for _, f := range families() {
		names := f.names(s.names)
		a, err := f.address(n, names.nodePublicIP)
		if err != nil {
			return NodeHints{}, fmt.Errorf("node %s: %w", n.Name, err)
		}
		_, public, _ := f.fields(&configured)
		*public = a
		// The published attributes are only a hint: unreadable text will be replaced.
		_, public, data := f.fields(&previous)
		if a, err := f.address(n, names.publicIP); err == nil {
			*public = a
		}
		if d, err := f.data(n, names.data); err == nil {
			*data = d
		}
	}
	hints.PublicIP, hints.PublicIPv6 = configured.PublicIP, configured.PublicIPv6
	if n.Annotations[s.names.managed] == "true" {
		hints.Previous = previous.Attrs
	}
	return hints, nil
}

// Claim publishes r.Attrs on this daemon's Node and returns a lease of the Node's pod CIDRs. It
// ignores previous subnets and the name in the request. It fails with lease.ErrNoSubnet while the
// Node is missing or has no pod CIDR.
func (s *Store) Claim(ctx context.Context, r lease.Request) (lease.Lease, error) {
	n, err := s.getNode(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	l, err := subnetsOf(n, r.Network)
	if err != nil {
		return lease.Lease{}, fmt.Errorf("%w: %w", lease.ErrNoSubnet, err)
	}
	s.cache.setNetwork(r.Network)
	return s.publish(ctx, n, l, r.Attrs)
}

// Renew publishes l.Attrs. A lease does not expire: it is lost if the Node was deleted or has other
// pod CIDRs.
func (s *Store) Renew(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	n, err := s.getNode(ctx)
	if errors.Is(err, lease.ErrNoSubnet) {
		return lease.Lease{}, fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	if err != nil {
		return lease.Lease{}, err
	}
	if n.Annotations[s.names.managed] != "true" {
		return lease.Lease{}, fmt.Errorf("%w: node %s has no annotation %s",
			lease.ErrLost, n.Name, s.names.managed)
	}
	now, err := subnetsOf(n, s.cache.currentNetwork())
	if err != nil {
		return lease.Lease{}, fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	if !now.SameSubnets(l) {
		return lease.Lease{}, fmt.Errorf("%w: podCIDRs of node %s are now %q",
			lease.ErrLost, n.Name, podCIDRs(n))
	}
	return s.publish(ctx, n, now, l.Attrs)
}

// getNode reads this daemon's Node from the API server, bypassing the API server's cache.
func (s *Store) getNode(ctx context.Context) (*corev1.Node, error) {
	name, err := s.nodeName(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := s.nodes.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsForbidden(err) {
		n, err = s.listNode(ctx, name)
	}
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%w: node %s is not in the cluster yet", lease.ErrNoSubnet, name)
	}
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", name, err)
	}
	return n, nil
}

// listNode is a get for roles that permit only to list nodes, like those of flannel's manifests
// before v0.21.
func (s *Store) listNode(ctx context.Context, name string) (*corev1.Node, error) {
	nodes, err := s.nodes.List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String(),
	})
	if err != nil {
		return nil, err
	}
	if len(nodes.Items) == 0 {
		return nil, apierrors.NewNotFound(corev1.Resource("nodes"), name)
	}
	return &nodes.Items[0], nil
}

// nodeName returns the name of this daemon's Node. If it is not configured, nodeName reads it from
// the daemon's pod.
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
		return "", fmt.Errorf("get pod %s/%s to find the node name: %w", s.namespace, s.pod, err)
	}
	if pod.Spec.NodeName == "" {
		return "", fmt.Errorf("pod %s/%s is not scheduled", s.namespace, s.pod)
	}
	s.mu.Lock()
	s.node = pod.Spec.NodeName
	s.mu.Unlock()
	return pod.Spec.NodeName, nil
}

// publish writes a to the annotations of this daemon's Node n and returns l with the published
// attributes.
func (s *Store) publish(
	ctx context.Context, n *corev1.Node, l lease.Lease, a lease.Attrs,
) (lease.Lease, error) {
	attrs, err := published(n, s.names, a)
	s.logInvalid(err)
	if change := annotationChanges(n, s.names, attrs); len(change) > 0 {
		// The UID makes the patch fail if the Node was recreated after its pod CIDRs were read.
		patch := map[string]any{"metadata": map[string]any{"uid": n.UID, "annotations": change}}
		patched, err := s.patchStatus(ctx, n.Name, patch)
		if err != nil {
			return lease.Lease{}, fmt.Errorf("publish annotations: %w", err)
		}
		n = patched
	}
	s.cache.setOwn(n, a)
	s.observeOwn(n)
	l.Attrs = attrs
	return l, nil
}

// patchStatus sends a strategic merge patch to the status of a Node, the only part that the
// daemon's service account may write.
func (s *Store) patchStatus(ctx context.Context, node string, patch any) (*corev1.Node, error) {
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := s.nodes.Patch(ctx, node, types.StrategicMergePatchType, body,
		metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, fmt.Errorf("patch status of node %s: %w", node, err)
	}
	return n, nil
}

// logInvalid logs an error of the own Node's annotations once while it lasts.
func (s *Store) logInvalid(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	same := s.lastLogged == text
	s.lastLogged = text
	s.mu.Unlock()
	if !same && text != "" {
		s.log.Error("ignoring invalid annotations of own node", "err", err)
	}
}
