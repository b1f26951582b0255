package topflows

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestSketchEqualsMap compares a sketch with exact counts. Few flows are large.
func TestSketchEqualsMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(r, 1.2, 1, 5000)
	const capacity = 256
	s, exact, total := NewSketch(capacity), map[uint16]uint64{}, uint64(0)
	for range 200_000 {
		port, n := uint16(zipf.Uint64()), uint64(60+r.IntN(1400))
		exact[port] += n
		total += n
		s.Add(Flow{Key: Key{SrcPort: port}, Packets: 1, Bytes: n})
	}
	found := map[uint16]Flow{}
	for _, f := range s.Top(capacity) {
		found[f.SrcPort] = f
		if n := exact[f.SrcPort]; f.Bytes < n || f.Bytes-f.Error > n {
			t.Errorf("flow %d: %d bytes with error %d, want %d", f.SrcPort, f.Bytes, f.Error, n)
		}
	}
	if len(found) != capacity {
		t.Errorf("%d flows, want %d", len(found), capacity)
	}
	for port, n := range exact {
		if _, ok := found[port]; !ok && n > total/capacity {
			t.Errorf("flow %d with %d of %d bytes is missing", port, n, total)
		}
	}
	all := s.Top(10)
	if len(all) != 10 || !slices.IsSortedFunc(all, func(a, b Flow) int { return cmp.Compare(b.Bytes, a.Bytes) }) {
		t.Errorf("not the ten largest in order: %+v", all)
	}
	if s.Reset(); len(s.Top(10)) != 0 {
		t.Error("flows after Reset")
	}
}

func TestKeyOf(t *testing.T) {
	v4 := []byte{0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 5, 1, 2, 10, 5, 2, 2, 0, 80, 1, 0, 0, 8, 0, 0}
	a, b := netip.MustParseAddr("10.5.1.2"), netip.MustParseAddr("10.5.2.2")
	ports := Key{Src: a, Dst: b, SrcPort: 80, DstPort: 256, Proto: 17}
	none := Key{Src: a, Dst: b, Proto: 17}
	fragment := slices.Clone(v4)
	fragment[6] = 0x20
	v6 := make([]byte, 44)
	v6[0], v6[6], v6[41] = 0x60, 6, 9
	for _, c := range []struct {
		name string
		pkt  []byte
		want Key
		ok   bool
	}{
		{"IPv4", v4, ports, true},
		{"only the IP header", v4[:20], none, true},
		{"fragment", fragment, none, true},
		{"IPv6", v6, Key{Src: netip.IPv6Unspecified(), Dst: netip.IPv6Unspecified(), SrcPort: 9, Proto: 6}, true},
		{"short", v4[:19], Key{}, false},
		{"empty", nil, Key{}, false},
		{"not IP", append([]byte{0x75}, v4[1:]...), Key{}, false},
	} {
		if got, ok := KeyOf(c.pkt); got != c.want || ok != c.ok {
			t.Errorf("%s: %+v, %v", c.name, got, ok)
		}
	}
}

func FuzzKeyOf(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(_ *testing.T, pkt []byte) { KeyOf(pkt) })
}
