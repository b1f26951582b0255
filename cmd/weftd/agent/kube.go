package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"weft/ctrl"
	"weft/lease"
	"weft/lease/kube"
)

// openKube opens the store of --kube-subnet-mgr.
func (d *weftd) openKube() (*kube.Store, error) {
	k := d.cfg.Lease.Kube
	s, err := kube.Open(kube.Config{
		APIURL:           k.APIURL,
		Kubeconfig:       k.Kubeconfig,
		Node:             d.cfg.Node.Name,
		Pod:              k.Pod,
		Namespace:        k.Namespace,
		AnnotationPrefix: k.AnnotationPrefix,
		NetworkFile:      k.NetworkFile,
		WriteCondition:   k.SetCondition,
		UserAgent:        "weftd/" + d.build.Version,
		Log:              d.log,
	})
	if err != nil {
		return nil, fmt.Errorf("--kube-subnet-mgr: %w", err)
	}
	return s, nil
}

// clusterStore is what a store can do that knows more of a node than its lease.
type clusterStore interface {
	// NodeHints is what the node is told before it has said anything.
	NodeHints(ctx context.Context) (kube.NodeHints, error)
	// SetForwarding tells the scheduler whether pods here reach others.
	SetForwarding(up bool, why string)
	// WatchNetwork calls changed when the network config has become another.
	WatchNetwork(ctx context.Context, current lease.Network, changed func(lease.Network, error)) error
}

// awaitStart asks the cluster what it has to say to this node, trying until ctx
// ends. A store that is no cluster says nothing.
func (d *weftd) awaitStart(ctx context.Context, s lease.Store) (kube.NodeHints, error) {
	c, ok := s.(clusterStore)
	if !ok {
		return kube.NodeHints{}, nil
	}
	return awaitAnswer(ctx, d, "waiting for this node's object", c.NodeHints)
}

// errNetworkChanged ends a run so that the next one begins with the new config.
var errNetworkChanged = errors.New("the network config has changed")

// followNetwork watches the network config. One that can take effect ends the run; why another cannot is logged and
// shown, and the node goes on as it is.
func (n *node) followNetwork(ctx context.Context) error {
	changed := false
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	current := n.network
	err := n.cluster.WatchNetwork(ctx, current, func(now lease.Network, err error) {
		switch {
		case err != nil:
			n.log.Error("the changed network config is refused, the one before stays in force", "err", err)
			n.refused.Store(&err)
		case kube.SameNetwork(now, current):
			n.log.Info("the network config is again what is in force")
			n.refused.Store(nil)
		default:
			changed = true
			stop()
		}
	})
	if changed {
		return errNetworkChanged
	}
	return err
}

// tellCluster says whether this node forwards, once it has done so.
func (n *node) tellCluster() {
	if n.cluster == nil || n.since.IsZero() {
		return
	}
	v := n.seen.Load()
	ok, reasons := allOK([]condition{v.kernelCondition(), rulesCondition(n.cfg.Rules, v.rules.Status())})
	if ok {
		n.forwarded = true
	}
	if n.forwarded {
		n.cluster.SetForwarding(ok, strings.Join(reasons, "; "))
	}
}

// keepVTEP gives a VXLAN device that is to be made the Ethernet address which the node published before, in this run or
// an earlier one, as other nodes have it still.
func keepVTEP(host *ctrl.Self, before lease.Attrs) {
	if before.BackendType != "vxlan" {
		return
	}
	for _, end := range []struct {
		mac  *ctrl.MAC
		data json.RawMessage
	}{{&host.VTEP, before.BackendData}, {&host.VTEP6, before.BackendV6Data}} {
		var said struct{ VtepMAC string }
		if *end.mac != (ctrl.MAC{}) || json.Unmarshal(end.data, &said) != nil {
			continue
		}
		if m, err := ctrl.ParseMAC(said.VtepMAC); err == nil {
			*end.mac = m
		}
	}
}
