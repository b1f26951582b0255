package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"weft/dataplane/capture"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
)

// records is a sink that keeps copies.
type records []capture.Record

func (r *records) Write(rec *capture.Record) error {
	c := *rec
	c.Bytes = slices.Clone(c.Bytes)
	*r = append(*r, c)
	return nil
}

func (r *records) Flush() error { return nil }

// startCapture starts a capture. The function it returns ends it and returns the records.
func startCapture(t testing.TB, h *harness, o capture.Options) func() records {
	t.Helper()
	session, stop, err := h.engine.Capture(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return func() records {
		stop()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		var all records
		if err := session.Run(ctx, &all, 0); err != nil {
			t.Fatal(err)
		}
		return all
	}
}

// TestCaptureEveryDrop provokes each drop reason and looks for the packet with the reason's name.
func TestCaptureEveryDrop(t *testing.T) {
	for d, provoke := range provokeDrop() {
		h := newHarness(t)
		end := startCapture(t, h, capture.Options{DropsOnly: true})
		provoke(h)
		got := end()
		if len(got) != 1 || got[0].Drop != d.String() || got[0].Point != capture.Inner {
			t.Errorf("%v: captured %+v", d, got)
		}
	}
}

// TestCaptureBothPoints captures a packet in each direction, inner and outer.
func TestCaptureBothPoints(t *testing.T) {
	h := newHarness(t)
	h.engine.bound = netip.MustParseAddrPort("192.0.2.1:8285")
	end := startCapture(t, h, capture.Options{Inner: true, Outer: true})
	out, in := udp4("10.5.1.2", "10.5.2.2", 0, 10, 0), udp4("10.5.2.2", "10.5.1.2", 0, 20, 0)
	h.fromTUN(out)
	h.fromUDP("192.0.2.2", in)
	got := end()
	if len(got) != 4 {
		t.Fatalf("captured %d records, want 4: %+v", len(got), got)
	}
	for i, want := range []struct {
		inner    []byte
		outbound bool
		src, dst string
	}{{out, true, "192.0.2.1", "192.0.2.2"}, {in, false, "192.0.2.2", "192.0.2.1"}} {
		inner, outer := got[2*i], got[2*i+1]
		if inner.Point != capture.Inner || !slices.Equal(inner.Bytes, want.inner) ||
			inner.Outbound != want.outbound || inner.Node != "two" || inner.Drop != "" {
			t.Errorf("inner record %+v", inner)
		}
		if outer.Point != capture.Outer || !slices.Equal(outer.Bytes[28:], want.inner) ||
			netip.AddrFrom4([4]byte(outer.Bytes[12:])) != netip.MustParseAddr(want.src) ||
			netip.AddrFrom4([4]byte(outer.Bytes[16:])) != netip.MustParseAddr(want.dst) {
			t.Errorf("outer record %+v", outer)
		}
	}
}

// TestCaptureGSOFrame captures the segments of a GSO frame as they are on the wire.
func TestCaptureGSOFrame(t *testing.T) {
	h := newHarness(t)
	end := startCapture(t, h, capture.Options{})
	h.queue.in = []tun.Frame{gsoTCP("10.5.1.2", "10.5.2.2", 10_000, 1000)}
	h.round()
	got := end()
	if len(got) != 10 {
		t.Fatalf("captured %d packets, want 10", len(got))
	}
	for i, r := range got {
		if !slices.Equal(r.Bytes, h.socket.sent[i].data) {
			t.Errorf("packet %d differs from the one that was sent", i)
		}
	}
}

// TestCaptureAgrees checks that the captured packets are those that the counters count.
func TestCaptureAgrees(t *testing.T) {
	h := newHarness(t)
	end := startCapture(t, h, capture.Options{})
	for _, d := range Drops() {
		if d != DropTUNDown && d != DropTUNWriteError && d != DropSendError && d != DropNoRoom {
			provokeDrop()[d](h) // the others change the harness for good
		}
	}
	dropped := uint64(0)
	for _, r := range end() {
		if r.Drop != "" {
			dropped++
		}
	}
	want := uint64(0)
	for _, n := range h.drops() {
		want += n
	}
	if dropped != want || want == 0 {
		t.Errorf("captured %d drops, counted %d", dropped, want)
	}
}

func TestCaptureTooMany(t *testing.T) {
	h := newHarness(t)
	for range maxCaptures {
		startCapture(t, h, capture.Options{})
	}
	if _, _, err := h.engine.Capture(capture.Options{}); err == nil {
		t.Error("one capture more than allowed was accepted")
	}
}

// TestCaptureEndsWithoutTraces checks that workers have nothing to do once all captures have ended.
func TestCaptureEndsWithoutTraces(t *testing.T) {
	h := newHarness(t)
	first := startCapture(t, h, capture.Options{})
	second := startCapture(t, h, capture.Options{})
	first()
	h.fromTUN(udp4("10.5.1.2", "10.5.2.2", 0, 10, 0))
	if got := second(); len(got) != 1 {
		t.Errorf("the second capture has %d packets after the end of the first, want 1", len(got))
	}
	if h.engine.taps.Load() != nil {
		t.Error("taps are left without a capture")
	}
}

// TestCaptureDoesNotAllocate counts the allocations of both directions while a capture runs.
func TestCaptureDoesNotAllocate(t *testing.T) {
	h := newHarness(t)
	end := startCapture(t, h, capture.Options{Inner: true, Outer: true, Memory: 64 << 20})
	h.queue.repeat, h.socket.repeat = true, true
	h.queue.in = []tun.Frame{gsoTCP("10.5.1.2", "10.5.2.2", 10_000, 1000)}
	pkt := udp4("10.5.2.2", "10.5.1.2", 0, 100, 0)
	h.socket.in = [][]udp.Message{{message("192.0.2.2", len(pkt), pkt)}}
	h.socket.buf = make([]byte, scratchSize)
	h.ready.queues[sparse], h.ready.socket = true, true
	if n := testing.AllocsPerRun(5, func() { h.worker.round() }); n != 0 {
		t.Errorf("%v allocations per round", n)
	}
	if got := len(end()); got < 700 {
		t.Errorf("captured only %d records", got)
	}
}

// BenchmarkForward measures one GSO frame of ten segments with and without a capture that reads as
// fast as it can.
func BenchmarkForward(b *testing.B) {
	for _, captures := range []int{0, 1} {
		b.Run(fmt.Sprintf("captures=%d", captures), func(b *testing.B) {
			h := newHarness(b)
			for range captures {
				session, stop, err := h.engine.Capture(capture.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer stop()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				go func() { _ = session.Run(ctx, discard{}, 0) }()
			}
			h.socket.repeat, h.socket.buf = true, make([]byte, scratchSize)
			frame := gsoTCP("10.5.1.2", "10.5.2.2", 10_000, 1000)
			h.worker.round() // loads the taps
			for b.Loop() {
				h.forward(frame)
			}
		})
	}
}

// discard is a sink without effect.
type discard struct{}

func (discard) Write(*capture.Record) error { return nil }
func (discard) Flush() error                { return nil }
