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

// GSO frames pass the bare tunnel whole, in both modes of the underlay.
func TestNetnsBare(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeWire, lab.ModeOff} {
		o, err := start(t.Context(), Bare(os.Args[0], "bare"),
			lab.Options{NamePrefix: string(mode) + "-", Direct: true, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := o.close(); err != nil {
				t.Error(err)
			}
		}()
		from, to := o.pods()
		r, err := traffic.TCP(t.Context(), from, to, 1, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		link, err := o.lab.Nodes[1].Link(bareDevice)
		if err != nil {
			t.Fatal(err)
		}
		c := link.Counters
		t.Logf("%s: %.1f Gbit/s, %d retransmits, %d frames of %d bytes", mode, r.BitsPerSecond/1e9, r.Retransmits,
			c.RxPackets, c.RxBytes/c.RxPackets)
		if c.RxBytes/c.RxPackets <= uint64(link.MTU) {
			t.Errorf("%s: %d bytes in %d frames, want some longer than a packet", mode, c.RxBytes, c.RxPackets)
		}
	}
}

func TestNetnsBareExitError(t *testing.T) {
	o, err := start(t.Context(), Bare(os.Args[0], "bare", "not an address"), lab.Options{Direct: true})
	if err == nil {
		t.Fatal("started", o.close())
	}
	if !strings.Contains(err.Error(), "the daemon exited: ") {
		t.Errorf("%v, want the end of the log", err)
	}
}

func TestNetnsBareThreeNodes(t *testing.T) {
	o, err := start(t.Context(), Bare(os.Args[0], "bare"), lab.Options{Nodes: 3})
	if err == nil {
		t.Fatal("started on three nodes", o.close())
	}
	if !strings.Contains(err.Error(), "connects two nodes, not 3") {
		t.Error(err)
	}
}

func TestNetnsBareDeviceDeleted(t *testing.T) {
	o, err := start(t.Context(), Bare(os.Args[0], "bare"), lab.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	if err := o.lab.Nodes[0].DeleteLink(bareDevice); err != nil {
		t.Fatal(err)
	}
	if status, err := o.daemons[0].Wait(t.Context()); status != 1 || err != nil {
		t.Errorf("exit status %d, %v, want 1", status, err)
	}
	if err := exitError(o.daemons[0]); !strings.Contains(err.Error(), "bare0 was deleted") {
		t.Error(err)
	}
}

// pack returns a message of frames as copyOut sends it.
func pack(frames ...[]byte) (message []byte) {
	for _, f := range frames {
		message = binary.BigEndian.AppendUint32(message, bareMagic)
		message = binary.BigEndian.AppendUint32(message, uint32(len(f)))
		message = append(message, f...)
	}
	return message
}

// A message is cut in two anywhere: the rest that unpack returns for the first piece is put before
// the second one.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("a frame"), []byte("another"), uint(11))
	f.Add([]byte{}, []byte("cut in its length"), uint(13))
	f.Add([]byte{0xba, 0x5e, 0xf4, 0xa3, 0xff, 0xff, 0xff, 0xff}, []byte("after an invalid frame"), uint(20))
	f.Fuzz(func(t *testing.T, a, b []byte, cut uint) {
		frames := [][]byte{a, b}
		if len(a) > maxBareFrame || len(b) > maxBareFrame {
			frames = nil // unpack only has to return
		}
		message := pack(a, b)
		cut %= uint(len(message) + 1)
		var got [][]byte
		keep := func(frame []byte) { got = append(got, bytes.Clone(frame)) }
		rest := unpack(message[:cut], keep)
		if !bytes.HasSuffix(message[:cut], rest) {
			t.Fatalf("the %d remaining bytes are not the last ones of %d", len(rest), cut)
		}
		unpack(append(bytes.Clone(rest), message[cut:]...), keep)
		if rest := unpack(a, func([]byte) {}); startsFrame(rest) && binary.BigEndian.Uint32(rest[4:]) > maxBareFrame {
			t.Errorf("waits for a frame of %d bytes, longer than the buffer", binary.BigEndian.Uint32(rest[4:]))
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
