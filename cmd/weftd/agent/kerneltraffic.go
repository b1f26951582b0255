package agent

import (
	"net/netip"

	"weft/cmd/control"
	"weft/ctrl"
	"weft/metrics"
)

// kernelTraffic reads the counters of a backend whose packets the kernel moves; nil if it has no
// device, or if another program does.
func (s *snapshot) kernelTraffic(nodes []control.Node) *metrics.KernelTraffic {
	if s.engine != nil || len(s.adv.Devices) == 0 {
		return nil
	}
	devices, peers, err := s.kernel.Counters(s.adv.Devices)
	if err != nil {
		return &metrics.KernelTraffic{Error: err.Error()}
	}
	t := &metrics.KernelTraffic{}
	for _, d := range devices {
		t.Devices = append(t.Devices, metrics.DeviceTraffic{
			Device: d.Dev, Out: metrics.Volume(d.Out), In: metrics.Volume(d.In),
			OutDropped: d.OutDropped, InDropped: d.InDropped,
		})
	}
	t.Nodes = peerTraffic(peers, nodes)
	return t
}

// peerTraffic names the nodes of WireGuard peers.
func peerTraffic(peers []ctrl.PeerCounters, nodes []control.Node) []metrics.NodeTraffic {
	names := make(map[netip.Prefix]string, 2*len(nodes))
	for _, n := range nodes {
		names[n.Subnet], names[n.Subnet6] = n.Name, n.Name
	}
	delete(names, netip.Prefix{})
	var all []metrics.NodeTraffic
	for _, p := range peers {
		for _, subnet := range p.Allowed {
			if name, ok := names[subnet]; ok {
				all = append(all, metrics.NodeTraffic{Node: name,
					Out: metrics.Volume{Bytes: p.OutBytes}, In: metrics.Volume{Bytes: p.InBytes}})
				break
			}
		}
	}
	return all
}
