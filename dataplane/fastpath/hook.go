//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// hookKind is a place of a program.
type hookKind int

const (
	hookOutbound hookKind = iota // egress of the TUN device
	hookJoined                   // ingress of the stage's far end
	hookInbound                  // ingress of the underlay interface
	numHooks
)

func (k hookKind) String() string { return [numHooks]string{"outbound", "joined", "inbound"}[k] }

func (k hookKind) attachType() ebpf.AttachType {
	if k == hookOutbound {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// hook is an attached program: with TCX, or a filter of clsact on kernels before 6.6.
type hook interface {
	// isOn reports whether the program is attached to the interface.
	isOn(target int) bool
	// update replaces the program in one step.
	update(*ebpf.Program) error
	// lasts reports whether the program stays attached after close.
	lasts() bool
	close() error
}

// place is an interface for a program, and the device that it works for.
type place struct {
	kind   hookKind
	target int
	device string
}

// adopt returns the hook that an earlier process left on the interface, or nil. It removes one that
// is on another interface.
func (at place) adopt() (hook, error) {
	if haveTCX() {
		return at.adoptTCX()
	}
	return at.adoptFilter()
}

// attach attaches a program to the interface.
func (at place) attach(p *ebpf.Program) (hook, error) {
	if haveTCX() {
		return at.attachTCX(p)
	}
	return at.attachFilter(p)
}

// check returns an error if the program is not attached.
func (at place) check(h hook) error {
	if h == nil {
		return errors.New("program is not attached")
	}
	if !h.isOn(at.target) {
		return fmt.Errorf("%s program was detached", at.kind)
	}
	return nil
}
