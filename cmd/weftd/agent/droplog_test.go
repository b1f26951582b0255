package agent

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/dataplane"
)

func TestDropLog(t *testing.T) {
	var d dropLog
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		after  time.Duration
		noNode uint64
		want   string // number of packets in the line; empty: no line
	}{
		{0, 0, ""}, {time.Second, 2, "packets=2 "}, {time.Second, 9, ""}, {dropInterval, 10, "packets=8 "},
		{dropInterval, 10, ""},
	} {
		now = now.Add(c.after)
		b.Reset()
		d.report(dataplane.Stats{
			Drops: map[dataplane.Drop]uint64{dataplane.DropNoNode: c.noNode, dataplane.DropMulticast: c.noNode},
			LastDrops: map[dataplane.Drop]dataplane.LastDrop{dataplane.DropNoNode: {
				Src: netip.MustParseAddr("10.5.1.2"), Dst: netip.MustParseAddr("10.5.9.9"), Time: now}},
		}, log, now)
		if lines := strings.Count(b.String(), "\n"); (lines == 1) != (c.want != "") || !strings.Contains(b.String(), c.want) ||
			c.want != "" && !strings.Contains(b.String(), "10.5.1.2 -> 10.5.9.9") {
			t.Errorf("%d drops after %v: %q, want %q", c.noNode, c.after, b.String(), c.want)
		}
	}
}
