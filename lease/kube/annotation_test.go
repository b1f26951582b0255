package kube

import "testing"

// TestAnnotationPrefix includes flannel's test table.
func TestAnnotationPrefix(t *testing.T) {
	for _, test := range []struct{ prefix, publicIP string }{
		{"flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"},
		{"flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/public-ip"},
		{"flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-public-ip"},
		{"flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-public-ip"},
		{"org.com", "org.com/public-ip"},
		{"org9.com", "org9.com/public-ip"},
		{"org.com/9", "org.com/9-public-ip"},
		{"org", ""}, {"org/", ""}, {"org/prefix", ""}, {"org.COM", ""}, {"org.com/PREFIX", ""},
		{"org.com/a/b", ""}, {"", ""}, {".com", ""}, {"org..com", ""}, {"org.com/a b", ""},
	} {
		names, err := newAnnotations(test.prefix)
		if test.publicIP == "" {
			if err == nil {
				t.Errorf("prefix %q accepted: %s", test.prefix, names.v4.publicIP)
			}
			continue
		}
		if err != nil || names.v4.publicIP != test.publicIP {
			t.Errorf("prefix %q gives %q, %v, want %q", test.prefix, names.v4.publicIP, err, test.publicIP)
		}
	}
}

// defaultNames returns the names with flannel's prefix.
func defaultNames(t testing.TB) annotations {
	t.Helper()
	names, err := newAnnotations(FlannelPrefix)
	if err != nil {
		t.Fatal(err)
	}
	return names
}
