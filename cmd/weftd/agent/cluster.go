package agent

import (
	"context"
	"errors"
	"fmt"

	"weft/lease"
	"weft/lease/kube"
)

// openKube opens the store of --kube-subnet-mgr.
func (d *daemon) openKube() (*kube.Store, error) {
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

// clusterStore is implemented by stores that know more of a node than its lease.
type clusterStore interface {
	// NodeHints returns the cluster's settings for this node, which are available before a lease
	// is.
	NodeHints(ctx context.Context) (kube.NodeHints, error)
	// SetForwarding reports to the scheduler whether pods on this node reach others.
	SetForwarding(up bool, why string)
	// WatchNetwork calls changed when the network config changes.
	WatchNetwork(
		ctx context.Context, current lease.Network, changed func(lease.Network, error),
	) error
}

// awaitHints reads the cluster's settings for this node, retrying until ctx is done. For a store
// without a cluster it returns the zero value.
func (d *daemon) awaitHints(ctx context.Context, s lease.Store) (kube.NodeHints, error) {
	c, ok := s.(clusterStore)
	if !ok {
		return kube.NodeHints{}, nil
	}
	return retry(ctx, d, "waiting for this node's object", c.NodeHints)
}

// errNetworkChanged ends an agent so that the next one starts with the new config.
var errNetworkChanged = errors.New("network config changed")

// watchNetwork watches the network config. It returns errNetworkChanged when a valid config
// replaces the current one. An invalid one is logged and shown in the status, and the agent goes
// on.
func (a *agent) watchNetwork(ctx context.Context) error {
	replaced := false
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	current := a.network
	err := a.cluster.WatchNetwork(ctx, current, func(n lease.Network, err error) {
		switch {
		case err != nil:
			a.log.Error("changed network config rejected, keeping the current one", "err", err)
			a.configErr.Store(&err)
		case kube.SameNetwork(n, current):
			a.log.Info("network config change reverted")
			a.configErr.Store(nil)
		default:
			replaced = true
			stop()
		}
	})
	if replaced {
		return errNetworkChanged
	}
	return err
}
