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

// loopback is the index of the interface that every network namespace has.
const loopback = 1

// haveTCX reports whether the kernel has TCX (Linux 6.6).
func haveTCX() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

// tcx is a program that is attached with TCX.
type tcx struct {
	link link.Link
	pin  string // path of the pin; empty if it ends with the process
}

// pinPath returns the path of a hook's pin.
func pinPath(dir string, kind hookKind) string { return filepath.Join(dir, kind.String()) }

// adoptTCX is adopt for TCX.
func (at place) adoptTCX() (hook, error) {
	dir, err := pinDir(at.device)
	if err != nil || dir == "" {
		return nil, err
	}
	path := pinPath(dir, at.kind)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	h := tcx{link: l, pin: path}
	if h.isOn(at.target) {
		return h, nil
	}
	return nil, errors.Join(os.Remove(path), l.Close())
}

// attachTCX is attach for TCX.
func (at place) attachTCX(p *ebpf.Program) (hook, error) {
	attachType := at.kind.attachType()
	if err := at.findOther(0); err != nil {
		return nil, err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: at.target, Program: p, Attach: attachType, Anchor: link.Head(),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: attach %s program: %w", ErrUnsupported, at.kind, err)
	}
	dir, err := pinDir(at.device)
	if err != nil || dir == "" {
		return tcx{link: l}, err
	}
	path := pinPath(dir, at.kind)
	if err := l.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin %s program: %w", at.kind, err), l.Close())
	}
	return tcx{link: l, pin: path}, nil
}

func (h tcx) isOn(target int) bool {
	info, err := h.link.Info()
	return err == nil && info.TCX() != nil && info.TCX().Ifindex == uint32(target)
}

func (h tcx) update(p *ebpf.Program) error { return h.link.Update(p) }

func (h tcx) lasts() bool { return h.pin != "" }

func (h tcx) close() error { return h.link.Close() }
