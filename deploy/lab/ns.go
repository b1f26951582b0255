package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// threadNetns is the network namespace of the calling thread; /proc/self would be that of the first
// thread.
const threadNetns = "/proc/thread-self/ns/net"

// NS is a network namespace. It lasts until Close or until the lab's first process exits.
type NS struct {
	// Name is valid for ip-netns(8) inside the lab. The lab's own namespace is named "root".
	Name string

	file  *os.File
	links *netlink.Handle
	once  sync.Once
}

// NewNS creates a network namespace with its loopback device up. It fails outside [Run] and [Main].
func NewNS(name string) (*NS, error) {
	if !Inside() {
		return nil, fmt.Errorf("create namespace %s: not in a lab: call lab.Run or lab.Main first",
			name)
	}
	var ns *NS
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		mount := filepath.Join(netnsDir, name)
		if err := os.WriteFile(mount, nil, 0o444); err != nil {
			return err
		}
		if err := unix.Mount(threadNetns, mount, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind to %s: %w", mount, err)
		}
		if err := setLoopbackUp(); err != nil {
			return err
		}
		ns, err = openNS(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", name, err)
	}
	return ns, nil
}

// openNS opens the calling thread's namespace.
func openNS(name string) (*NS, error) {
	file, err := os.Open(threadNetns)
	if err != nil {
		return nil, err
	}
	links, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), file.Close())
	}
	return &NS{Name: name, file: file, links: links}, nil
}

// Do runs f inside the namespace, on a thread of its own that is discarded afterwards. Files and
// sockets opened by f stay in the namespace; goroutines started by f do not run in it.
func (ns *NS) Do(f func() error) error {
	err := onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("%s: %w", ns.Name, err)
	}
	return nil
}

// Sysctl writes a value below /proc/sys/net, named like "ipv4/ip_forward".
func (ns *NS) Sysctl(name, value string) error {
	return ns.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl net/%s=%s: %w", name, value, err)
		}
		return nil
	})
}

// ReadSysctl reads a value below /proc/sys/net.
func (ns *NS) ReadSysctl(name string) (value string, err error) {
	err = ns.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// Close releases the namespace. Its devices are removed when the last process and socket in it are
// gone.
func (ns *NS) Close() error {
	var err error
	ns.once.Do(func() {
		ns.links.Close()
		mount := filepath.Join(netnsDir, ns.Name)
		err = ns.file.Close()
		if ns.Name != rootName {
			err = errors.Join(err, unix.Unmount(mount, unix.MNT_DETACH), os.Remove(mount))
		}
	})
	if err != nil {
		return fmt.Errorf("close namespace %s: %w", ns.Name, err)
	}
	return nil
}

var errGoexit = errors.New("function exited its goroutine (t.Fatal or runtime.Goexit inside Do)")

// onThread runs f on a thread that f may change in any way, since it is never used again.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Not unlocked, so the thread exits with the goroutine.
		runtime.LockOSThread()
		err := errGoexit
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// setLoopbackUp sets lo up in the calling thread's namespace.
func setLoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
