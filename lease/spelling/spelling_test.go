package spelling

import "testing"

func TestNearest(t *testing.T) {
	known := []string{"Type", "VNI", "Port", "MTU", "ETCD_ENDPOINTS", "Network", "IPv6Network"}
	for name, want := range map[string]string{
		"Prot":          "Port", // swapped
		"Netwrok":       "Network",
		"Netwerk":       "Network",
		"IPv6Netwrk":    "IPv6Network",
		"vni":           "VNI",
		"MTUs":          "MTU",
		"ETCD_ENDPOINT": "ETCD_ENDPOINTS",
		"IPTables":      "",
		"":              "",
		"GBP":           "",
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got := Nearest("x", nil); got != "" {
		t.Errorf("no known names: %q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"ab", "ba", 1}, {"ab", "axb", 1}, {"kitten", "sitting", 3},
		{"abcd", "badc", 2},
	} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("%q %q: got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
