package checksum

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// slowSum is the reference implementation: RFC 1071 section 1, one word at a time.
func slowSum(b []byte, initial uint16) uint16 {
	s := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

// routine is one implementation under test. needs is the missing CPU feature, or empty if the
// routine can run.
type routine struct {
	name  string
	needs string
	sum   func(b []byte, initial uint16) uint16
	copy  func(dst, src []byte, initial uint16) uint16
}

func (r routine) require(t testing.TB) {
	t.Helper()
	if r.needs != "" {
		t.Skipf("NOT TESTED: %s: CPU has no %s", r.name, r.needs)
	}
}

func allRoutines() []routine {
	return append([]routine{
		{name: "dispatch", sum: Sum, copy: Copy},
		{name: "generic", sum: sumGeneric, copy: copySumGeneric},
	}, assembly()...)
}

// pattern fills b to cover every carry path: random bytes, all ones, all zeros, or ones in the high
// halves of 64-bit words only.
func pattern(b []byte, kind int, rnd *rand.ChaCha8) {
	switch kind {
	case 0:
		rnd.Read(b)
	case 1:
		for i := range b {
			b[i] = 0xff
		}
	case 2:
		clear(b)
	case 3:
		for i := range b {
			b[i] = byte(0xff * (i / 4 % 2))
		}
	}
}

// TestReference compares all implementations with slowSum.
func TestReference(t *testing.T) {
	for _, r := range allRoutines() {
		t.Run(r.name, func(t *testing.T) {
			r.require(t)
			rnd := rand.NewChaCha8([32]byte{1})
			buf := make([]byte, 2048+64)
			out := make([]byte, 2048+64)
			for kind := range 4 {
				pattern(buf, kind, rnd)
				for n := 0; n <= 2000; n++ {
					from, to := n*7%33, n*5%35
					initial := []uint16{0, 0xffff, uint16(n * 40503)}[n%3]
					src, dst := buf[from:from+n], out[to:to+n]
					want := slowSum(src, initial)
					if got := r.sum(src, initial); got != want {
						t.Fatalf("sum of %d bytes at +%d, pattern %d: %#04x, want %#04x", n, from, kind, got, want)
					}
					clear(out)
					if got := r.copy(dst, src, initial); got != want {
						t.Fatalf("copy of %d bytes at +%d, pattern %d: sum %#04x, want %#04x", n, from, kind, got, want)
					}
					if !bytes.Equal(dst, src) {
						t.Fatalf("copy of %d bytes from +%d to +%d, pattern %d: bytes differ", n, from, to, kind)
					}
					if !zero(out[:to]) || !zero(out[to+n:]) {
						t.Fatalf("copy of %d bytes to +%d wrote outside", n, to)
					}
				}
			}
		})
	}
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func TestAlignment(t *testing.T) {
	for _, r := range allRoutines() {
		t.Run(r.name, func(t *testing.T) {
			r.require(t)
			rnd := rand.NewChaCha8([32]byte{2})
			buf, out := make([]byte, 400), make([]byte, 400)
			rnd.Read(buf)
			for from := range 65 {
				for to := range 65 {
					src, dst := buf[from:from+300], out[to:to+300]
					want := slowSum(src, 0)
					if got := r.sum(src, 0); got != want {
						t.Fatalf("sum at +%d: %#04x, want %#04x", from, got, want)
					}
					if got := r.copy(dst, src, 0); got != want || !bytes.Equal(dst, src) {
						t.Fatalf("copy from +%d to +%d: sum %#04x, want %#04x, equal bytes: %v",
							from, to, got, want, bytes.Equal(dst, src))
					}
				}
			}
		})
	}
}

// TestCopyOverlap moves bytes towards the front by 0 to 200 bytes, the range of removed headers.
func TestCopyOverlap(t *testing.T) {
	for _, r := range allRoutines() {
		t.Run(r.name, func(t *testing.T) {
			r.require(t)
			rnd := rand.NewChaCha8([32]byte{3})
			orig := make([]byte, 2000)
			rnd.Read(orig)
			for _, n := range []int{0, 1, 7, 31, 63, 64, 127, 128, 129, 159, 255, 1000, 1448} {
				for shift := 0; shift <= 200; shift++ {
					buf := bytes.Clone(orig)
					want := slowSum(orig[shift:shift+n], 0x1234)
					if got := r.copy(buf[:n], buf[shift:shift+n], 0x1234); got != want {
						t.Fatalf("%d bytes moved down by %d: sum %#04x, want %#04x", n, shift, got, want)
					}
					if !bytes.Equal(buf[:n], orig[shift:shift+n]) {
						t.Fatalf("%d bytes moved down by %d: bytes differ", n, shift)
					}
				}
			}
		})
	}
}

// TestLongInput sums many all-ones words, which overflow accumulators that are folded too late.
func TestLongInput(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, 1<<20+5)
	dst := make([]byte, len(b))
	want := slowSum(b, 0xffff)
	for _, r := range allRoutines() {
		t.Run(r.name, func(t *testing.T) {
			r.require(t)
			if got := r.sum(b, 0xffff); got != want {
				t.Errorf("sum %#04x, want %#04x", got, want)
			}
			if got := r.copy(dst, b, 0xffff); got != want {
				t.Errorf("copy %#04x, want %#04x", got, want)
			}
		})
	}
}

// TestIPv4Header checks a common example of an IPv4 header with a valid checksum, whose sum is
// 0xffff.
func TestIPv4Header(t *testing.T) {
	header := []byte{
		0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11,
		0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
	}
	if got := Sum(header, 0); got != 0xffff {
		t.Errorf("sum of a valid header %#04x, want 0xffff", got)
	}
	header[10], header[11] = 0, 0
	if got := ^Sum(header, 0); got != 0xb861 {
		t.Errorf("checksum %#04x, want 0xb861", got)
	}
}

func TestPseudo(t *testing.T) {
	tests := []struct {
		name   string
		addrs  []byte
		length int
		full   []byte // expected pseudo-header
	}{
		{
			"ipv4 udp", []byte{10, 1, 2, 3, 10, 1, 3, 4}, 1480,
			[]byte{10, 1, 2, 3, 10, 1, 3, 4, 0, 17, 1480 >> 8, 1480 & 0xff},
		},
		{
			"ipv6 udp, length above 16 bits", bytes.Repeat([]byte{0xfd, 0x12}, 16), 70000,
			append(bytes.Repeat([]byte{0xfd, 0x12}, 16), 0, 1, 0x11, 0x70, 0, 0, 0, 17),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, want := Pseudo(tt.addrs, 17, tt.length), slowSum(tt.full, 0); got != want {
				t.Errorf("got %#04x, want %#04x", got, want)
			}
		})
	}
}

func TestFold(t *testing.T) {
	for _, s := range []uint64{0, 1, 0xffff, 0x10000, 0x1fffe, 1<<32 - 1, 1 << 32, 1<<48 - 1, 1<<64 - 1, 1<<64 - 2} {
		want := uint16(s % 0xffff)
		if want == 0 && s != 0 {
			want = 0xffff
		}
		if got := Fold(s); got != want {
			t.Errorf("Fold(%#x) = %#04x, want %#04x", s, got, want)
		}
	}
}

func TestCopyShortDestination(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic for a short destination")
		}
	}()
	Copy(make([]byte, 63, 100), make([]byte, 64), 0)
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 129), uint16(0xffff), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, initial uint16, shift uint8) {
		skip := min(int(shift), len(b))
		want := slowSum(b[skip:], initial)
		for _, r := range allRoutines() {
			if r.needs != "" {
				continue
			}
			if got := r.sum(b[skip:], initial); got != want {
				t.Errorf("%s: sum %#04x, want %#04x", r.name, got, want)
			}
			moved := bytes.Clone(b)
			if got := r.copy(moved, moved[skip:], initial); got != want {
				t.Errorf("%s: copy %#04x, want %#04x", r.name, got, want)
			}
			if !bytes.Equal(moved[:len(b)-skip], b[skip:]) {
				t.Errorf("%s: bytes moved down by %d differ", r.name, skip)
			}
		}
	})
}

func TestAllocs(t *testing.T) {
	src, dst := make([]byte, 1448), make([]byte, 1448)
	var s uint16
	if n := testing.AllocsPerRun(100, func() { s = Copy(dst, src, Sum(src, s)) }); n != 0 {
		t.Errorf("%v allocations per call, want 0", n)
	}
}

func BenchmarkSum(b *testing.B) {
	benchmark(b, func(r routine, _, src []byte) uint16 { return r.sum(src, 1) })
}

func BenchmarkCopy(b *testing.B) {
	benchmark(b, func(r routine, dst, src []byte) uint16 { return r.copy(dst, src, 1) })
}

func benchmark(b *testing.B, op func(r routine, dst, src []byte) uint16) {
	for _, size := range []struct {
		name string
		n    int
	}{
		{"20", 20}, {"40", 40}, {"64", 64}, {"128", 128}, {"256", 256},
		{"1448", 1448}, {"8948", 8948}, {"65483", 65483},
	} {
		src, dst := make([]byte, size.n), make([]byte, size.n)
		for _, r := range allRoutines() {
			b.Run(size.name+"/"+r.name, func(b *testing.B) {
				r.require(b)
				b.SetBytes(int64(size.n))
				var s uint16
				for b.Loop() {
					s += op(r, dst, src)
				}
				_ = s
			})
		}
	}
}
