package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"weft/bench/report"
	"weft/deploy/lab"
)

// usage is the counters of an overlay and of the machine.
type usage struct {
	cpu   cpuTime
	nodes []nodeUsage
}

type cpuTime struct {
	daemons time.Duration
	machine time.Duration // all processes and interrupts
}

// nodeUsage is the counters of a node's kernel and daemon.
type nodeUsage struct {
	tunnel  lab.Counters // of the daemon's device
	udp     udpCounters
	in, out float64 // inner packets, as the daemon counts them
	dropped float64 // by the daemon and at its queues
}

// udpCounters counts the UDP datagrams of a namespace. A GSO or GRO train counts once.
type udpCounters struct{ in, out, dropped float64 }

// usageDuring reads all counters before and after work. The CPU time is read closest to the work,
// because reading the other counters uses CPU time of the daemons.
func (o *overlay) usageDuring(work func() error) (before, after usage, err error) {
	steps := []func() error{
		func() error { return o.readNodes(&before) },
		func() error { return o.readCPU(&before.cpu) },
		work,
		func() error { return o.readCPU(&after.cpu) },
		func() error { return o.readNodes(&after) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return before, after, err
		}
	}
	return before, after, nil
}

func (o *overlay) readCPU(c *cpuTime) error {
	for _, p := range o.daemons {
		cpu, err := p.CPUTime()
		if err != nil {
			return err
		}
		c.daemons += cpu
	}
	var err error
	c.machine, err = machineCPU()
	return err
}

func (o *overlay) readNodes(u *usage) error {
	for _, n := range o.lab.Nodes {
		nu, err := o.readNode(n)
		if err != nil {
			return err
		}
		u.nodes = append(u.nodes, nu)
	}
	return nil
}

func (o *overlay) readNode(n *lab.Node) (u nodeUsage, err error) {
	if o.device != "" {
		tunnel, err := n.Link(o.device)
		if err != nil {
			return u, err
		}
		u.tunnel = tunnel.Counters
	}
	if u.udp, err = readUDPCounters(n.NS); err != nil {
		return u, err
	}
	m, err := o.scrape(n) // all values are 0 if the daemon serves no metrics
	u.out, u.in = m[`weft_packets_total{direction="out"}`], m[`weft_packets_total{direction="in"}`]
	u.dropped = m.Sum("weft_drops_total") + m.Sum("weft_queue_overflows_total")
	return u, err
}

// readUDPCounters reads /proc/net/snmp of a namespace.
func readUDPCounters(ns *lab.NS) (c udpCounters, err error) {
	err = ns.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		c, err = parseUDPCounters(b)
		return err
	})
	return c, err
}

// parseUDPCounters finds the counters by their names in the line above them.
func parseUDPCounters(b []byte) (c udpCounters, err error) {
	var names [][]byte
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte("Udp: "))
		if !ok {
			continue
		}
		fields := bytes.Fields(rest)
		if names == nil {
			names = fields
			continue
		}
		for i, f := range fields[:min(len(fields), len(names))] {
			counter := map[string]*float64{"InDatagrams": &c.in, "OutDatagrams": &c.out,
				"RcvbufErrors": &c.dropped}[string(names[i])]
			if counter == nil {
				continue
			}
			if *counter, err = strconv.ParseFloat(string(f), 64); err != nil {
				return c, fmt.Errorf("read UDP counters: %w", err)
			}
		}
		return c, nil
	}
	return c, errors.New("read UDP counters: no Udp lines")
}

// machineCPU returns the CPU time that this machine has used since boot.
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return parseMachineCPU(b)
}

// parseMachineCPU adds up user, nice, system, irq and softirq of the first line (proc(5)). user
// includes guest times; stolen time was used by other machines.
func parseMachineCPU(b []byte) (time.Duration, error) {
	fields := bytes.Fields(bytes.SplitN(b, []byte("\n"), 2)[0])
	if len(fields) < 8 || string(fields[0]) != "cpu" {
		return 0, fmt.Errorf("read CPU time: %q", b[:min(len(b), 80)])
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}

// usageMetrics returns the usage between two readings, per byte and packet delivered.
func (o *overlay) usageMetrics(before, after usage, d delivered) report.Sample {
	s := report.Sample{}
	perUnit := func(name string, used time.Duration) {
		if d.bytes > 0 {
			s[name+"_per_gb"] = used.Seconds() / (d.bytes / 1e9)
		}
		if d.packets > 0 {
			s[name+"_per_mpkt"] = used.Seconds() / (d.packets / 1e6)
		}
	}
	if len(o.daemons) > 0 {
		perUnit("daemon_cpu", after.cpu.daemons-before.cpu.daemons)
	}
	perUnit("machine_cpu", after.cpu.machine-before.cpu.machine)
	sender, receiver := 0, len(after.nodes)-1
	ratio := func(name string, packets, calls float64) {
		if packets > 0 && calls > 0 {
			s[name] = packets / calls
		}
	}
	from, to := after.nodes[sender], after.nodes[receiver]
	from0, to0 := before.nodes[sender], before.nodes[receiver]
	out, in := from.out-from0.out, to.in-to0.in
	ratio("packets_per_send", out, from.udp.out-from0.udp.out)
	ratio("packets_per_receive", in, to.udp.in-to0.udp.in)
	ratio("packets_per_tun_read", out, float64(from.tunnel.TxPackets-from0.tunnel.TxPackets))
	ratio("packets_per_tun_write", in, float64(to.tunnel.RxPackets-to0.tunnel.RxPackets))
	for i := range after.nodes {
		s["daemon_drops"] += after.nodes[i].dropped - before.nodes[i].dropped
		s["socket_drops"] += after.nodes[i].udp.dropped - before.nodes[i].udp.dropped
	}
	return s
}
