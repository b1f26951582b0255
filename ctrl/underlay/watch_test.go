package underlay

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ctrl"
)

// watched is a running ifaceWatch in a synctest bubble. The test sets its interface.
type watched struct {
	mu   sync.Mutex
	now  Iface
	err  error
	told []string // names and addresses, or errors
	poke func()
}

func watchIface(t *testing.T, first Iface) *watched {
	t.Helper()
	w := &watched{now: first}
	watch := ifaceWatch{
		inUse: func() Iface { return first },
		changed: func(i Iface, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err != nil {
				w.told = append(w.told, err.Error())
				return
			}
			w.told = append(w.told, i.Name+" "+i.Addr.String())
		},
		choose: func(Options, Iface) (Iface, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now, w.err
		},
	}
	pokes := make(chan func(), 1)
	signs := func(ctx context.Context, changed func()) error {
		pokes <- changed
		changed()
		<-ctx.Done()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watch.run(ctx, signs, ifaceTestTimer) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	w.poke = <-pokes
	after(ctrl.Debounce(0))
	return w
}

// set changes the interface and notifies the watch, as a kernel would.
func (w *watched) set(i Iface, err error) {
	w.quietly(i, err)
	w.poke()
	after(ctrl.Debounce(0))
}

// quietly changes the interface without a notification.
func (w *watched) quietly(i Iface, err error) {
	w.mu.Lock()
	w.now, w.err = i, err
	w.mu.Unlock()
}

func (w *watched) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.told
	w.told = nil
	return s
}

// after lets d of the bubble's time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestIfaceWatch(t *testing.T) {
	one, two := Iface{Name: "eth0", Addr: addr("10.0.0.1")}, Iface{Name: "eth0", Addr: addr("10.0.0.2")}
	gone := errors.New("gone")
	expect := func(t *testing.T, w *watched, what string, want ...string) {
		t.Helper()
		if got := w.take(); !slices.Equal(got, want) {
			t.Errorf("%s: told %q, want %q", what, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w := watchIface(t, one)
		expect(t, w, "at the start", "eth0 10.0.0.1")
		w.set(Iface{Name: "eth0", Addr: one.Addr, Reason: "b"}, nil)
		expect(t, w, "the same in other words")
		w.set(Iface{}, gone)
		after(lossDelay / 2)
		w.set(Iface{}, gone)
		w.set(one, nil)
		after(2 * ifaceTestTimer)
		expect(t, w, "lost for a moment")
		w.quietly(two, nil)
		after(ifaceTestTimer)
		expect(t, w, "another without a sign", "eth0 10.0.0.2")
	})
	synctest.Test(t, func(t *testing.T) {
		w := watchIface(t, one)
		w.take()
		for range 2 {
			w.set(Iface{}, gone)
			expect(t, w, "lost just now")
			after(lossDelay + ifaceTestTimer)
			expect(t, w, "lost for long", "gone")
			after(3 * ifaceTestTimer)
			expect(t, w, "lost for longer")
			w.set(one, nil)
			expect(t, w, "there again", "eth0 10.0.0.1")
		}
	})
}

func TestIfaceWatchSetback(t *testing.T) {
	inUse := Iface{Name: "eth0", Addr: addr("10.0.0.1")}
	noted := inUse
	noted.Note = "a note"
	for _, next := range []Iface{{Name: "eth1", Addr: addr("10.0.0.2")},
		{Name: "eth0", Addr: addr("10.0.0.2"), rank: single}} {
		synctest.Test(t, func(t *testing.T) {
			w := watchIface(t, inUse)
			w.take()
			w.set(next, nil)
			after(lossDelay - time.Second)
			w.set(noted, nil)
			if got := w.take(); !slices.Equal(got, []string{"eth0 10.0.0.1"}) {
				t.Errorf("%+v for a moment: told %q, want the note alone", next, got)
			}
			w.set(next, nil)
			after(lossDelay)
			if got := w.take(); !slices.Equal(got, []string{next.describe()}) {
				t.Errorf("told %q, want %s", got, next.describe())
			}
		})
	}
}

const ifaceTestTimer = 10 * time.Second

func TestRelevant(t *testing.T) {
	for e, want := range map[ctrl.Event]bool{
		{Kind: ctrl.LinkEvent, Dev: "eth0"}: true, {Kind: ctrl.LinkEvent, Dev: "flannel.1"}: false,
		{Kind: ctrl.AddrEvent, Dev: "eth0"}:                                   true,
		{Kind: ctrl.RouteEvent, Dev: "flannel.1", Dst: prefix("10.5.2.0/24")}: false,
		{Kind: ctrl.RouteEvent, Dev: "eth0", Dst: prefix("10.0.0.0/24")}:      true,
		{Kind: ctrl.RouteEvent, Dst: prefix("0.0.0.0/0")}:                     true,
		{Kind: ctrl.NeighEvent, Dev: "eth0", Permanent: true}:                 false,
	} {
		if got := relevant(e); got != want {
			t.Errorf("%+v: %v", e, got)
		}
	}
}
