package udp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReserveTrains(t *testing.T) {
	a, b := TxKey{To: dest(1)}, TxKey{To: dest(2)}
	type put struct {
		key TxKey
		n   int
	}
	repeat := func(p put, n int) []put { return slices.Repeat([]put{p}, n) }
	for _, c := range []struct {
		name   string
		puts   []put
		trains int
	}{
		{"single datagram", []put{{a, 100}}, 1},
		{"equal sizes", repeat(put{a, 100}, 64), 1},
		{"more than maxSegmentsOld", repeat(put{a, 100}, 65), 2},
		{"last is shorter", []put{{a, 100}, {a, 100}, {a, 99}}, 1},
		{"none after a shorter one", []put{{a, 100}, {a, 99}, {a, 99}}, 2},
		{"longer datagram", []put{{a, 100}, {a, 101}}, 2},
		{"two nodes alternating", []put{{a, 100}, {b, 100}, {a, 100}, {b, 100}}, 2},
		{"another TOS", []put{{a, 100}, {TxKey{To: a.To, TOS: 2}, 100}, {a, 100}}, 2},
		{"another shard", []put{{a, 100}, {a, 100}, {TxKey{To: a.To, Shard: 1}, 100}}, 2},
		{"empty datagram", []put{{a, 100}, {a, 0}, {a, 0}}, 3},
		{"earlier train not extended", []put{{a, 100}, {a, 200}, {a, 100}, {a, 100}}, 3},
		{"64 KiB", repeat(put{a, 1423}, 46), 1},
		{"more than maxTrain4", repeat(put{a, 1424}, 47), 2},
	} {
		s := newScripted(t, true)
		for i, p := range c.puts {
			if !s.put(p.key, payload(i, p.n)) {
				t.Fatalf("%s: Reserve returned nil for datagram %d", c.name, i)
			}
		}
		if !s.Flush(s.failed) {
			t.Fatalf("%s: Flush returned false", c.name)
		}
		if s.kernel.messages != c.trains || s.kernel.calls != 1 {
			t.Errorf("%s: %d trains in %d calls, want %d", c.name, s.kernel.messages, s.kernel.calls, c.trains)
		}
		s.compare(t, c.name, func(yield func(TxKey, []byte)) {
			for i, p := range c.puts {
				yield(p.key, payload(i, p.n))
			}
		})
	}
}

func TestTrainMaxLength(t *testing.T) {
	six := TxKey{To: NewDestination(netip.MustParseAddrPort("[2001:db8::1]:8285"))}
	for _, c := range []struct {
		key     TxKey
		longest int
	}{{TxKey{To: dest(1)}, 65507}, {six, 65487}} {
		s := newScripted(t, true)
		s.put(c.key, make([]byte, c.longest-30_000))
		s.put(c.key, make([]byte, 30_000))
		if s.trains.n != 1 {
			t.Errorf("%v: train of %d bytes not built", c.key.To.Addr, c.longest)
		}
		s = newScripted(t, true)
		s.put(c.key, make([]byte, c.longest-30_000))
		s.put(c.key, make([]byte, 30_001))
		if s.trains.n != 2 {
			t.Errorf("%v: train of %d bytes built", c.key.To.Addr, c.longest+1)
		}
	}
}

func TestReserveFull(t *testing.T) {
	s := newScripted(t, true)
	n := 0
	for ; s.put(TxKey{To: dest(byte(n))}, make([]byte, 100)); n++ {
	}
	if n != maxTrains {
		t.Errorf("flush of %d trains, want maxTrains", n)
	}
	if s.put(TxKey{To: dest(1)}, make([]byte, trainSize+1)) {
		t.Error("Reserve accepted more than trainSize bytes")
	}
}

func BenchmarkReserveAndFlush(b *testing.B) {
	for _, nodes := range []int{1, 10, 100} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			s := &scripted{}
			s.trains = newTrains(maxTrains, maxSegmentsOld)
			s.sender = newSender(-1, false, true)
			s.sender.send = func(_ int, m []unix.Mmsghdr) (int, unix.Errno) { return len(m), 0 }
			keys := make([]TxKey, nodes)
			for i := range keys {
				keys[i].To = dest(byte(i))
			}
			i := 0
			for b.Loop() {
				if s.Reserve(keys[i%nodes], 100) == nil {
					s.Flush(nil)
				}
				i++
			}
		})
	}
}
