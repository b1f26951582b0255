//go:build amd64 || arm64

package fastpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// findOther returns ErrOtherOwner, with a description, if another program handles packets at the
// place: it would not see those that ours takes. own is ours; 0 if it is not attached.
func (at place) findOther(own ebpf.ProgramID) error {
	attachType := at.kind.attachType()
	all, err := link.QueryPrograms(link.QueryOptions{Target: at.target, Attach: attachType})
	if err == nil { // the kernel has TCX
		for _, p := range all.Programs {
			if p.ID != own {
				return fmt.Errorf("%w: program %d, %s of interface %d", ErrOtherOwner, p.ID, attachType,
					at.target)
			}
		}
	}
	filters, err := netlink.FilterList(linkOf(at.target), at.kind.parent())
	if err != nil {
		return fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); !ok || b.Name != at.name() {
			return fmt.Errorf("%w: %s filter, %s of interface %d", ErrOtherOwner, f.Type(), attachType,
				at.target)
		}
	}
	return nil
}

// plainQdiscs are the kinds of qdiscs that limit no rate unless they are asked to: the defaults of
// kernels and distributions.
func plainQdiscs() []string {
	return []string{"noqueue", "pfifo_fast", "pfifo", "bfifo", "mq", "fq", "fq_codel", "fq_pie",
		"codel", "pie", "sfq", "clsact", "ingress"}
}

// shaper returns the kind of a qdisc that shapes the packets of an interface, which those that
// outbound takes do not pass; empty if there is none.
func shaper(index int) (string, error) {
	all, err := netlink.QdiscList(linkOf(index))
	if err != nil {
		return "", fmt.Errorf("list qdiscs: %w", err)
	}
	plain := plainQdiscs()
	if b, err := os.ReadFile("/proc/sys/net/core/default_qdisc"); err == nil {
		plain = append(plain, strings.TrimSpace(string(b)))
	}
	for _, q := range all {
		if q.Attrs().LinkIndex == index && !slices.Contains(plain, q.Type()) {
			return q.Type(), nil
		}
	}
	return "", nil
}

// pauseReason returns why outbound is to pass every packet of the TUN device, whose index is given;
// empty if it is not.
func pauseReason(at Place, index int) (string, error) {
	isCaptured, err := captured(index)
	if err != nil {
		return "", err
	}
	if isCaptured {
		return "a capture on " + at.Device, nil
	}
	kind, err := shaper(index)
	if err != nil {
		return "", err
	}
	if kind != "" {
		return "the qdisc " + kind + " on " + at.Device, nil
	}
	return noNextHops(at)
}

// noNextHops returns the setting for which bpf_fib_lookup finds no next hops on the underlay,
// although the kernel forwards IPv6 packets without it; empty if it finds them.
func noNextHops(at Place) (string, error) {
	if at.Local.Addr().Unmap().Is4() {
		return "", nil
	}
	const settings = "/proc/sys/net/ipv6/conf"
	b, err := os.ReadFile(filepath.Join(settings, at.Underlay, "forwarding"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // the interface has gone
	}
	if err != nil {
		return "", fmt.Errorf("read forwarding of %s: %w", at.Underlay, err)
	}
	if strings.TrimSpace(string(b)) != "0" {
		return "", nil
	}
	return "net.ipv6.conf." + at.Underlay + ".forwarding, which is 0", nil
}
