package dataplane

import (
	"slices"
	"testing"

	"weft/dataplane/feature"
	"weft/dataplane/poll"
)

func TestShortSlicesStatus(t *testing.T) {
	status := func(without ...feature.Name) FeatureStatus {
		h := newHarnessWith(t, Config{DisabledFeatures: without})
		return h.engine.Status()[slices.Index(feature.All(), feature.Slices)]
	}
	if s := status(feature.Slices); s.Used || s.Reason != feature.ErrDisabled.Error() {
		t.Errorf("disabled: %+v", s)
	}
	want := poll.ShortenSlices() // nil, or the reason of this kernel
	if s := status(); s.Used != (want == nil) || want != nil && s.Reason != want.Error() {
		t.Errorf("status %+v, want %v", s, want)
	}
}
