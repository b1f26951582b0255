//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// TestNetnsOtherProgram attaches another program to a place of this package, before and after ours.
func TestNetnsOtherProgram(t *testing.T) {
	o := newTakeover(t)
	var program *ebpf.Program
	attach := func() (other link.Link) {
		t.Helper()
		if err := o.lab.Nodes[0].Do(func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			if program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, actPass), asm.Return()}}); err != nil {
				return err
			}
			other, err = link.AttachTCX(link.TCXOptions{Interface: eth0.Index, Program: program,
				Attach: ebpf.AttachTCXIngress})
			return err
		}); err != nil {
			t.Skip("NOT TESTED: no TCX:", err)
		}
		return other
	}
	detach := func(other link.Link) {
		t.Helper()
		if err := errors.Join(other.Close(), program.Close()); err != nil {
			t.Fatal(err)
		}
	}
	watch := func() error {
		return o.lab.Nodes[0].Do(func() error { return o.paths[0].Watch(false) })
	}

	other := attach()
	err := o.lab.Nodes[0].Do(func() error {
		p, err := Open(Config{Place: o.places[0]})
		if err == nil {
			return p.Close()
		}
		return err
	})
	if !errors.Is(err, ErrOtherOwner) {
		t.Errorf("opened beside another program: %v", err)
	}
	detach(other)
	o.replace(0, Open)
	if err := watch(); err != nil {
		t.Errorf("alone: %v", err)
	}
	other = attach()
	if err := watch(); !errors.Is(err, ErrOtherOwner) {
		t.Errorf("beside another program: %v", err)
	}
	detach(other)
	if err := watch(); err != nil {
		t.Errorf("alone again: %v", err)
	}
	o.replace(0, Open) // whose program takes the place of ours
	if err := watch(); err != nil {
		t.Errorf("after the takeover: %v", err)
	}
}
