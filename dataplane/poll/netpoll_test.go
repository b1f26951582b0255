package poll

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNetpollWait polls one descriptor twice, as a worker does with a blocked socket, and a
// negative one.
func TestNetpollWait(t *testing.T) {
	fds, event := readable(t)
	fds = append(fds, unix.PollFd{Fd: -1}, unix.PollFd{Fd: fds[0].Fd})
	w := newTestWaiter(t, 0).netpoll
	must(t, w.wait(fds)) // ready from the start
	for range 3 {
		event.Clear()
		time.AfterFunc(5*time.Millisecond, event.Signal)
		fds[0].Revents = 0
		must(t, w.wait(fds))
		if fds[0].Revents != unix.POLLIN {
			t.Fatalf("revents %x", fds[0].Revents)
		}
	}
	// After leave the descriptor is no longer registered, or each packet would wake a thread.
	must(t, w.leave())
	e := unix.EpollEvent{Events: unix.EPOLLIN}
	must(t, unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, event.FD(), &e))
}

// TestNetpollChangedDescriptors changes descriptors and events between waits, and replaces a
// descriptor by a new one with the same number.
func TestNetpollChangedDescriptors(t *testing.T) {
	w := newTestWaiter(t, 0).netpoll
	waits := func(p unix.PollFd, end func()) {
		t.Helper()
		fds := []unix.PollFd{p}
		time.AfterFunc(5*time.Millisecond, end)
		must(t, w.wait(fds))
		if fds[0].Revents != p.Events {
			t.Fatalf("revents %x", fds[0].Revents)
		}
	}
	full, drain := fullSocket(t)
	waits(unix.PollFd{Fd: full, Events: unix.POLLOUT}, drain)

	oldFDs, oldEvent := readable(t)
	oldEvent.Clear()
	waits(oldFDs[0], oldEvent.Signal)
	w.forget(oldEvent.FD())
	newFDs, newEvent := readable(t)
	newEvent.Clear()
	must(t, unix.Dup3(newEvent.FD(), oldEvent.FD(), unix.O_CLOEXEC)) // closes the old one
	newFDs[0].Fd = oldFDs[0].Fd
	waits(newFDs[0], newEvent.Signal)
}

func TestNetpollWritable(t *testing.T) {
	fd, drain := fullSocket(t)
	time.AfterFunc(5*time.Millisecond, drain)
	fds := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}, {Fd: fd, Events: unix.POLLOUT}}
	must(t, newTestWaiter(t, 0).netpoll.wait(fds))
	if fds[0].Revents != 0 || fds[1].Revents != unix.POLLOUT {
		t.Errorf("revents %x and %x", fds[0].Revents, fds[1].Revents)
	}
}

// fullSocket returns a socket whose send buffer is full until drain is called, which the test must
// do.
func fullSocket(t *testing.T) (fd int32, drain func()) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	for err == nil {
		_, err = unix.Write(ends[0], make([]byte, 1000))
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	drained := make(chan error)
	t.Cleanup(func() {
		if err := <-drained; err != unix.EAGAIN {
			t.Error(err)
		}
		must(t, errors.Join(unix.Close(ends[0]), unix.Close(ends[1])))
	})
	return int32(ends[0]), func() {
		var err error
		for ; err == nil; _, err = unix.Read(ends[1], make([]byte, 1000)) {
		}
		drained <- err
	}
}

func TestNetpollInvalidDescriptor(t *testing.T) {
	fds, event := readable(t)
	event.Clear()
	fds[0].Fd = 1 << 20
	if err := newTestWaiter(t, 0).netpoll.wait(fds); err == nil {
		t.Error("no error for a descriptor that is not open")
	}
}

// TestHandoff has one waiter wake up and then keep its thread, as a worker in dense traffic does,
// while another one waits. Only a thread that runs the netpoller can wake that.
func TestHandoff(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	first, second := newTestWaiter(t, 0).netpoll, newTestWaiter(t, 0).netpoll
	soon, later := newTimer(t, 20*time.Millisecond), newTimer(t, 40*time.Millisecond)
	var over atomic.Bool
	var busy sync.WaitGroup
	busy.Go(func() {
		if err := first.wait(soon); err != nil {
			t.Error(err)
		}
		if err := first.leave(); err != nil {
			t.Error(err)
		}
		for !over.Load() {
			yield()
		}
	})
	start := time.Now()
	err := second.wait(later)
	took := time.Since(start)
	over.Store(true)
	busy.Wait()
	must(t, err)
	if took > 500*time.Millisecond {
		t.Errorf("woken after %v", took)
	}
}

// newTimer returns a descriptor that the kernel makes readable after d, without Go's timers.
func newTimer(t *testing.T, d time.Duration) []unix.PollFd {
	t.Helper()
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	must(t, unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil))
	return []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
}
