package kube

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// upReason and upMessage are flannel's. Tools use them to detect that the network is up.
	upReason, upMessage = "FlannelIsUp", "Flannel is running on this node"
	downReason          = "WeftCannotForward"

	// downAfter is how long a node must be unable to forward before its condition changes: the
	// resulting taint keeps pods away, which is not justified for a short interruption.
	downAfter = 10 * time.Second
	// Bounds of the delay between attempts to write the condition.
	conditionRetryMin, conditionRetryMax = time.Second, 30 * time.Second
)

// condition maintains the NetworkUnavailable condition of this daemon's Node.
type condition struct {
	store     *Store
	triggered chan struct{} // holds one entry while a change is pending

	mu       sync.Mutex // guards the fields below
	known    bool       // SetForwarding was called
	up       bool
	reason   string    // why up is false
	since    time.Time // of the last change of up
	node     string    // last observed Node; empty: none
	revision int64     // of node
	current  corev1.NodeCondition
}

func newCondition(s *Store) *condition {
	return &condition{store: s, triggered: make(chan struct{}, 1)}
}

// SetForwarding sets whether pods of this node can reach those of other nodes, and the reason if
// they cannot. It returns at once. The NetworkUnavailable condition is written in the background,
// with retries, and again if the Node is recreated. SetForwarding does nothing unless
// Config.WriteCondition is set. The condition remains on the Node when the daemon exits.
func (s *Store) SetForwarding(up bool, reason string) {
	c := s.condition
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || c.up != up {
		c.since = time.Now()
	}
	c.known, c.up, c.reason = true, up, reason
	c.trigger()
}

// trigger makes run evaluate the condition. The caller holds mu.
func (c *condition) trigger() {
	select {
	case c.triggered <- struct{}{}:
	default:
	}
}

// observeOwn takes the current condition from this daemon's Node n. It ignores a Node older than
// the last one observed.
func (s *Store) observeOwn(n *corev1.Node) {
	c := s.condition
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	revision := revisionOf(n.ResourceVersion)
	if c.node == n.Name && revision < c.revision {
		return
	}
	c.node, c.revision, c.current = n.Name, revision, corev1.NodeCondition{}
	for _, have := range n.Status.Conditions {
		if have.Type == corev1.NodeNetworkUnavailable {
			c.current = have
		}
	}
	c.trigger()
}

// due returns the condition to write, or the time until one may be due; 0 means never.
func (c *condition) due(
	now time.Time,
) (node string, write *corev1.NodeCondition, in time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known || c.node == "" {
		return "", nil, 0
	}
	want := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: upReason, Message: upMessage}
	if !c.up {
		want.Status, want.Reason, want.Message = corev1.ConditionTrue, downReason, c.reason
	}
	if c.current.Status == want.Status && c.current.Reason == want.Reason {
		return "", nil, 0
	}
	if in := c.since.Add(downAfter).Sub(now); !c.up && in > 0 {
		return "", nil, in
	}
	want.LastHeartbeatTime = metav1.NewTime(now)
	want.LastTransitionTime = want.LastHeartbeatTime
	if c.current.Status == want.Status {
		want.LastTransitionTime = c.current.LastTransitionTime
	}
	return c.node, &want, 0
}

// run writes the condition whenever it differs from the wanted one, until ctx ends.
func (c *condition) run(ctx context.Context) {
	var delay time.Duration
	var lastLogged string
	for ctx.Err() == nil {
		node, write, in := c.due(time.Now())
		if write != nil {
			if err := c.write(ctx, node, *write); err == nil {
				c.store.log.Info("node condition written",
					"node", node, "type", write.Type,
					"status", write.Status, "message", write.Message)
				delay, lastLogged = 0, ""
				continue
			} else if lastLogged != err.Error() && ctx.Err() == nil {
				lastLogged = err.Error()
				c.store.log.Warn("cannot write NetworkUnavailable condition, retrying", "err", err)
			}
			delay = min(max(2*delay, conditionRetryMin), conditionRetryMax)
			in = delay
		}
		c.wait(ctx, in, write == nil)
	}
}

// wait returns after d (0: never), when ctx ends or, if triggerable, when triggered.
func (c *condition) wait(ctx context.Context, d time.Duration, triggerable bool) {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	triggered := c.triggered
	if !triggerable {
		triggered = nil
	}
	select {
	case <-triggered:
	case <-timer:
	case <-ctx.Done():
	}
}

// write patches the condition. The Node's other conditions are kept because conditions are merged
// by type.
func (c *condition) write(ctx context.Context, node string, want corev1.NodeCondition) error {
	patch := map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{want}}}
	n, err := c.store.patchStatus(ctx, node, patch)
	if err != nil {
		return err
	}
	c.store.observeOwn(n)
	return nil
}
