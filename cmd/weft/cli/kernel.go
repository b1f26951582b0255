package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"

	"weft/cmd/control"
	"weft/ctrl"
	"weft/lease/subnetenv"
)

// kernelState is the state of the overlay that outlives the daemon.
type kernelState struct {
	SubnetFile string       `json:"subnet_file"`
	Network    netip.Prefix `json:"network,omitzero"`
	Network6   netip.Prefix `json:"network6,omitzero"`
	Subnet     netip.Prefix `json:"subnet,omitzero"`
	Subnet6    netip.Prefix `json:"subnet6,omitzero"`
	MTU        int          `json:"mtu,omitempty"`
	Devices    []string     `json:"devices"`
	Routes     []string     `json:"routes"`
	Entries    []string     `json:"entries"` // neighbours, forwarding entries and peers
	// Problems are differences that show without the desired state.
	Problems []string `json:"problems"`
}

// showKernel prints the state that the kernel and the subnet file hold. reason is the error of the
// request to the daemon.
func showKernel(w io.Writer, asJSON bool, subnetFile string, reason error) error {
	k, err := readKernelState(subnetFile)
	if err != nil {
		return err
	}
	if asJSON {
		return WriteJSON(w, k)
	}
	var p screen
	daemon := "not running"
	if errors.Is(reason, control.ErrNoAnswer) {
		daemon = "does not answer: stopped, or it hangs"
	}
	p.add(true, "daemon", daemon)
	p.add(false, "subnet file", k.SubnetFile)
	p.add(false, "network", joinValid(k.Network, k.Network6))
	p.add(false, "subnet", joinValid(k.Subnet, k.Subnet6))
	p.add(false, "MTU", fmt.Sprint(k.MTU))
	for _, problem := range k.Problems {
		p.add(true, "problem", problem)
	}
	for _, list := range [][]string{k.Devices, k.Routes, k.Entries} {
		if len(list) > 0 {
			p.gap()
		}
		for _, text := range list {
			p.add(false, text)
		}
	}
	return p.write(w, wantsColor(w))
}

func readKernelState(subnetFile string) (kernelState, error) {
	kernel, err := ctrl.OpenKernel(nil)
	if err != nil {
		return kernelState{}, err
	}
	defer kernel.Close()
	have, err := kernel.Read(ctrl.OverlayName)
	if err != nil {
		return kernelState{}, err
	}
	text, err := os.ReadFile(subnetFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kernelState{}, err
	}
	file, _, parseErr := subnetenv.Parse(text)
	k := newKernelState(have, file)
	k.SubnetFile = subnetFile
	switch {
	case err != nil:
		k.Problems = append(k.Problems, "no subnet file: this node has had no lease since its boot")
	case parseErr != nil:
		k.Problems = append(k.Problems, parseErr.Error())
	}
	return k, nil
}

// newKernelState selects the state of the overlay and compares it with the subnet file.
func newKernelState(have ctrl.State, file subnetenv.File) kernelState {
	k := kernelState{
		Network: file.Network, Network6: file.Network6, MTU: file.MTU,
		Subnet: file.Subnet.Masked(), Subnet6: file.Subnet6.Masked(),
		Devices: []string{}, Routes: []string{}, Entries: []string{}, Problems: []string{},
	}
	overlay := map[string]bool{}
	for _, l := range have.Links {
		if !ctrl.OverlayName(l.Name) {
			continue
		}
		overlay[l.Name] = true
		k.Devices = append(k.Devices, l.String())
		if !l.Up {
			k.Problems = append(k.Problems, "device "+l.Name+" is down")
		}
		if l.MTU != 0 && l.MTU < file.MTU {
			k.Problems = append(k.Problems, fmt.Sprintf("device %s has MTU %d, pods have %d", l.Name, l.MTU, file.MTU))
		}
	}
	for _, r := range have.Routes {
		if r.Protocol == ctrl.RouteProtocol || overlay[r.Dev] {
			k.Routes = append(k.Routes, r.String())
		}
	}
	for _, n := range have.Neighbours {
		k.Entries = append(k.Entries, n.String())
	}
	for _, f := range have.FDB {
		k.Entries = append(k.Entries, f.String())
	}
	for _, p := range have.Peers {
		k.Entries = append(k.Entries, p.String())
	}
	if len(overlay) == 0 {
		k.Problems = append(k.Problems, "no device of the overlay, as with host-gw, or as udp's "+
			"ends with its daemon")
	}
	if len(k.Routes) == 0 {
		k.Problems = append(k.Problems, "no routes to other nodes")
	}
	return k
}
