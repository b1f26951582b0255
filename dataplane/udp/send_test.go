package udp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is a sendmmsg that follows a script and takes apart what it is given, as the network would.
type kernel struct {
	t        *testing.T
	calls    int
	room     func(call int) int                           // how many messages the call takes; nil: all
	fail     func(message []byte, segment int) unix.Errno // why a message is refused; nil: never
	got      []datagram
	messages int
}

type datagram struct {
	to   netip.AddrPort
	data []byte
	tos  int
}

func (k *kernel) sendmmsg(_ int, messages []unix.Mmsghdr) (int, unix.Errno) {
	k.calls++
	room := len(messages)
	if k.room != nil {
		room = min(room, k.room(k.calls))
	}
	if room == 0 {
		return 0, unix.EAGAIN
	}
	for i := range messages[:room] {
		hdr := &messages[i].Hdr
		data := unsafe.Slice(hdr.Iov.Base, int(hdr.Iov.Len))
		segment, tos := k.control(hdr)
		if k.fail != nil {
			if errno := k.fail(data, segment); errno != 0 {
				if i > 0 {
					return i, 0
				}
				return 0, errno
			}
		}
		k.messages++
		to := addrPort((*unix.RawSockaddrInet6)(unsafe.Pointer(hdr.Name)))
		if segment == 0 {
			k.got = append(k.got, datagram{to, slices.Clone(data), tos})
			continue
		}
		for part := range slices.Chunk(data, segment) {
			k.got = append(k.got, datagram{to, slices.Clone(part), tos})
		}
	}
	return room, 0
}

// control reads the control messages by the library's own parser.
func (k *kernel) control(hdr *unix.Msghdr) (segment, tos int) {
	k.t.Helper()
	if hdr.Control == nil {
		if hdr.Controllen != 0 {
			k.t.Errorf("control length %d without control", hdr.Controllen)
		}
		return 0, 0
	}
	all, err := unix.ParseSocketControlMessage(unsafe.Slice(hdr.Control, int(hdr.Controllen)))
	if err != nil || len(all) == 0 {
		k.t.Fatalf("control messages %v: %v", all, err)
	}
	for _, m := range all {
		switch {
		case m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_SEGMENT && len(m.Data) == 2:
			segment = int(*(*uint16)(unsafe.Pointer(&m.Data[0])))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			tos = int(*(*int32)(unsafe.Pointer(&m.Data[0])))
		default:
			k.t.Errorf("control message %+v", m)
		}
	}
	return segment, tos
}

// scripted is an offload socket without a socket.
type scripted struct {
	Offload
	kernel  *kernel
	refused []datagram
	errs    []error
}

func newScripted(t *testing.T, gso bool) *scripted {
	s := &scripted{kernel: &kernel{t: t}}
	s.trains = newTrains(maxTrains, maxSegments)
	s.sender = newSender(-1, false, gso)
	s.sender.send = s.kernel.sendmmsg
	return s
}

func (s *scripted) failed(to *Destination, data []byte, err error) {
	s.refused = append(s.refused, datagram{to.Addr, slices.Clone(data), 0})
	s.errs = append(s.errs, err)
}

// put reserves and fills one datagram and reports whether there was room.
func (s *scripted) put(lane TxKey, data []byte) bool {
	b := s.Reserve(lane, len(data))
	if b == nil {
		return false
	}
	if len(b) != len(data) || cap(b) != len(data) {
		panic(fmt.Sprint("reserved ", len(b), " of ", cap(b)))
	}
	copy(b, data)
	return true
}

func dest(last byte) *Destination {
	return NewDestination(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 8285))
}

// payload is n bytes that no other payload of the test has.
func payload(id, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(id>>(8*(i%3))) + byte(i/3)
	}
	return b
}

func TestTrainsAreBuilt(t *testing.T) {
	a, b := TxKey{To: dest(1)}, TxKey{To: dest(2)}
	type put struct {
		lane TxKey
		n    int
	}
	repeat := func(p put, n int) []put { return slices.Repeat([]put{p}, n) }
	for _, c := range []struct {
		name   string
		puts   []put
		trains int
	}{
		{"one", []put{{a, 100}}, 1},
		{"equal", repeat(put{a, 100}, 64), 1},
		{"more than the kernel cuts", repeat(put{a, 100}, 65), 2},
		{"the last is shorter", []put{{a, 100}, {a, 100}, {a, 99}}, 1},
		{"nothing behind a shorter one", []put{{a, 100}, {a, 99}, {a, 99}}, 2},
		{"a longer one", []put{{a, 100}, {a, 101}}, 2},
		{"two nodes in turn", []put{{a, 100}, {b, 100}, {a, 100}, {b, 100}}, 2},
		{"another TOS", []put{{a, 100}, {TxKey{To: a.To, TOS: 2}, 100}, {a, 100}}, 2},
		{"another share", []put{{a, 100}, {a, 100}, {TxKey{To: a.To, Shard: 1}, 100}}, 2},
		{"an empty one", []put{{a, 100}, {a, 0}, {a, 0}}, 3},
		{"no way back to an earlier train", []put{{a, 100}, {a, 200}, {a, 100}, {a, 100}}, 3},
		{"64 KiB", repeat(put{a, 1423}, 46), 1},
		{"more than a packet holds", repeat(put{a, 1424}, 47), 2},
	} {
		s := newScripted(t, true)
		for i, p := range c.puts {
			if !s.put(p.lane, payload(i, p.n)) {
				t.Fatalf("%s: no room for datagram %d", c.name, i)
			}
		}
		if !s.Flush(s.failed) {
			t.Fatalf("%s: not flushed", c.name)
		}
		if s.kernel.messages != c.trains || s.kernel.calls != 1 {
			t.Errorf("%s: %d trains in %d calls, want %d", c.name, s.kernel.messages, s.kernel.calls, c.trains)
		}
		s.compare(t, c.name, func(yield func(TxKey, []byte)) {
			for i, p := range c.puts {
				yield(p.lane, payload(i, p.n))
			}
		})
	}
}

// compare checks that exactly the wanted datagrams have left, each lane's in order.
func (s *scripted) compare(t *testing.T, name string, wanted func(yield func(TxKey, []byte))) {
	t.Helper()
	type key struct {
		to  netip.AddrPort
		tos int
	}
	want := map[key][][]byte{}
	n := 0
	wanted(func(l TxKey, data []byte) {
		k := key{l.To.Addr, int(l.TOS)}
		want[k] = append(want[k], data)
		n++
	})
	if len(s.kernel.got) != n {
		t.Errorf("%s: %d datagrams left, want %d", name, len(s.kernel.got), n)
		return
	}
	for i, d := range s.kernel.got {
		k := key{d.to, d.tos}
		if len(want[k]) == 0 || !bytes.Equal(want[k][0], d.data) {
			t.Errorf("%s: datagram %d to %v is out of order or another", name, i, d.to)
			return
		}
		want[k] = want[k][1:]
	}
}

func TestMaximaOfATrain(t *testing.T) {
	six := TxKey{To: NewDestination(netip.MustParseAddrPort("[2001:db8::1]:8285"))}
	for _, c := range []struct {
		lane    TxKey
		longest int
	}{{TxKey{To: dest(1)}, 65507}, {six, 65487}} {
		s := newScripted(t, true)
		s.put(c.lane, make([]byte, c.longest-30_000))
		s.put(c.lane, make([]byte, 30_000))
		if s.trains.n != 1 {
			t.Errorf("%v: a train of %d bytes was refused", c.lane.To.Addr, c.longest)
		}
		s = newScripted(t, true)
		s.put(c.lane, make([]byte, c.longest-30_000))
		s.put(c.lane, make([]byte, 30_001))
		if s.trains.n != 2 {
			t.Errorf("%v: a train of %d bytes was built", c.lane.To.Addr, c.longest+1)
		}
	}
}

func TestReserveStopsWhenFull(t *testing.T) {
	s := newScripted(t, true)
	n := 0
	for ; s.put(TxKey{To: dest(byte(n))}, make([]byte, 100)); n++ {
	}
	if n != maxTrains {
		t.Errorf("one flush carries %d trains", n)
	}
	if s.put(TxKey{To: dest(1)}, make([]byte, trainSize+1)) {
		t.Error("room for more than a packet")
	}
}

// TestOneDatagramHasNoSegmentSize: some drivers lose single datagrams that come with one.
func TestOneDatagramHasNoSegmentSize(t *testing.T) {
	s := newScripted(t, true)
	s.put(TxKey{To: dest(1)}, payload(1, 100))
	s.put(TxKey{To: dest(2), TOS: 0xb8}, payload(2, 100))
	s.kernel.fail = func(_ []byte, segment int) unix.Errno {
		if segment != 0 {
			t.Errorf("segment size %d", segment)
		}
		return 0
	}
	s.Flush(s.failed)
	if len(s.kernel.got) != 2 || s.kernel.got[0].tos != 0 || s.kernel.got[1].tos != 0xb8 {
		t.Errorf("%+v", s.kernel.got)
	}
}

func TestWithoutGSOEveryDatagramIsAMessage(t *testing.T) {
	s := newScripted(t, false)
	lane := TxKey{To: dest(1), TOS: 1}
	const n = 3000 // more than one call takes
	for i := range n {
		if !s.put(lane, payload(i, 40)) {
			t.Fatal("no room")
		}
	}
	s.Flush(s.failed)
	if s.kernel.messages != n || s.kernel.calls != 3 {
		t.Errorf("%d messages in %d calls", s.kernel.messages, s.kernel.calls)
	}
	s.compare(t, "plain", func(yield func(TxKey, []byte)) {
		for i := range n {
			yield(lane, payload(i, 40))
		}
	})
	if got := lane.To.Packets.Load(); got != n || lane.To.Bytes.Load() != 40*n {
		t.Errorf("counted %d, %d bytes", got, lane.To.Bytes.Load())
	}
}

// TestRefusedTrainGoesOutOneByOne replays a train for each error by which GSO fails, and remembers the destination.
func TestRefusedTrainGoesOutOneByOne(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EOPNOTSUPP} {
		s := newScripted(t, true)
		now := time.Unix(1_700_000_000, 0)
		s.sender.now = func() time.Time { return now }
		bad, good := TxKey{To: dest(1)}, TxKey{To: dest(2)}
		s.kernel.fail = func(data []byte, segment int) unix.Errno {
			if segment == 100 { // only the first node's path
				return errno
			}
			return 0
		}
		for i := range 10 {
			s.put(bad, payload(i, 100))
			s.put(good, payload(100+i, 90))
		}
		s.Flush(s.failed)
		want := func(yield func(TxKey, []byte)) {
			for i := range 10 {
				yield(bad, payload(i, 100))
				yield(good, payload(100+i, 90))
			}
		}
		s.compare(t, errno.Error(), want)
		if len(s.refused) != 0 || s.kernel.messages != 11 {
			t.Errorf("%v: %d refused, %d messages", errno, len(s.refused), s.kernel.messages)
		}
		// The node is remembered: no second attempt, until a while later.
		calls := s.kernel.calls
		s.put(bad, payload(1, 100))
		s.put(bad, payload(2, 100))
		s.Flush(s.failed)
		if s.kernel.calls != calls+1 {
			t.Errorf("%v: %d calls for a node that is known not to work", errno, s.kernel.calls-calls)
		}
		now = now.Add(plainAge + time.Second)
		calls = s.kernel.calls
		s.put(bad, payload(3, 100))
		s.put(bad, payload(4, 100))
		s.Flush(s.failed)
		if s.kernel.calls != calls+2 {
			t.Errorf("%v: %d calls for a node whose time is up", errno, s.kernel.calls-calls)
		}
	}
}

// TestTrainsAreTriedAgainByTheMonotonicClock: a wall clock that is set back does not keep trains apart.
func TestTrainsAreTriedAgainByTheMonotonicClock(t *testing.T) {
	s := newScripted(t, true)
	now := time.Now()
	s.sender.now = func() time.Time { return now }
	lane := TxKey{To: dest(1)}
	s.kernel.fail = func(_ []byte, segment int) unix.Errno {
		if segment != 0 {
			return unix.EIO
		}
		return 0
	}
	send := func() (calls int) {
		before := s.kernel.calls
		s.put(lane, payload(1, 100))
		s.put(lane, payload(2, 100))
		s.Flush(s.failed)
		return s.kernel.calls - before
	}
	send() // is refused, and remembered
	now = setBack(t, now.Add(2*plainAge), 24*time.Hour)
	if n := send(); n != 2 {
		t.Errorf("%d calls: the train was not tried again", n)
	}
}

// setBack returns what time.Now would say at the time now, had the wall clock been set back: the monotonic clock goes on.
// The standard library has no way to make such a time; the seconds of the wall clock lie above 30 bits of nanoseconds
// (time.Time).
func setBack(t *testing.T, now time.Time, by time.Duration) time.Time {
	t.Helper()
	then := now
	*(*uint64)(unsafe.Pointer(&then)) -= uint64(by/time.Second) << 30
	if then.Sub(now) != 0 || now.Round(0).Sub(then.Round(0)) != by {
		t.Fatalf("%v set back by %v is %v", now, by, then)
	}
	return then
}

// TestTrainTooLongForThePath: when the datagrams are refused alone, too, it is not GSO that fails.
func TestTrainTooLongForThePath(t *testing.T) {
	s := newScripted(t, true)
	lane := TxKey{To: dest(1)}
	s.kernel.fail = func(data []byte, segment int) unix.Errno {
		if max(segment, len(data)) > 1000 {
			return unix.EMSGSIZE
		}
		return 0
	}
	for i := range 5 {
		s.put(lane, payload(i, 1200))
	}
	s.put(lane, payload(5, 700))
	s.put(TxKey{To: dest(2)}, payload(6, 100))
	s.Flush(s.failed)
	if len(s.refused) != 5 || len(s.kernel.got) != 2 {
		t.Fatalf("refused %d, sent %d", len(s.refused), len(s.kernel.got))
	}
	for i, d := range s.refused {
		if !bytes.Equal(d.data, payload(i, 1200)) || s.errs[i] != unix.EMSGSIZE {
			t.Errorf("refused datagram %d: %v", i, s.errs[i])
		}
	}
	if lane.To.plain.Load() != nil {
		t.Error("the node is taken for one without GSO")
	}
}

// TestHopelessTrain: a train that is refused for the same reason as its first datagram is not tried to the end.
func TestHopelessTrain(t *testing.T) {
	s := newScripted(t, true)
	lane := TxKey{To: dest(1)}
	s.kernel.fail = func(data []byte, segment int) unix.Errno {
		if len(data) >= 500 {
			return unix.EINVAL
		}
		return 0
	}
	for i := range 40 {
		s.put(lane, payload(i, 500))
	}
	s.put(TxKey{To: dest(2)}, payload(99, 100))
	s.Flush(s.failed)
	if len(s.refused) != 40 || len(s.kernel.got) != 1 || s.kernel.calls > 4 {
		t.Errorf("refused %d, sent %d in %d calls", len(s.refused), len(s.kernel.got), s.kernel.calls)
	}
}

func TestOneBadNodeDoesNotStopTheOthers(t *testing.T) {
	s := newScripted(t, true)
	lanes := []TxKey{{To: dest(1)}, {To: dest(2)}, {To: dest(3)}}
	s.kernel.fail = func(data []byte, _ int) unix.Errno {
		if data[0] == 2 {
			return unix.ENETUNREACH
		}
		return 0
	}
	for i, lane := range lanes {
		for range 3 {
			b := s.Reserve(lane, 50)
			clear(b)
			b[0] = byte(i + 1)
		}
	}
	s.Flush(s.failed)
	if len(s.refused) != 3 || len(s.kernel.got) != 6 {
		t.Errorf("refused %d, sent %d", len(s.refused), len(s.kernel.got))
	}
	if lanes[1].To.Packets.Load() != 0 || lanes[2].To.Packets.Load() != 3 {
		t.Errorf("counted %d and %d", lanes[1].To.Packets.Load(), lanes[2].To.Packets.Load())
	}
}

// TestRandomTrafficThroughABadKernel is the twin: whatever the kernel takes at once, refuses as a train, or refuses
// for good, every datagram is sent or refused exactly once, and each lane keeps its order.
func TestRandomTrafficThroughABadKernel(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 7))
		s := newScripted(t, rng.IntN(4) > 0)
		lanes := []TxKey{{To: dest(1)}, {To: dest(2)}, {To: dest(3), TOS: 2}, {To: dest(4)}}
		noGSO, noRoom := rng.IntN(3) == 0, rng.IntN(2) == 0
		s.kernel.fail = func(data []byte, segment int) unix.Errno {
			switch {
			case noGSO && segment > 0 && data[0]%2 == 0:
				return unix.EIO
			case data[0]%16 == 5:
				return unix.EPERM
			case len(data) > 2000 && segment == 0:
				return unix.EMSGSIZE
			}
			return 0
		}
		if noRoom {
			s.kernel.room = func(call int) int { return rng.IntN(4) }
		}
		var want []datagram
		flush := func() {
			for !s.Flush(s.failed) {
			}
		}
		for i := range 1000 {
			lane := lanes[rng.IntN(len(lanes))]
			size := []int{40, 40, 1400, 1400, 1400, 60, 2100}[rng.IntN(7)]
			data := payload(i*17+int(seed), size)
			if !s.put(lane, data) {
				flush()
				if !s.put(lane, data) {
					t.Fatal("no room after a flush")
				}
			}
			want = append(want, datagram{lane.To.Addr, data, int(lane.TOS)})
		}
		flush()
		if len(s.kernel.got)+len(s.refused) != len(want) {
			t.Fatalf("seed %d: %d sent and %d refused of %d", seed, len(s.kernel.got), len(s.refused), len(want))
		}
		counted := uint64(0)
		for _, l := range lanes {
			counted += l.To.Packets.Load()
		}
		if counted != uint64(len(s.kernel.got)) {
			t.Fatalf("seed %d: counted %d of %d", seed, counted, len(s.kernel.got))
		}
		inOrder(t, seed, want, s.kernel.got)
		inOrder(t, seed, want, s.refused)
	}
}

// inOrder checks that got is a part of want, in the order of want for each node and TOS. Lanes that differ in nothing
// else do not occur.
func inOrder(t *testing.T, seed uint64, want, got []datagram) {
	t.Helper()
	next := map[netip.AddrPort]int{}
	for i, d := range got {
		j := next[d.to]
		for j < len(want) && !(want[j].to == d.to && bytes.Equal(want[j].data, d.data)) {
			j++
		}
		if j == len(want) {
			t.Fatalf("seed %d: datagram %d to %v is out of order or not ours", seed, i, d.to)
		}
		next[d.to] = j + 1
	}
}

// TestFullKernelInterrupts: with no room Flush comes back at once, and goes on where it was the next time.
func TestFullKernelInterrupts(t *testing.T) {
	s := newScripted(t, true)
	lanes := []TxKey{{To: dest(1)}, {To: dest(2)}, {To: dest(3)}}
	for i := range 30 {
		s.put(lanes[i%3], payload(i, 100))
	}
	room := []int{2, 0, 0, 1}
	s.kernel.room = func(call int) int { return room[call-1] }
	for i, want := range []bool{false, false, true} {
		if got := s.Flush(s.failed); got != want {
			t.Errorf("flush %d: %v", i, got)
		}
	}
	if s.kernel.calls != len(room) {
		t.Errorf("%d calls", s.kernel.calls)
	}
	s.compare(t, "interrupted", func(yield func(TxKey, []byte)) {
		for i := range 30 {
			yield(lanes[i%3], payload(i, 100))
		}
	})
}

func TestSendingAllocatesNothing(t *testing.T) {
	s := newScripted(t, true)
	s.sender.send = func(_ int, m []unix.Mmsghdr) (int, unix.Errno) { return len(m), 0 }
	lanes := []TxKey{{To: dest(1)}, {To: dest(2), TOS: 2}}
	if n := testing.AllocsPerRun(100, func() {
		for i := range 100 {
			s.Reserve(lanes[i%2], 1400)
		}
		s.Flush(s.failed)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReserveAndFlush(b *testing.B) {
	for _, nodes := range []int{1, 10, 100} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			s := &scripted{}
			s.trains = newTrains(maxTrains, maxSegments)
			s.sender = newSender(-1, false, true)
			s.sender.send = func(_ int, m []unix.Mmsghdr) (int, unix.Errno) { return len(m), 0 }
			lanes := make([]TxKey, nodes)
			for i := range lanes {
				lanes[i].To = dest(byte(i))
			}
			i := 0
			for b.Loop() {
				if s.Reserve(lanes[i%nodes], 100) == nil {
					s.Flush(nil)
				}
				i++
			}
		})
	}
}
