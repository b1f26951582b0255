//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// bpffs is where systems mount the BPF file system.
const bpffs = "/sys/fs/bpf"

// pinRoot is the directory of the pins of all network namespaces.
const pinRoot = bpffs + "/weft"

// pinDir returns the directory for the pins of the device in the calling thread's network
// namespace, and creates it. It is empty if there is no BPF file system and none can be mounted:
// then the programs end with the process.
func pinDir(device string) (string, error) {
	if err := mountBPFFS(); err != nil {
		return "", nil
	}
	netns, err := netnsID()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(pinRoot, netns+"-"+device)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create directory for pins: %w", err)
	}
	return dir, nil
}

// mountBPFFS mounts the BPF file system unless it is mounted.
func mountBPFFS() error {
	var s unix.Statfs_t
	if err := unix.Statfs(bpffs, &s); err == nil && s.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount %s: %w", bpffs, err)
	}
	return nil
}

// netnsID identifies the calling thread's network namespace among those that exist.
func netnsID() (string, error) {
	var s unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &s); err != nil {
		return "", fmt.Errorf("identify network namespace: %w", err)
	}
	return fmt.Sprint(s.Ino), nil
}

// RemoveAll detaches all programs of earlier processes in the calling thread's network namespace,
// and returns a description of each.
func RemoveAll() (removed []string, err error) {
	return remove(func(string) bool { return true })
}

// Remove detaches the programs of earlier processes on a TUN device.
func Remove(device string) error {
	_, err := remove(func(d string) bool { return d == device })
	return err
}

// remove detaches the programs of the devices that selected reports.
func remove(selected func(device string) bool) (removed []string, err error) {
	detach := removeFilters
	if haveTCX() {
		detach = removePins
	}
	devices, err := detach(selected)
	errs := []error{err}
	for _, device := range devices {
		errs = append(errs, removeStage(device))
		removed = append(removed, "fast path of "+device)
	}
	return removed, errors.Join(errs...)
}

// RemoveStale detaches the programs of devices that no longer exist, in the calling thread's
// network namespace.
func RemoveStale() error {
	stale := isDeleted
	if haveTCX() {
		stale = lacksOutbound
	}
	_, err := remove(stale)
	return err
}

// isDeleted reports whether the device does not exist.
func isDeleted(device string) bool {
	_, err := net.InterfaceByName(device)
	return err != nil
}

// removePins detaches pinned programs of the devices that remove selects, and returns the devices.
func removePins(remove func(device string) bool) (devices []string, err error) {
	netns, err := netnsID()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(pinRoot)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var errs []error
	for _, e := range entries {
		device, ok := strings.CutPrefix(e.Name(), netns+"-")
		if !ok || !remove(device) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(pinRoot, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("remove pins: %w", err))
			continue
		}
		devices = append(devices, device)
	}
	return devices, errors.Join(errs...)
}

// lacksOutbound reports whether the pinned program of the device is not attached to it. A device
// of the same name may be another one.
func lacksOutbound(device string) bool {
	dir, err := pinDir(device)
	if err != nil || dir == "" {
		return true
	}
	l, err := link.LoadPinnedLink(pinPath(dir, hookOutbound), nil)
	if err != nil {
		return true
	}
	h := tcx{link: l}
	detached := h.isOn(0)
	return h.close() != nil || detached
}
