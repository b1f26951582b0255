package ctrl

import (
	"testing"
)

// TestKeyHidden keeps secrets out of logs.
func TestKeyHidden(t *testing.T) {
	k := Key{1, 2, 3}
	if got := k.String(); got != "(hidden)" {
		t.Errorf("got %q", got)
	}
	if got := (Key{}).String(); got != "(none)" {
		t.Errorf("got %q", got)
	}
	back, err := ParseKey(k.Base64())
	if err != nil || back != k {
		t.Errorf("got %v, %v", back, err)
	}
	if _, err := (Key{}).Public(); err == nil {
		t.Error("no private key has a public one")
	}
}
