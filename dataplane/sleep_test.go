package dataplane

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSleepEndsWhenSomethingComes has a descriptor twice, as a socket that is blocked is, and an absent one.
func TestSleepEndsWhenSomethingComes(t *testing.T) {
	fds, wake := readable(t)
	fds = append(fds, unix.PollFd{Fd: -1}, unix.PollFd{Fd: fds[0].Fd})
	s := newTestWaiter(t, 0).sleep
	must(t, s.until(fds)) // what is there already
	for range 3 {
		wake.clear()
		time.AfterFunc(5*time.Millisecond, wake.signal)
		fds[0].Revents = 0
		must(t, s.until(fds))
		if fds[0].Revents != unix.POLLIN {
			t.Fatalf("revents %x", fds[0].Revents)
		}
	}
	// In a busy time it would wake a thread with every packet.
	must(t, s.stayAwake())
	event := unix.EpollEvent{Events: unix.EPOLLIN}
	must(t, unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, wake.fd, &event))
}

// TestSleepFollowsWhatIsAsked changes the descriptors between sleeps: what is watched, and for what, and a new one that
// got the number of one that was closed.
func TestSleepFollowsWhatIsAsked(t *testing.T) {
	s := newTestWaiter(t, 0).sleep
	sleeps := func(p unix.PollFd, end func()) {
		t.Helper()
		fds := []unix.PollFd{p}
		time.AfterFunc(5*time.Millisecond, end)
		must(t, s.until(fds))
		if fds[0].Revents != p.Events {
			t.Fatalf("revents %x", fds[0].Revents)
		}
	}
	full, empty := fullSocket(t)
	sleeps(unix.PollFd{Fd: full, Events: unix.POLLOUT}, empty)

	old, oldWake := readable(t)
	oldWake.clear()
	sleeps(old[0], oldWake.signal)
	s.forget(oldWake.fd)
	new, newWake := readable(t)
	newWake.clear()
	must(t, unix.Dup3(newWake.fd, oldWake.fd, unix.O_CLOEXEC)) // which closes the old one
	new[0].Fd = old[0].Fd
	sleeps(new[0], newWake.signal)
}

func TestSleepWaitsForRoomToo(t *testing.T) {
	fd, empty := fullSocket(t)
	time.AfterFunc(5*time.Millisecond, empty)
	fds := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}, {Fd: fd, Events: unix.POLLOUT}}
	must(t, newTestWaiter(t, 0).sleep.until(fds))
	if fds[0].Revents != 0 || fds[1].Revents != unix.POLLOUT {
		t.Errorf("revents %x and %x", fds[0].Revents, fds[1].Revents)
	}
}

// fullSocket returns a socket that has no room to send until empty is called, which has to be done.
func fullSocket(t *testing.T) (fd int32, empty func()) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	for err == nil {
		_, err = unix.Write(ends[0], make([]byte, 1000))
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	emptied := make(chan error)
	t.Cleanup(func() {
		if err := <-emptied; err != unix.EAGAIN {
			t.Error(err)
		}
		must(t, errors.Join(unix.Close(ends[0]), unix.Close(ends[1])))
	})
	return int32(ends[0]), func() {
		var err error
		for ; err == nil; _, err = unix.Read(ends[1], make([]byte, 1000)) {
		}
		emptied <- err
	}
}

func TestSleepSaysWhatItCannotWatch(t *testing.T) {
	fds, wake := readable(t)
	wake.clear()
	fds[0].Fd = 1 << 20
	if err := newTestWaiter(t, 0).sleep.until(fds); err == nil {
		t.Error("no error for a descriptor that is none")
	}
}

// TestOneAwakeOthersAreWoken has one sleeper wake up and then not let go of its thread, as a worker in dense traffic
// does, while another sleeps. Only a thread that polls for Go's scheduler can tell that one.
func TestOneAwakeOthersAreWoken(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	first, second := newTestWaiter(t, 0).sleep, newTestWaiter(t, 0).sleep
	soon, later := expiring(t, 20*time.Millisecond), expiring(t, 40*time.Millisecond)
	var over atomic.Bool
	var busy sync.WaitGroup
	busy.Go(func() {
		if err := first.until(soon); err != nil {
			t.Error(err)
		}
		if err := first.stayAwake(); err != nil {
			t.Error(err)
		}
		for !over.Load() {
			yield()
		}
	})
	start := time.Now()
	err := second.until(later)
	took := time.Since(start)
	over.Store(true)
	busy.Wait()
	must(t, err)
	if took > 500*time.Millisecond {
		t.Errorf("woken after %v", took)
	}
}

// expiring returns a descriptor to poll that the kernel makes readable after d, with no help of Go's timers.
func expiring(t *testing.T, d time.Duration) []unix.PollFd {
	t.Helper()
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	must(t, unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil))
	return []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
}
