package underlay

import (
	"testing"
)

func TestPrefixSet(t *testing.T) {
	a := NewPrefixSet(prefix("10.0.0.0/24"), prefix("fd00::/64"), prefix("10.0.0.9/24"))
	if b := NewPrefixSet(prefix("fd00::/64"), prefix("10.0.0.0/24")); !a.Equal(b) {
		t.Errorf("%v and %v differ", a, b)
	}
	for s, want := range map[string]bool{"10.0.0.255": true, "10.0.1.0": false, "fd00::9": true, "fd01::": false} {
		if got := a.Contains(addr(s)); got != want {
			t.Errorf("%v contains %s: %v", a, s, got)
		}
	}
	// The longest decides, as in a routing table.
	b := NewPrefixSet(prefix("10.0.0.0/24"), prefix("10.0.0.9/32")).Except(prefix("10.0.0.8/29"))
	for s, want := range map[string]bool{"10.0.0.7": true, "10.0.0.8": false, "10.0.0.9": true, "10.0.0.15": false,
		"10.0.0.16": true} {
		if got := b.Contains(addr(s)); got != want {
			t.Errorf("%v contains %s: %v", b, s, got)
		}
	}
	if none := (PrefixSet{}); none.Contains(addr("10.0.0.1")) || none.String() != "no prefix" {
		t.Errorf("got %v", none)
	}
}
