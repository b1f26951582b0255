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

// refusing is an API server that refuses patches while it is told to, and counts them.
type refusing struct {
	fakeAPI
	refuse  atomic.Bool
	patches atomic.Int32
}

func (r *refusing) Nodes() typed.NodeInterface { return refusingNodes{r.fakeAPI.Nodes(), r} }

type refusingNodes struct {
	typed.NodeInterface
	r *refusing
}

func (n refusingNodes) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (*corev1.Node, error) {
	n.r.patches.Add(1)
	if n.r.refuse.Load() {
		return nil, apierrors.NewInternalError(context.DeadlineExceeded)
	}
	return n.NodeInterface.Patch(ctx, name, pt, data, o, sub...)
}

// conditionOf reads the node's condition; the zero value if it has none.
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

// conditionTest opens a store of a claimed node n inside a bubble.
func conditionTest(t *testing.T, ours bool, run func(t *testing.T, s *Store, r *refusing)) {
	conf := writeConf(t, netConf)
	synctest.Test(t, func(t *testing.T) {
		r := &refusing{fakeAPI: newFake()}
		b := bench{client: r.fakeAPI}
		n := newNode("n", "10.244.7.0/24")
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		b.create(t, n)
		s := openOn(t, r, Config{Node: "n", NetworkFile: conf, WriteCondition: ours, Log: slog.New(slog.DiscardHandler)})
		if _, err := s.Claim(t.Context(), lease.Request{Network: network(t, netConf), Attrs: attrsOf(0)}); err != nil {
			t.Fatal(err)
		}
		run(t, s, r)
	})
}

func TestConditionSaysThatTheNetworkIsUp(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *refusing) {
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Type != "" {
			t.Errorf("before anything was said: %+v", c)
		}
		s.SetForwarding(true, "")
		synctest.Wait()
		c := conditionOf(t, r.fakeAPI, "n")
		if c.Status != corev1.ConditionFalse || c.Reason != "FlannelIsUp" || c.Message != "Flannel is running on this node" {
			t.Errorf("got %+v", c)
		}
		if c.LastTransitionTime.IsZero() || c.LastHeartbeatTime.IsZero() {
			t.Errorf("without times: %+v", c)
		}
		n, err := r.Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if err != nil || len(n.Status.Conditions) != 2 {
			t.Errorf("other conditions are gone: %+v, %v", n.Status.Conditions, err)
		}
		before := r.patches.Load()
		s.SetForwarding(true, "")
		time.Sleep(time.Hour)
		if r.patches.Load() != before {
			t.Error("written again without need")
		}
	})
}

func TestConditionIsWrittenOnceTheAPIServerAllowsIt(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *refusing) {
		r.refuse.Store(true)
		r.patches.Store(0)
		s.SetForwarding(true, "")
		time.Sleep(10 * time.Minute)
		if n := r.patches.Load(); n < 20 || n > 30 {
			t.Errorf("%d tries in ten minutes", n)
		}
		r.refuse.Store(false)
		time.Sleep(conditionRetryMax)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("got %+v", c)
		}
	})
}

func TestConditionSaysThatTheNodeCannotForward(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *refusing) {
		s.SetForwarding(true, "")
		synctest.Wait()
		s.SetForwarding(false, "no device")
		time.Sleep(downAfter / 2)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("in a blink: %+v", c)
		}
		s.SetForwarding(true, "")
		time.Sleep(time.Minute)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("after a blink: %+v", c)
		}
		for range 12 {
			s.SetForwarding(false, "no device") // as often as one likes: the time runs on
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionTrue || c.Reason != downReason || c.Message != "no device" {
			t.Errorf("got %+v", c)
		}
		s.SetForwarding(true, "")
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("after the repair: %+v", c)
		}
	})
}

func TestConditionIsWrittenOnANewNodeObject(t *testing.T) {
	conditionTest(t, true, func(t *testing.T, s *Store, r *refusing) {
		states, _ := follow(t, s, lease.Request{Network: network(t, netConf), Attrs: attrsOf(0)})
		until(t, states, "the lease", held)
		s.SetForwarding(true, "")
		synctest.Wait()
		if err := r.fakeAPI.Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		until(t, states, "the loss", func(s lease.State) bool { return !s.Held })
		b := bench{client: r.fakeAPI}
		b.create(t, newNode("n", "10.244.7.0/24"))
		until(t, states, "the lease again", held)
		synctest.Wait()
		if c := conditionOf(t, r.fakeAPI, "n"); c.Status != corev1.ConditionFalse {
			t.Errorf("got %+v", c)
		}
	})
}

func TestConditionIsLeftAlone(t *testing.T) {
	conditionTest(t, false, func(t *testing.T, s *Store, r *refusing) {
		s.SetForwarding(true, "")
		time.Sleep(time.Hour)
		if c := conditionOf(t, r.fakeAPI, "n"); c.Type != "" {
			t.Errorf("got %+v", c)
		}
	})
}
