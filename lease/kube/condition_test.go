package kube

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"

	"weft/lease"
)

// rejectingAPI is an API server that counts patches and rejects them if reject is set.
type rejectingAPI struct {
	fakeAPI
	reject  atomic.Bool
	patches atomic.Int32
}

func (r *rejectingAPI) Nodes() typed.NodeInterface { return rejectingAPINodes{r.fakeAPI.Nodes(), r} }

type rejectingAPINodes struct {
	typed.NodeInterface
	r *rejectingAPI
}

func (n rejectingAPINodes) Patch(ctx context.Context, name string, pt types.PatchType, data []byte,
	o metav1.PatchOptions, sub ...string) (*corev1.Node, error) {
	n.r.patches.Add(1)
	if n.r.reject.Load() {
		return nil, apierrors.NewInternalError(context.DeadlineExceeded)
	}
	return n.NodeInterface.Patch(ctx, name, pt, data, o, sub...)
}

// conditionOf returns the node's NetworkUnavailable condition; zero if it has none.
func conditionOf(t *testing.T, client api, node string) corev1.NodeCondition {
	t.Helper()
	n, err := client.Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// conditionTest runs a test in a synctest bubble, on a store that has claimed node n.
func conditionTest(t *testing.T, writeCondition bool, run func(t *testing.T, s *Store, r *rejectingAPI)) {
	conf := writeConf(t, netConf)
	synctest.Test(t, func(t *testing.T) {
		r := &rejectingAPI{fakeAPI: newFake()}
		tc := testCluster{client: r.fakeAPI}
		n := newNode("n", "10.244.7.0/24")
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		tc.create(t, n)
		s := openOn(t, r, Config{Node: "n", NetworkFile: conf, WriteCondition: writeCondition,
			Log: slog.New(slog.DiscardHandler)})
		if _, err := s.Claim(t.Context(), lease.Request{Network: network(t, netConf), Attrs: attrsOf(0)}); err != nil {
			t.Fatal(err)
		}
		run(t, s, r)
	})
}

func TestConditionUp(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *rejectingAPI) {
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Type != "" {
			t.Errorf("before SetForwarding: %+v", c)
		}
		s.SetForwarding(true, "")
		synctest.Wait()
		c := conditionOf(t, r.fakeAPI, "n")
		if c.Status != corev1.ConditionFalse || c.Reason != "FlannelIsUp" ||
			c.Message != "Flannel is running on this node" {
			t.Errorf("got %+v", c)
		}
		if c.LastTransitionTime.IsZero() || c.LastHeartbeatTime.IsZero() {
			t.Errorf("times not set: %+v", c)
		}
		n, err := r.Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if err != nil || len(n.Status.Conditions) != 2 {
			t.Errorf("other conditions changed: %+v, %v", n.Status.Conditions, err)
		}
		before := r.patches.Load()
		s.SetForwarding(true, "")
		time.Sleep(time.Hour)
		if r.patches.Load() != before {
			t.Error("unchanged condition written again")
		}
	})
}

func TestConditionRetried(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *rejectingAPI) {
		r.reject.Store(true)
		r.patches.Store(0)
		s.SetForwarding(true, "")
		time.Sleep(10 * time.Minute)
		if n := r.patches.Load(); n < 20 || n > 30 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		r.reject.Store(false)
		time.Sleep(conditionRetryMax)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("got %+v", c)
		}
	})
}

func TestConditionDown(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *rejectingAPI) {
		s.SetForwarding(true, "")
		synctest.Wait()
		s.SetForwarding(false, "no device")
		time.Sleep(downAfter / 2)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("during a short interruption: %+v", c)
		}
		s.SetForwarding(true, "")
		time.Sleep(time.Minute)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("after a short interruption: %+v", c)
		}
		for range 12 {
			s.SetForwarding(false, "no device") // repeated calls do not restart the time
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionTrue || c.Reason != downReason ||
			c.Message != "no device" {
			t.Errorf("got %+v", c)
		}
		s.SetForwarding(true, "")
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("after recovery: %+v", c)
		}
	})
}

func TestConditionRecreatedNode(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *rejectingAPI) {
		states, _ := startManager(t, s, lease.Request{Network: network(t, netConf), Attrs: attrsOf(0)})
		waitState(t, states, "the lease", isHeld)
		s.SetForwarding(true, "")
		synctest.Wait()
		if err := r.fakeAPI.Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		waitState(t, states, "the loss", func(s lease.State) bool { return !s.Held })
		tc := testCluster{client: r.fakeAPI}
		tc.create(t, newNode("n", "10.244.7.0/24"))
		waitState(t, states, "the lease again", isHeld)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("got %+v", c)
		}
	})
}

func TestConditionDisabled(t *testing.T) {
	conditionTest(t, false, func(t *testing.T, s *Store, r *rejectingAPI) {
		s.SetForwarding(true, "")
		time.Sleep(time.Hour)
		if c := conditionOf(t, r.fakeAPI, "n"); c.Type != "" {
			t.Errorf("got %+v", c)
		}
	})
}
