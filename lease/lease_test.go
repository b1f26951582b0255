package lease

import "testing"

func TestSameNode(t *testing.T) {
	tests := []struct {
		a4, a6, b4, b6 string
		want           bool
	}{
		{"192.0.2.1", "", "192.0.2.1", "", true},
		{"192.0.2.1", "fd::1", "192.0.2.1", "fd::2", true},
		{"192.0.2.1", "fd::1", "192.0.2.2", "fd::1", false},
		{"192.0.2.1", "fd::1", "", "fd::1", false},
		{"", "fd::1", "", "fd::1", true},
		{"", "fd::1", "", "fd::2", false},
		{"", "", "", "", false},
	}
	for _, test := range tests {
		a, b := Attrs{PublicIP: addr(test.a4), PublicIPv6: addr(test.a6)},
			Attrs{PublicIP: addr(test.b4), PublicIPv6: addr(test.b6)}
		if a.SameNode(b) != test.want || b.SameNode(a) != test.want {
			t.Errorf("%+v: got %v", test, a.SameNode(b))
		}
	}
}
