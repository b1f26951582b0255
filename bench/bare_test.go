package bench

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"time"

	"weft/bench/traffic"
	"weft/deploy/lab"
)

// Super-frames pass the bare tunnel whole, in both modes of the underlay.
func TestNetnsBare(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		o, err := begin(t.Context(), Bare(os.Args[0], "bare"), lab.Options{NamePrefix: string(mode) + "-", Direct: true, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := o.close(); err != nil {
				t.Error(err)
			}
		}()
		from, to := o.ends()
		r, err := traffic.TCP(t.Context(), from, to, 1, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		link, err := o.lab.Nodes[1].Link(bareDevice)
		if err != nil {
			t.Fatal(err)
		}
		c := link.Counters
		t.Logf("%s: %.1f Gbit/s, %d retransmits, %d frames of %d bytes", mode, r.BitsPerSecond/1e9, r.Retransmits, c.RxPackets, c.RxBytes/c.RxPackets)
		if c.RxBytes/c.RxPackets <= uint64(link.MTU) {
			t.Errorf("%s: %d bytes in %d frames: none is longer than a packet", mode, c.RxBytes, c.RxPackets)
		}
	}
}

func TestNetnsBareSaysWhyItEnded(t *testing.T) {
	o, err := begin(t.Context(), Bare(os.Args[0], "bare", "not an address"), lab.Options{Direct: true})
	if err == nil {
		t.Fatal("it began", o.close())
	}
	if !strings.Contains(err.Error(), "has ended: ") {
		t.Errorf("%v, want that it has ended, and its last words", err)
	}
}

func TestNetnsBareJoinsTwoNodes(t *testing.T) {
	o, err := begin(t.Context(), Bare(os.Args[0], "bare"), lab.Options{Nodes: 3})
	if err == nil {
		t.Fatal("it joined three nodes", o.close())
	}
	if !strings.Contains(err.Error(), "joins two nodes, not 3") {
		t.Error(err)
	}
}

func TestNetnsBareEndsWithItsDevice(t *testing.T) {
	o, err := begin(t.Context(), Bare(os.Args[0], "bare"), lab.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	if err := o.lab.Nodes[0].DeleteLink(bareDevice); err != nil {
		t.Fatal(err)
	}
	if status, err := o.daemons[0].Wait(t.Context()); status != 1 || err != nil {
		t.Errorf("ended with %d, %v", status, err)
	}
	if err := ended(o.daemons[0]); !strings.Contains(err.Error(), "bare0 is gone") {
		t.Error(err)
	}
}

// pack puts frames into a message as outward does.
func pack(frames ...[]byte) (message []byte) {
	for _, f := range frames {
		message = binary.BigEndian.AppendUint32(message, bareMark)
		message = binary.BigEndian.AppendUint32(message, uint32(len(f)))
		message = append(message, f...)
	}
	return message
}

// What unpack leaves of one piece of a message goes before the next one, wherever it was cut.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("a frame"), []byte("another"), uint(11))
	f.Add([]byte{}, []byte("cut in its length"), uint(13))
	f.Add([]byte{0xba, 0x5e, 0xf4, 0xa3, 0xff, 0xff, 0xff, 0xff}, []byte("behind what is none"), uint(20))
	f.Fuzz(func(t *testing.T, a, b []byte, cut uint) {
		frames := [][]byte{a, b}
		if len(a) > longestBareFrame || len(b) > longestBareFrame {
			frames = nil // nothing may come of it but an end
		}
		message := pack(a, b)
		cut %= uint(len(message) + 1)
		var got [][]byte
		keep := func(frame []byte) { got = append(got, bytes.Clone(frame)) }
		rest := unpack(message[:cut], keep)
		if !bytes.HasSuffix(message[:cut], rest) {
			t.Fatalf("%d bytes are left of %d, and not the last ones", len(rest), cut)
		}
		unpack(append(bytes.Clone(rest), message[cut:]...), keep)
		if rest := unpack(a, func([]byte) {}); startsFrame(rest) && binary.BigEndian.Uint32(rest[4:]) > longestBareFrame {
			t.Errorf("it waits for a frame of %d bytes, longer than there is room for", binary.BigEndian.Uint32(rest[4:]))
		}
		if frames == nil {
			return
		}
		if len(got) != len(frames) {
			t.Fatalf("%d frames, want %d; cut at %d of %d", len(got), len(frames), cut, len(message))
		}
		for i := range frames {
			if !bytes.Equal(got[i], frames[i]) {
				t.Errorf("frame %d differs", i)
			}
		}
	})
}
