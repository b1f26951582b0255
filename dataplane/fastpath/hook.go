//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// ErrOtherOwner means that another program is attached where this package would attach its own.
var ErrOtherOwner = errors.New("another BPF program is attached")

// hookKind is a place of a program.
type hookKind int

const (
	hookOutbound hookKind = iota // egress of the TUN device
	hookInbound                  // ingress of the underlay interface
	numHooks
)

func (k hookKind) String() string { return [numHooks]string{"outbound", "inbound"}[k] }

func (k hookKind) attachType() ebpf.AttachType {
	if k == hookOutbound {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// hook is an attached program.
type hook struct {
	kind hookKind
	link link.Link
	pin  string // path of the pin; empty if it ends with the process
}

// pinPath returns the path of a hook's pin.
func pinPath(dir string, kind hookKind) string { return filepath.Join(dir, kind.String()) }

// adoptHook returns the hook that an earlier process left on the interface, or nil. It removes one
// that is on another interface.
func adoptHook(kind hookKind, target int, dir string) (*hook, error) {
	if dir == "" {
		return nil, nil
	}
	path := pinPath(dir, kind)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	h := &hook{kind: kind, link: l, pin: path}
	if h.isOn(target) {
		return h, nil
	}
	return nil, errors.Join(os.Remove(path), l.Close())
}

// attachHook attaches a program to an interface.
func attachHook(kind hookKind, p *ebpf.Program, target int, dir string) (*hook, error) {
	others, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: kind.attachType()})
	if err != nil {
		return nil, fmt.Errorf("%w: the kernel has no TCX (Linux 6.6): %w", ErrUnsupported, err)
	}
	if n := len(others.Programs); n > 0 {
		return nil, fmt.Errorf("%w: program %d, %s of interface %d", ErrOtherOwner,
			others.Programs[0].ID, kind.attachType(), target)
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: target, Program: p, Attach: kind.attachType(), Anchor: link.Head(),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: attach %s program: %w", ErrUnsupported, kind, err)
	}
	h := &hook{kind: kind, link: l}
	if dir == "" {
		return h, nil
	}
	if err := l.Pin(pinPath(dir, kind)); err != nil {
		return nil, errors.Join(fmt.Errorf("pin %s program: %w", kind, err), l.Close())
	}
	h.pin = pinPath(dir, kind)
	return h, nil
}

// isOn reports whether the program is attached to the interface.
func (h *hook) isOn(target int) bool {
	info, err := h.link.Info()
	return err == nil && info.TCX() != nil && info.TCX().Ifindex == uint32(target)
}

// check returns an error if the program is no longer attached.
func (h *hook) check() error {
	if h == nil {
		return errors.New("program is not attached")
	}
	if h.isOn(0) {
		return fmt.Errorf("%s program was detached", h.kind)
	}
	return nil
}

// close releases the descriptor.
func (h *hook) close() error { return h.link.Close() }
