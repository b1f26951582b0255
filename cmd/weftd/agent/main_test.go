package agent

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// patience bounds every wait, for a slow machine.
const patience = 20 * time.Second

func await(t *testing.T, limit time.Duration, what string, ok func() error) {
	t.Helper()
	if err := lab.Await(t.Context(), limit, what, ok); err != nil {
		t.Fatal(err)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
