package ctrl

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"

	"github.com/mdlayher/genetlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fouEncap is TUNNEL_ENCAP_FOU of linux/if_tunnel.h.
const fouEncap = 1

// hasFOU reports whether the kernel has foo over UDP. It asks only once, because each query makes
// the kernel look for a module.
func (k *Kernel) hasFOU() bool {
	k.fouOnce.Do(func() { k.fou = queryFOU() == nil })
	return k.fou
}

// queryFOU looks up the generic netlink family of foo over UDP. netlink.FouFamilyId does the same,
// but its request reads two bytes beyond its own header (nl.Genlmsg.Serialize of v1.3.1), which
// belong to another goroutine.
func queryFOU() error {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return fmt.Errorf("open generic netlink: %w", err)
	}
	_, err = c.GetFamily(netlink.FOU_GENL_NAME)
	return errors.Join(err, c.Close())
}

// ProbeFOU reports why the kernel cannot create an IPIP device with foo-over-UDP encapsulation;
// unavailable is empty if it can. It loads the module fou, for which the kernel has no alias that
// would load it automatically, and creates and deletes a device with the settings of t.
func (k *Kernel) ProbeFOU(t IPIP) (unavailable string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.hasFOU() {
		modprobe := exec.Command("modprobe", "fou").Run()
		if err := queryFOU(); err != nil {
			return fmt.Sprintf("no foo over UDP (module fou): %v; modprobe: %v", err, modprobe), nil
		}
		k.fou = true
	}
	// The kernel allows one device per pair of tunnel endpoints, so the probe has its own local
	// address.
	t.Local = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	probe := Link{Name: "flannel-probe", Kind: KindIPIP, IPIP: t}
	if err := k.deleteLink(probe); err != nil { // left by a process that was killed here
		return "", err
	}
	if err := k.createLink(probe); err != nil {
		return fmt.Sprintf("no IPIP over it: %v", err), nil
	}
	return "", k.deleteLink(probe)
}

// fouPorts lists the ports that decapsulate bare IPv4.
func (k *Kernel) fouPorts() ([]FOUPort, error) {
	if !k.hasFOU() {
		return nil, nil
	}
	fous, err := dump("fou ports", func() ([]netlink.Fou,
		error) {
		return k.h.FouList(unix.AF_INET)
	})
	if err != nil {
		return nil, err
	}
	var out []FOUPort
	for _, f := range fous {
		if f.EncapType == netlink.FOU_ENCAP_DIRECT && f.Protocol == unix.IPPROTO_IPIP {
			out = append(out, FOUPort{f.Port})
		}
	}
	return out, nil
}

func (k *Kernel) applyFOU(v Verb, p FOUPort) error {
	f := netlink.Fou{Family: unix.AF_INET, Port: p.Port, Protocol: unix.IPPROTO_IPIP,
		EncapType: netlink.FOU_ENCAP_DIRECT}
	if v == Delete {
		return k.h.FouDel(f)
	}
	return k.h.FouAdd(f)
}
