package ctrl

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

// TestNetnsPolicies sets policies of both families beside those of another program, and removes
// them.
func TestNetnsPolicies(t *testing.T) {
	k := open(t)
	six := Association{Local: addr("fd31::1"), Remote: addr("fd31::2"), LocalNet: prefix("fd10:5:0:1::/64"),
		RemoteNet: prefix("fd10:5:0:2::/64")}
	want := State{Networks: nets, Associations: []Association{association(2), six}}
	for _, a := range want.Associations {
		want.Policies = append(want.Policies, a.Policies()...)
	}
	err := ApplyOnce(k, want)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Skipf("NOT TESTED: IPsec policies: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	foreign := &netlink.XfrmPolicy{Src: ipNet(prefix("10.5.1.0/24")), Dst: ipNet(prefix("10.5.9.0/24")),
		Dir: netlink.XFRM_DIR_OUT, Action: netlink.XFRM_POLICY_BLOCK}
	if err := netlink.XfrmPolicyAdd(foreign); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.XfrmPolicyDel(foreign); err != nil {
			t.Error(err)
		}
	})
	theirs := Policy{Dir: Out, Src: prefix("10.5.1.0/24"), Dst: prefix("10.5.9.0/24")}
	expectPolicies(t, k, append(slices.Clone(want.Policies), theirs))

	ctx, cancel := context.WithCancel(t.Context())
	notified, wait := Notifications(ctx, func(ctx context.Context, notify func()) error {
		return k.Watch(ctx, func(e Event) bool { return e.Kind == PolicyEvent }, notify)
	}, func(err error) { t.Error(err) })
	<-notified // the start
	// The subscription for policies has its own time: change until it is heard.
	err = lab.Await(ctx, 20*time.Second, "a notification", func() error {
		ops := []Op{{Delete, want.Policies[0]}, {Replace, want.Policies[0]}}
		if err := errors.Join(k.Apply(ctx, ops)...); err != nil {
			return err
		}
		select {
		case <-notified:
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("none")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	wait()

	if err := ApplyOnce(k, State{Networks: nets}); err != nil {
		t.Fatal(err)
	}
	expectPolicies(t, k, []Policy{theirs})
}

func expectPolicies(t *testing.T, k *Kernel, want []Policy) {
	t.Helper()
	s, err := k.Read(func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	text := func(p Policy) string { return p.String() }
	got, wanted := mapped(s.Policies, text), mapped(want, text)
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		t.Fatalf("policies %q, want %q", got, wanted)
	}
}

func mapped[T, U any](s []T, f func(T) U) []U {
	out := make([]U, len(s))
	for i, x := range s {
		out[i] = f(x)
	}
	return out
}
