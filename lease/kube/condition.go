package kube

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// upReason and upMessage are flannel's words, by which tools know that the network is up.
	upReason, upMessage = "FlannelIsUp", "Flannel is running on this node"
	downReason          = "WeftCannotForward"

	// downAfter is how long a node must be unable to forward before its condition says so: the taint that follows keeps
	// pods away, which a blink is not worth.
	downAfter = 10 * time.Second
	// Bounds of the pauses between tries to write the condition.
	conditionRetryMin, conditionRetryMax = time.Second, 30 * time.Second
)

// condition keeps the NetworkUnavailable condition of our Node as it should be.
type condition struct {
	store *Store
	wake  chan struct{} // holds one entry when there is something to look at

	mu    sync.Mutex // guards what is below
	known bool       // SetForwarding was called
	up    bool
	why   string    // not up
	since time.Time // when up last changed
	node  string    // that was seen last; empty: none
	rev   int64     // its resource version
	have  corev1.NodeCondition
}

func newCondition(s *Store) *condition {
	return &condition{store: s, wake: make(chan struct{}, 1)}
}

// SetForwarding says whether pods of this node can reach those of other nodes, and if not, why. It returns at once. The
// node's NetworkUnavailable condition follows, tried until it is written, and again when the Node is made anew; it does
// nothing if the condition is not ours to write. What it said last stays on the Node when the daemon ends.
func (s *Store) SetForwarding(up bool, why string) {
	c := s.condition
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || c.up != up {
		c.since = time.Now()
	}
	c.known, c.up, c.why = true, up, why
	c.look()
}

// look makes run look. The caller holds mu.
func (c *condition) look() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// ownSeen takes over what our own Node says. A Node older than the last one seen changes nothing.
func (s *Store) ownSeen(n *corev1.Node) {
	c := s.condition
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	rev := revisionOf(n.ResourceVersion)
	if c.node == n.Name && rev < c.rev {
		return
	}
	c.node, c.rev, c.have = n.Name, rev, corev1.NodeCondition{}
	for _, have := range n.Status.Conditions {
		if have.Type == corev1.NodeNetworkUnavailable {
			c.have = have
		}
	}
	c.look()
}

// due returns the condition to write, if one is, or how long it takes until one may be; 0 for never.
func (c *condition) due(now time.Time) (node string, write *corev1.NodeCondition, in time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || c.node == "" {
		return "", nil, 0
	}
	want := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: upReason, Message: upMessage}
	if !c.up {
		want.Status, want.Reason, want.Message = corev1.ConditionTrue, downReason, c.why
	}
	if c.have.Status == want.Status && c.have.Reason == want.Reason {
		return "", nil, 0
	}
	if in := c.since.Add(downAfter).Sub(now); !c.up && in > 0 {
		return "", nil, in
	}
	want.LastHeartbeatTime = metav1.NewTime(now)
	want.LastTransitionTime = want.LastHeartbeatTime
	if c.have.Status == want.Status {
		want.LastTransitionTime = c.have.LastTransitionTime
	}
	return c.node, &want, 0
}

// run writes the condition whenever it is not as it should be, until ctx ends.
func (c *condition) run(ctx context.Context) {
	var pause time.Duration
	var logged string
	for ctx.Err() == nil {
		node, write, in := c.due(time.Now())
		if write != nil {
			if err := c.write(ctx, node, *write); err == nil {
				c.store.log.Info("node condition written", "node", node, "type", write.Type, "status", write.Status,
					"message", write.Message)
				pause, logged = 0, ""
				continue
			} else if logged != err.Error() && ctx.Err() == nil {
				logged = err.Error()
				c.store.log.Warn("cannot write the node's NetworkUnavailable condition, trying on", "err", err)
			}
			pause = min(max(2*pause, conditionRetryMin), conditionRetryMax)
			in = pause
		}
		c.wait(ctx, in, write == nil)
	}
}

// wait returns after d (0: never), when ctx has ended, or, if it may be woken, when there is something to look at.
func (c *condition) wait(ctx context.Context, d time.Duration, woken bool) {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	wake := c.wake
	if !woken {
		wake = nil
	}
	select {
	case <-wake:
	case <-timer:
	case <-ctx.Done():
	}
}

// write patches the condition; others of the Node are kept, since they are merged by type.
func (c *condition) write(ctx context.Context, node string, want corev1.NodeCondition) error {
	patch := map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{want}}}
	n, err := c.store.patchStatus(ctx, node, patch)
	if err != nil {
		return err
	}
	c.store.ownSeen(n)
	return nil
}
