package udp

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestSendSingleDatagram checks that a single datagram has no segment size: some drivers drop those
// that have one.
func TestSendSingleDatagram(t *testing.T) {
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

func TestSendWithoutGSO(t *testing.T) {
	s := newScripted(t, false)
	key := TxKey{To: dest(1), TOS: 1}
	const n = 3000 // more than one sendmmsg accepts
	for i := range n {
		if !s.put(key, payload(i, 40)) {
			t.Fatal("Reserve returned nil")
		}
	}
	s.Flush(s.failed)
	if s.kernel.messages != n || s.kernel.calls != 3 {
		t.Errorf("%d messages in %d calls", s.kernel.messages, s.kernel.calls)
	}
	s.compare(t, "without GSO", func(yield func(TxKey, []byte)) {
		for i := range n {
			yield(key, payload(i, 40))
		}
	})
	if got := key.To.Packets.Load(); got != n || key.To.Bytes.Load() != 40*n {
		t.Errorf("counted %d, %d bytes", got, key.To.Bytes.Load())
	}
}

// TestSendGSOFallback checks, for each error of GSO, that a train is sent again one by one and that
// GSO is off for the destination for a while.
func TestSendGSOFallback(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EOPNOTSUPP} {
		s := newScripted(t, true)
		now := time.Unix(1_700_000_000, 0)
		s.sender.now = func() time.Time { return now }
		bad, good := TxKey{To: dest(1)}, TxKey{To: dest(2)}
		s.kernel.fail = func(data []byte, segment int) unix.Errno {
			if segment == 100 { // only on the path of the first node
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
		// No further GSO attempt to this node until gsoRetryAfter has passed.
		calls := s.kernel.calls
		s.put(bad, payload(1, 100))
		s.put(bad, payload(2, 100))
		s.Flush(s.failed)
		if s.kernel.calls != calls+1 {
			t.Errorf("%v: %d calls while GSO is off, want 1", errno, s.kernel.calls-calls)
		}
		now = now.Add(gsoRetryAfter + time.Second)
		calls = s.kernel.calls
		s.put(bad, payload(3, 100))
		s.put(bad, payload(4, 100))
		s.Flush(s.failed)
		if s.kernel.calls != calls+2 {
			t.Errorf("%v: %d calls after gsoRetryAfter, want 2", errno, s.kernel.calls-calls)
		}
	}
}

// TestGSORetryMonotonicClock checks that setting back the wall clock does not delay the next GSO
// attempt.
func TestGSORetryMonotonicClock(t *testing.T) {
	s := newScripted(t, true)
	now := time.Now()
	s.sender.now = func() time.Time { return now }
	key := TxKey{To: dest(1)}
	s.kernel.fail = func(_ []byte, segment int) unix.Errno {
		if segment != 0 {
			return unix.EIO
		}
		return 0
	}
	send := func() (calls int) {
		before := s.kernel.calls
		s.put(key, payload(1, 100))
		s.put(key, payload(2, 100))
		s.Flush(s.failed)
		return s.kernel.calls - before
	}
	send() // turns GSO off
	now = setBack(t, now.Add(2*gsoRetryAfter), 24*time.Hour)
	if n := send(); n != 2 {
		t.Errorf("%d calls, want 2: GSO not retried", n)
	}
}

// setBack returns the result of time.Now at the time now if the wall clock had been set back: the
// monotonic clock is unchanged. The standard library cannot construct such a time. The wall clock
// seconds are stored above 30 bits of nanoseconds (time.Time).
func setBack(t *testing.T, now time.Time, by time.Duration) time.Time {
	t.Helper()
	then := now
	*(*uint64)(unsafe.Pointer(&then)) -= uint64(by/time.Second) << 30
	if then.Sub(now) != 0 || now.Round(0).Sub(then.Round(0)) != by {
		t.Fatalf("setBack(%v, %v) = %v", now, by, then)
	}
	return then
}

// TestSendTooLongForPath checks that GSO stays on if the kernel refuses single datagrams, too.
func TestSendTooLongForPath(t *testing.T) {
	s := newScripted(t, true)
	key := TxKey{To: dest(1)}
	s.kernel.fail = func(data []byte, segment int) unix.Errno {
		if max(segment, len(data)) > 1000 {
			return unix.EMSGSIZE
		}
		return 0
	}
	for i := range 5 {
		s.put(key, payload(i, 1200))
	}
	s.put(key, payload(5, 700))
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
	if key.To.gsoOffUntil.Load() != nil {
		t.Error("GSO turned off for the node")
	}
}

// TestSendTrainGivenUp checks that a train is given up after its first datagram is refused with the
// same error as the train.
func TestSendTrainGivenUp(t *testing.T) {
	s := newScripted(t, true)
	key := TxKey{To: dest(1)}
	s.kernel.fail = func(data []byte, segment int) unix.Errno {
		if len(data) >= 500 {
			return unix.EINVAL
		}
		return 0
	}
	for i := range 40 {
		s.put(key, payload(i, 500))
	}
	s.put(TxKey{To: dest(2)}, payload(99, 100))
	s.Flush(s.failed)
	if len(s.refused) != 40 || len(s.kernel.got) != 1 || s.kernel.calls > 4 {
		t.Errorf("refused %d, sent %d in %d calls", len(s.refused), len(s.kernel.got), s.kernel.calls)
	}
}

func TestSendOneNodeUnreachable(t *testing.T) {
	s := newScripted(t, true)
	keys := []TxKey{{To: dest(1)}, {To: dest(2)}, {To: dest(3)}}
	s.kernel.fail = func(data []byte, _ int) unix.Errno {
		if data[0] == 2 {
			return unix.ENETUNREACH
		}
		return 0
	}
	for i, key := range keys {
		for range 3 {
			b := s.Reserve(key, 50)
			clear(b)
			b[0] = byte(i + 1)
		}
	}
	s.Flush(s.failed)
	if len(s.refused) != 3 || len(s.kernel.got) != 6 {
		t.Errorf("refused %d, sent %d", len(s.refused), len(s.kernel.got))
	}
	if keys[1].To.Packets.Load() != 0 || keys[2].To.Packets.Load() != 3 {
		t.Errorf("counted %d and %d", keys[1].To.Packets.Load(), keys[2].To.Packets.Load())
	}
}

// TestSendRandomErrors sends random traffic through a kernel with a full buffer and random errors.
// Every datagram must be sent or refused exactly once, in order per key.
func TestSendRandomErrors(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 7))
		s := newScripted(t, rng.IntN(4) > 0)
		keys := []TxKey{{To: dest(1)}, {To: dest(2)}, {To: dest(3), TOS: 2}, {To: dest(4)}}
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
			key := keys[rng.IntN(len(keys))]
			size := []int{40, 40, 1400, 1400, 1400, 60, 2100}[rng.IntN(7)]
			data := payload(i*17+int(seed), size)
			if !s.put(key, data) {
				flush()
				if !s.put(key, data) {
					t.Fatal("Reserve returned nil after a flush")
				}
			}
			want = append(want, datagram{key.To.Addr, data, int(key.TOS)})
		}
		flush()
		if len(s.kernel.got)+len(s.refused) != len(want) {
			t.Fatalf("seed %d: %d sent and %d refused, want %d in total",
				seed, len(s.kernel.got), len(s.refused), len(want))
		}
		counted := uint64(0)
		for _, l := range keys {
			counted += l.To.Packets.Load()
		}
		if counted != uint64(len(s.kernel.got)) {
			t.Fatalf("seed %d: counted %d, sent %d", seed, counted, len(s.kernel.got))
		}
		inOrder(t, seed, want, s.kernel.got)
		inOrder(t, seed, want, s.refused)
	}
}

// TestFlushBufferFull checks that Flush returns immediately if the send buffer is full, and that
// the next Flush continues.
func TestFlushBufferFull(t *testing.T) {
	s := newScripted(t, true)
	keys := []TxKey{{To: dest(1)}, {To: dest(2)}, {To: dest(3)}}
	for i := range 30 {
		s.put(keys[i%3], payload(i, 100))
	}
	room := []int{2, 0, 0, 1}
	s.kernel.room = func(call int) int { return room[call-1] }
	for i, want := range []bool{false, false, true} {
		if got := s.Flush(s.failed); got != want {
			t.Errorf("flush %d returned %v", i, got)
		}
	}
	if s.kernel.calls != len(room) {
		t.Errorf("%d calls", s.kernel.calls)
	}
	s.compare(t, "send buffer full", func(yield func(TxKey, []byte)) {
		for i := range 30 {
			yield(keys[i%3], payload(i, 100))
		}
	})
}

func TestSendAllocs(t *testing.T) {
	s := newScripted(t, true)
	s.sender.send = func(_ int, m []unix.Mmsghdr) (int, unix.Errno) { return len(m), 0 }
	keys := []TxKey{{To: dest(1)}, {To: dest(2), TOS: 2}}
	if n := testing.AllocsPerRun(100, func() {
		for i := range 100 {
			s.Reserve(keys[i%2], 1400)
		}
		s.Flush(s.failed)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
