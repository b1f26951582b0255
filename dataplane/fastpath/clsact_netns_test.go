//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"net"
	"slices"
	"testing"

	"weft/deploy/lab"
)

// TestNetnsFilter attaches a program as a filter, as on kernels without TCX.
func TestNetnsFilter(t *testing.T) {
	p := newTestPath(t, onIPv4, settingsValue{})
	l := lab.Start(t, lab.Options{PodsPerNode: -1})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.Nodes[0].Do(func() error {
		underlay, err := net.InterfaceByName("eth0")
		must(err)
		at := place{hookInbound, underlay.Index, "flannel0"}
		if h, err := at.adoptFilter(); h != nil || err != nil {
			t.Errorf("adopted %v, %v; want none", h, err)
		}
		first, err := at.attachFilter(p.objects.Inbound)
		must(err)
		other := place{hookInbound, underlay.Index, "flannel1"}
		if _, err := other.attachFilter(p.objects.Inbound); !errors.Is(err, ErrOtherOwner) {
			t.Errorf("attached beside a filter of another owner: %v", err)
		}
		must(first.close())

		adopted, err := at.adoptFilter()
		must(err)
		if adopted == nil || at.check(adopted) != nil {
			t.Fatalf("adopted %v, want the filter of the earlier process", adopted)
		}
		must(adopted.update(p.objects.Inbound))
		if n := countFilters(t); n != 1 {
			t.Errorf("%d filters after an update, want 1", n)
		}
		moved := place{hookInbound, loopback, "flannel0"}
		if h, err := moved.adoptFilter(); h != nil || err != nil {
			t.Errorf("adopted %v, %v on another interface", h, err)
		}
		if at.check(adopted) == nil {
			t.Error("the filter stayed on the old interface")
		}
		second, err := moved.attachFilter(p.objects.Inbound)
		must(err)
		keep := func(device string) bool { return device != "flannel0" }
		all := func(string) bool { return true }
		for _, step := range []struct {
			remove func(string) bool
			want   []string
		}{{keep, nil}, {all, []string{"flannel0"}}, {all, nil}} {
			if got, err := removeFilters(step.remove); err != nil || !slices.Equal(got, step.want) {
				t.Errorf("removed %v, %v; want %v", got, err, step.want)
			}
		}
		return errors.Join(adopted.close(), second.close())
	}))
}

func countFilters(t *testing.T) int {
	t.Helper()
	all, err := listFilters()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
