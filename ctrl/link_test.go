package ctrl

import (
	"testing"
)

func TestOverlayName(t *testing.T) {
	for name, want := range map[string]bool{
		"flannel0": true, "flannel12": true, "flannel.1": true, "flannel-v6.1": true, "flannel.ipip": true,
		"flannel-wg": true, "flannel-wg-v6": true,
		"flannel": false, "flannelx": false, "flannel-probe": false, "eth0": false, "": false, "xflannel0": false,
		"flannel0x": false,
	} {
		if OverlayName(name) != want {
			t.Errorf("%q: got %v", name, !want)
		}
	}
}
