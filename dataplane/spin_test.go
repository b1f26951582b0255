package dataplane

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spinClock is a clock that advances by step with every look at it.
type spinClock struct {
	now  time.Time
	step time.Duration
}

func (c *spinClock) read() time.Time {
	c.now = c.now.Add(c.step)
	return c.now
}

// readable returns a descriptor to poll that has something, and its other end.
func readable(t *testing.T) (fds []unix.PollFd, wake *wakeup) {
	t.Helper()
	wake, err := newWakeup()
	must(t, err)
	t.Cleanup(func() { must(t, wake.Close()) })
	wake.signal()
	return []unix.PollFd{{Fd: int32(wake.fd), Events: unix.POLLIN}}, wake
}

func TestSpinsOnlyWhilePacketsKeepComing(t *testing.T) {
	s := spinner{allowed: true}
	now := time.Unix(1_700_000_000, 0)
	if s.worthwhile(now) {
		t.Error("spins before anything is known")
	}
	for range spinScore {
		s.waited(spinLimit / 2)
	}
	if !s.worthwhile(now) {
		t.Error("does not spin after short waits")
	}
	for range spinScoreMax {
		s.waited(time.Millisecond)
	}
	if s.worthwhile(now) {
		t.Error("spins after long waits")
	}
	s.allowed = false
	for range spinScoreMax {
		s.waited(0)
	}
	if s.worthwhile(now) {
		t.Error("spins where it must not")
	}
}

func TestSpinRestsWhenOthersWantTheCPU(t *testing.T) {
	fds, wake := readable(t)
	clock := &spinClock{now: time.Unix(1_700_000_000, 0), step: 2 * spinGap}
	s := spinner{allowed: true, score: spinScoreMax}
	for i, want := range []time.Duration{spinRest, 2 * spinRest, 4 * spinRest} {
		wake.clear()
		s.notTill, s.score = clock.now.Add(-time.Millisecond), spinScoreMax
		time.AfterFunc(5*time.Millisecond, wake.signal)
		must(t, s.poll(fds, clock.read))
		if s.rest != want || !s.notTill.After(clock.now) {
			t.Errorf("gap %d: rests %v till %v", i, s.rest, s.notTill)
		}
	}
	for range 20 {
		s.disturbed(clock.now)
	}
	if s.rest != spinRestMax {
		t.Errorf("rests %v at most", s.rest)
	}
	s.disturbed(clock.now.Add(time.Hour))
	if s.rest != spinRest {
		t.Errorf("after an hour of peace: rests %v", s.rest)
	}
}

func TestSpinFindsWhatIsThere(t *testing.T) {
	fds, wake := readable(t)
	s := spinner{allowed: true, score: spinScoreMax}
	must(t, s.poll(fds, time.Now))
	if fds[0].Revents == 0 {
		t.Error("came back with nothing")
	}
	// And gives up when nothing comes: then it sleeps until something does.
	wake.clear()
	fds[0].Revents = 0
	time.AfterFunc(20*time.Millisecond, wake.signal)
	start := time.Now()
	must(t, s.poll(fds, time.Now))
	if fds[0].Revents == 0 || time.Since(start) < 15*time.Millisecond {
		t.Errorf("revents %x after %v", fds[0].Revents, time.Since(start))
	}
}

func TestWaitingAllocatesNothing(t *testing.T) {
	fds, _ := readable(t)
	s := spinner{allowed: true, score: spinScoreMax}
	if n := testing.AllocsPerRun(100, func() {
		if err := s.poll(fds, time.Now); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
