package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"weft/cmd/control"
	"weft/metrics"
)

// topAt returns the sample of a second: node "two" sends 1 Mbit/s, node "three" 2 Mbit/s.
func topAt(second int) control.Top {
	s := uint64(second)
	flow := func(port uint16, bytes uint64) control.TopFlow {
		return control.TopFlow{Proto: 6, Node: "two", Packets: bytes / 1000, Bytes: bytes,
			Src: netip.MustParseAddrPort("10.5.2.2:80"), Dst: netip.AddrPortFrom(netip.MustParseAddr("10.5.1.2"), port)}
	}
	dropped := flow(7, 1000)
	dropped.Outbound, dropped.Drop, dropped.Dropped = true, "no_node", 1
	return control.Top{
		Time: time.Unix(int64(second), 0), Interval: 1, Node: "one", Backend: "udp", Sample: 4,
		In: metrics.Volume{Packets: s * 375, Bytes: s * 375_000}, FramesIn: s * 25,
		Nodes: []control.TopNode{
			{Name: "two", In: metrics.Volume{Packets: s * 125, Bytes: s * 125_000}, RTT: 0.0005},
			{Name: "three", In: metrics.Volume{Packets: s * 250, Bytes: s * 250_000}, RTT: 0.001, Loss: 0.5},
		},
		Drops: []metrics.Drop{{Reason: "multicast", Packets: 4}, {Reason: "no_node", Packets: 10 + s}},
		Flows: []control.TopFlow{flow(5, 25_000), flow(6, 100_000), dropped},
	}
}

// wantLine checks that a line of the screen contains all words.
func wantLine(t *testing.T, m topModel, i int, words ...string) {
	t.Helper()
	for _, w := range words {
		if lines := m.lines(); i >= len(lines) || !strings.Contains(lines[i], w) {
			t.Errorf("line %d lacks %q:\n%s", i, w, strings.Join(lines, "\n"))
			return
		}
	}
}

func twoSamples() topModel { return topModel{width: 140, height: 30}.add(topAt(1)).add(topAt(2)) }

func TestTopScreen(t *testing.T) {
	m := twoSamples()
	wantLine(t, m, 0, "one  udp", "out 0 bit/s 0 pkt/s", "in 3.00 Mbit/s 375 pkt/s  in 15.0/frame", "█")
	wantLine(t, m, 1, "drop no_node", "1 /s", "12 in all")
	wantLine(t, m, 2, "NODE", "OUT bit/s", "RTT")
	wantLine(t, m, 3, "three", "2.00 M", "250", "1ms", "50 %")
	wantLine(t, m, 4, "two", "1.00 M", "125", "500µs", "0 %")
	wantLine(t, m, 5, "FLOW (1 of 4 packets sampled)")
	wantLine(t, m, 6, "tcp 10.5.2.2:80 > 10.5.1.2:6", " in ", "two", "800 k", "100")
	wantLine(t, m, 8, ":7", "out", "drop no_node 1 /s")
	wantLine(t, m, 9, "q quit", "sort: rate")
}

// fastTopAt is topAt with a fast path, which carries all packets of node "two", half of the bytes
// of node "three", and a part of the flows.
func fastTopAt(second int) control.Top {
	t := topAt(second)
	s := uint64(second)
	t.Nodes[0].FastPath.In = t.Nodes[0].In
	t.Nodes[1].FastPath.In = metrics.Volume{Packets: s * 50, Bytes: s * 125_000}
	t.FastPath = &metrics.NodeFastPath{In: metrics.Volume{Packets: s * 175, Bytes: s * 250_000}}
	t.Flows[0].Kernel = metrics.Volume{Packets: 25, Bytes: 25_000}
	t.Flows[1].Kernel = metrics.Volume{Packets: 1, Bytes: 1000}
	return t
}

// TestTopWays shows the parts of the kernel and of the workers, in total, per node and per flow.
func TestTopWays(t *testing.T) {
	m := topModel{width: 140, height: 30}.add(fastTopAt(1)).add(fastTopAt(2))
	wantLine(t, m, 0, "in 3.00 Mbit/s 375 pkt/s  █")
	wantLine(t, m, 1, "kernel   out     0 bit/s     0 pkt/s  in 2.00 Mbit/s   175 pkt/s")
	wantLine(t, m, 2, "workers  out     0 bit/s     0 pkt/s  in 1.00 Mbit/s   200 pkt/s  in 8.0/frame")
	wantLine(t, m, 4, "KERNEL")
	wantLine(t, m, 5, "three", " 50 %")
	wantLine(t, m, 6, "two", "100 %")
	wantLine(t, m, 7, "DIR WAY     NODE")
	wantLine(t, m, 8, ":6", "in  both    two")
	wantLine(t, m, 9, ":5", "in  kernel  two")
	wantLine(t, m, 10, ":7", "out workers two")
	filtered := press(t, m, "/", "k", "e", "r", "n", "e", "l")
	wantLine(t, filtered, 6, ":5")
	if got := len(filtered.lines()); got != 8 {
		t.Errorf("%d lines with the flows of the kernel", got)
	}
	// The fast path begins.
	began := topModel{width: 140, height: 30}.add(topAt(1)).add(fastTopAt(2))
	wantLine(t, began, 1, "kernel   out     0 bit/s     0 pkt/s  in 4.00 Mbit/s")
	wantLine(t, began, 2, "workers  out     0 bit/s     0 pkt/s  in     0 bit/s")
}

// TestTopLayout checks that columns stay below their headers and on the screen, whatever the names.
func TestTopLayout(t *testing.T) {
	sample := topAt(2)
	sample.Nodes[0].Name = "ip-10-0-0-7.eu-central-1.compute.internal"
	sample.Flows[0].Src = netip.MustParseAddrPort("[fd00:10:244:1:aaaa:bbbb:cccc:dddd]:54321")
	sample.Flows[0].Dst = netip.MustParseAddrPort("[fd00:10:244:2:aaaa:bbbb:cccc:dddd]:54321")
	fast := fastTopAt(2)
	sample.FastPath = fast.FastPath
	for _, width := range []int{70, 80, 110, 200} {
		m := topModel{width: width, height: 30}.add(fastTopAt(1)).add(sample)
		column, ends := "LOSS", 0
		for i, l := range m.lines()[4:] {
			r := []rune(l)
			switch {
			case strings.HasPrefix(l, nodeHeader):
				ends = strings.Index(l, column) + len(column)
			case strings.HasPrefix(l, flowHeader):
				column = "pkt/s"
				ends = utf8.RuneCountInString(l[:strings.Index(l, column)+len(column)])
			case strings.HasPrefix(l, "q quit"):
			case ends == 0 || ends > width || len(r) < ends || len(r) > ends && r[ends] != ' ' || r[ends-1] == ' ' && r[ends-2] == ' ':
				t.Errorf("width %d, line %d: no %s that ends at %d:\n%s", width, i, column, ends, l)
			}
		}
	}
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{{"abcdef", 6, "abcdef"}, {"abcdef", 5, "ab…ef"}, {"abcdef", 4, "ab…f"}, {"abcdef", 1, "a"}, {"abc", 0, ""}} {
		if got := fit(c.text, c.width); got != c.want {
			t.Errorf("%q in %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

// TestTopOneSample shows no rates before there are two samples, and none after a restart.
func TestTopOneSample(t *testing.T) {
	m := topModel{width: 140, height: 30}.add(topAt(5))
	wantLine(t, m, 0, "in 0 bit/s")
	wantLine(t, m, 1, "no drops now, 19 since")
	restarted := topAt(1)
	restarted.Time = time.Unix(6, 0)
	wantLine(t, m.add(restarted), 0, "in 0 bit/s")
	wantLine(t, m.add(restarted), 1, "no drops now")
}

// press presses keys one after the other.
func press(t *testing.T, m topModel, keys ...string) topModel {
	t.Helper()
	for _, k := range keys {
		text := k
		if len(k) > 1 {
			text = ""
		}
		var quit bool
		if m, quit = m.key(k, text); quit {
			t.Fatalf("key %q quits", k)
		}
	}
	return m
}

func TestTopKeys(t *testing.T) {
	m := twoSamples()
	wantLine(t, press(t, m, "s", "s"), 3, "three") // by name
	wantLine(t, press(t, m, "s", "s"), 6, "10.5.1.2:5")
	byRTT := press(t, m, "s", "s", "s")
	wantLine(t, byRTT, 3, "three")
	wantLine(t, byRTT, 9, "sort: RTT")
	wantLine(t, press(t, m, "s", "s", "s", "s"), 9, "sort: rate")

	filtered := press(t, m, "/", "t", "w", "o", "x", "backspace")
	wantLine(t, filtered, 3, "two")
	wantLine(t, filtered, 8, "/two_")
	wantLine(t, press(t, filtered, "enter"), 8, "filter: two")
	if got := len(press(t, filtered, "esc").lines()); got != len(m.lines()) {
		t.Errorf("%d lines after Esc, want %d", got, len(m.lines()))
	}
	wantLine(t, press(t, m, "/", "q", "s", "p"), 4, "/qsp_") // letters are text there

	paused := press(t, m, "p")
	wantLine(t, paused, 0, "PAUSED")
	if paused.add(topAt(9)).last.Time != m.last.Time {
		t.Error("a paused screen changed")
	}
	if press(t, paused, "p").add(topAt(9)).last.Time == m.last.Time {
		t.Error("a screen that goes on did not change")
	}
	for _, k := range []string{"q", "ctrl+c"} {
		if _, quit := m.key(k, ""); !quit {
			t.Errorf("%s does not quit", k)
		}
	}
}

// TestTopFits draws screens of all sizes: no line may be too long, and no line too many.
func TestTopFits(t *testing.T) {
	sample := topAt(2)
	for i := range 100 {
		sample.Nodes = append(sample.Nodes, control.TopNode{Name: fmt.Sprintf("node%d", i)})
		sample.Flows = append(sample.Flows, sample.Flows[0])
	}
	for width := range 150 {
		for _, height := range []int{0, 1, 2, 5, 6, 7, 20, 50} {
			lines := topModel{width: width, height: height}.add(topAt(1)).add(sample).lines()
			if len(lines) > max(height, 1) || height >= 20 && len(lines) != height {
				t.Fatalf("%d lines on a screen of %d", len(lines), height)
			}
			for _, l := range lines {
				if len([]rune(l)) > width {
					t.Fatalf("line of %d characters on a screen of %d: %s", len([]rune(l)), width, l)
				}
			}
		}
	}
}

func TestSI(t *testing.T) {
	for v, want := range map[float64]string{0: "0 ", 999: "999 ", 1000: "1.00 k", 12_345: "12.3 k",
		123_456: "123 k", 9.876e9: "9.88 G", 2e12: "2.0 T"} {
		if got := si(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestTopPrints(t *testing.T) {
	var stream, out bytes.Buffer
	e := json.NewEncoder(&stream)
	for i := range 5 {
		if err := e.Encode(topAt(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	text := stream.String()
	if err := printTop(t.Context(), &out, strings.NewReader(text), printing{count: 2}); err != nil ||
		strings.Count(out.String(), "weft top  one") != 2 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%v:\n%s", err, &out)
	}
	out.Reset()
	if err := printTop(t.Context(), &out, strings.NewReader(text), printing{json: true}); err != nil ||
		strings.Count(out.String(), "\n") != 4 {
		t.Errorf("%v:\n%s", err, &out)
	}
	if err := printTop(t.Context(), &out, strings.NewReader("{"), printing{}); err == nil {
		t.Error("a broken stream is no error")
	}
}
