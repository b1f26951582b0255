package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/deploy/lab"
)

func TestNetnsDeviceRecreated(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Mode: mode})
			ov.expectPing(t, 0, 1)
			e := ov.engines[0]
			name := e.Device()
			queues := tunDescriptors(t)
			e.SetMTU(1400)
			for i := range 3 {
				must(t, e.node.DeleteLink(name))
				must(t, lab.Await(t.Context(), 5*time.Second, "the device", func() error {
					if _, err := e.node.Link(name); err != nil {
						return err
					}
					if n := e.Stats().DeviceRecreations; n != uint64(i+1) {
						return fmt.Errorf("recreated %d times, want %d", n, i+1)
					}
					return nil
				}))
				if link, err := e.node.Link(name); err != nil || link.MTU != 1400 {
					t.Errorf("%+v, %v", link, err)
				}
				e.configureDevice(t)
				ov.expectPing(t, 0, 1)
				ov.expectPing(t, 1, 0)
			}
			must(t, lab.Await(t.Context(), time.Second, "the old queues to be closed", func() error {
				if n := tunDescriptors(t); n != queues {
					return fmt.Errorf("%d queues are open, were %d", n, queues)
				}
				return nil
			}))
			if e.Device() != name {
				t.Errorf("device name %s, want %s", e.Device(), name)
			}
			if n := e.log.count("TUN device recreated"); n != 3 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// TestNetnsRecreationFails deletes the device until an attempt to recreate it fails. The engine
// must retry, and not fall back to the portable device.
func TestNetnsRecreationFails(t *testing.T) {
	ov := startOverlay(t, lab.Options{Nodes: 1, PodsPerNode: -1}, Config{Workers: MaxWorkers})
	e := ov.engines[0]
	before, name := e.Status(), e.Device()
	const failed, fellBack = "repair failed", "one packet per frame"
	for start := time.Now(); e.log.count(failed) == 0 && e.log.count(fellBack) == 0; {
		_ = e.node.DeleteLink(name) // usually it does not exist
		if time.Since(start) > 20*time.Second {
			t.Skip("NOT TESTED: the device was never deleted during its creation")
		}
	}
	must(t, lab.Await(t.Context(), 10*time.Second, "the device", func() error {
		if _, err := e.node.Link(name); err != nil {
			return err
		}
		if !slices.Equal(e.Status(), before) {
			return fmt.Errorf("%+v", e.Status())
		}
		return nil
	}))
}

// TestNetnsUnusedReplacementsClosed replaces queues and sockets before a worker has used them.
func TestNetnsUnusedReplacementsClosed(t *testing.T) {
	node := lab.Start(t, lab.Options{Nodes: 1, PodsPerNode: -1}).Nodes[0]
	before := tunDescriptors(t)
	must(t, node.Do(func() error {
		e, err := Open(Config{Device: "flannel%d", Bind: netip.AddrPortFrom(node.Addr, 8285), MTU: 1472, Workers: 2})
		if err != nil {
			return err
		}
		opened := countDescriptors(t, "")
		e.mu.Lock()
		err = errors.Join(e.openDevice(), e.openSockets())
		e.mu.Unlock()
		if n := countDescriptors(t, ""); n != opened {
			t.Errorf("%d descriptors are open, were %d", n, opened)
		}
		if n := tunDescriptors(t) - before; n != 2*numClasses {
			t.Errorf("%d queues are open for 2 workers", n)
		}
		return errors.Join(err, e.Close())
	}))
}

// tunDescriptors counts this process's open TUN queues.
func tunDescriptors(t *testing.T) int {
	t.Helper()
	return countDescriptors(t, "/dev/net/tun")
}

// countDescriptors counts this process's open descriptors whose target ends in kind.
func countDescriptors(t *testing.T, kind string) (n int) {
	t.Helper()
	all, err := descriptors()
	must(t, err)
	for _, d := range all {
		if strings.HasSuffix(d, kind) {
			n++
		}
	}
	return n
}

// TestNetnsLostDeviceCPU deletes a device that cannot be recreated, and measures the CPU time.
func TestNetnsLostDeviceCPU(t *testing.T) {
	ov := startOverlay(t, lab.Options{}, Config{})
	e := ov.engines[0]
	name := e.Device()
	e.mu.Lock()
	e.device = "a-name-longer-than-15-bytes" // every attempt fails
	e.mu.Unlock()
	must(t, e.node.DeleteLink(name))
	must(t, lab.Await(t.Context(), 5*time.Second, "the loss", func() error {
		if e.log.count("repair failed") == 0 {
			return errors.New("not detected")
		}
		return nil
	}))
	before := cpuTime(t)
	time.Sleep(500 * time.Millisecond) // the measured period
	if used := cpuTime(t) - before; used > 100*time.Millisecond {
		t.Errorf("used %v of CPU time in half a second", used)
	}
	e.mu.Lock()
	e.device = name
	e.mu.Unlock()
	must(t, lab.Await(t.Context(), 10*time.Second, "the device", func() error {
		_, err := e.node.Link(name)
		return err
	}))
	e.configureDevice(t)
	ov.expectPing(t, 0, 1)
	if n := e.log.count("repair failed"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func TestNetnsDeviceDown(t *testing.T) {
	ov := startOverlay(t, lab.Options{}, Config{})
	e := ov.engines[0]
	ov.expectPing(t, 1, 0)
	must(t, e.node.SetUp(e.Device(), false))
	ping := lab.Ping{Count: 5, Interval: time.Millisecond, Timeout: 100 * time.Millisecond}
	p, err := ov.pod(1).Ping(t.Context(), podAddr(0), ping)
	if err != nil || p.Received != 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	if n := e.Stats().Drops[DropTUNDown]; n != 5 {
		t.Errorf("%d drops, want 5", n)
	}
	before := cpuTime(t)
	time.Sleep(300 * time.Millisecond) // the measured period
	if used := cpuTime(t) - before; used > 60*time.Millisecond {
		t.Errorf("used %v of CPU time while the device is down", used)
	}
	must(t, e.node.SetUp(e.Device(), true))
	must(t, e.node.AddRoute(overlayNetwork, netip.Addr{}, e.Device()))
	ov.expectPing(t, 1, 0)
	if n := e.Stats().DeviceRecreations; n != 0 {
		t.Errorf("recreated %d times", n)
	}
}

func TestNetnsRebind(t *testing.T) {
	ov := startOverlay(t, lab.Options{}, Config{})
	a := ov.engines[0]
	to := netip.MustParseAddr("172.31.0.99")
	// The address does not exist yet: the old sockets stay, and the engine retries.
	if err := a.node.Do(func() error { return a.Rebind(netip.AddrPortFrom(to, 8285), "") }); err == nil {
		t.Fatal("bound to an address that does not exist")
	}
	ov.expectPing(t, 0, 1)
	must(t, a.node.ChangeAddress(to))
	ov.connect()
	ov.expectPing(t, 0, 1)
	ov.expectPing(t, 1, 0)
	if n := a.Stats().SocketRecreations; n != 1 {
		t.Errorf("reopened %d times, want 1", n)
	}
	if a.log.count("sockets reopened") != 1 || a.log.count("socket failed") != 0 {
		t.Errorf("logged:\n%s", a.log)
	}
	must(t, a.Rebind(netip.AddrPortFrom(to, 8285), ""))
	if n := a.Stats().SocketRecreations; n != 1 {
		t.Errorf("reopened for an unchanged address, now %d times", n)
	}
}

// TestNetnsSocketAborted has the kernel abort the socket under the worker, as "ss -K" does.
func TestNetnsSocketAborted(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			ov := startOverlay(t, lab.Options{}, Config{Mode: mode, Workers: 1})
			ov.expectPing(t, 0, 1)
			e := ov.engines[0]
			opened := countDescriptors(t, "")
			for i := range 3 {
				err := e.node.Do(func() error { return abortSocket(netip.AddrPortFrom(e.node.Addr, 8285)) })
				if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
					t.Skip("NOT TESTED: no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY) or no udp_diag in this kernel")
				}
				must(t, err)
				must(t, lab.Await(t.Context(), 5*time.Second, "new sockets", func() error {
					if n := e.Stats().SocketRecreations; n != uint64(i+1) {
						return fmt.Errorf("reopened %d times, want %d", n, i+1)
					}
					return nil
				}))
				ov.expectPing(t, 0, 1)
				ov.expectPing(t, 1, 0)
			}
			must(t, lab.Await(t.Context(), time.Second, "the old sockets to be closed", func() error {
				if n := countDescriptors(t, ""); n != opened {
					return fmt.Errorf("%d descriptors are open, were %d", n, opened)
				}
				return nil
			}))
			if n := e.log.count("sockets reopened"); n != 3 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// abortSocket aborts the UDP socket bound to an IPv4 address and port in the network namespace of
// the calling thread.
func abortSocket(at netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct nlmsghdr and struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h).
	const sockDestroy, anyState, anyCookie = 21, 0xff, 0xff
	b := make([]byte, 72)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], sockDestroy)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b[16], b[17] = unix.AF_INET, unix.IPPROTO_UDP
	copy(b[20:24], slices.Repeat([]byte{anyState}, 4))
	binary.BigEndian.PutUint16(b[24:], at.Port())
	copy(b[28:], at.Addr().AsSlice())
	copy(b[64:], slices.Repeat([]byte{anyCookie}, 8))
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	if n, _, err := unix.Recvfrom(fd, b, 0); err != nil || n < 20 {
		return fmt.Errorf("response of %d bytes: %w", n, err)
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[16:]))); errno != 0 { // struct nlmsgerr
		return fmt.Errorf("abort socket: %w", errno)
	}
	return nil
}

// cpuTime returns the CPU time that this process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile("/proc/self/stat")
	must(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')'):]))
	var ticks [2]time.Duration
	for i := range ticks {
		_, err := fmt.Sscan(f[12+i], &ticks[i])
		must(t, err)
	}
	const tick = time.Second / 100 // USER_HZ
	return (ticks[0] + ticks[1]) * tick
}
