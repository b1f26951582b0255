package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"weft/deploy/lab"
)

// usage is what an overlay and the machine have used up so far.
type usage struct {
	cpu   cpuTime
	nodes []nodeUsage
}

// cpuTime is processor time.
type cpuTime struct {
	daemons time.Duration
	machine time.Duration // everybody's, interrupts included
}

// nodeUsage counts what one node's kernel and daemon have handled.
type nodeUsage struct {
	tunnel             lab.Counters // of the daemon's device
	datagrams          datagrams
	carriedIn, carried float64 // packets, as the daemon counts them
	dropped            float64 // by the daemon and at its queues
}

// datagrams are the UDP datagrams of a namespace. A train that leaves or arrives whole counts once.
type datagrams struct{ in, out, refused float64 }

// spend reads all counters before and after it does the work. Processor time is read closest to the work: reading the
// rest costs the daemons some.
func (o *overlay) spend(work func() error) (before, after usage, err error) {
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
		nu, err := o.lookAt(n)
		if err != nil {
			return err
		}
		u.nodes = append(u.nodes, nu)
	}
	return nil
}

func (o *overlay) lookAt(n *lab.Node) (u nodeUsage, err error) {
	if o.device != "" {
		tunnel, err := n.Link(o.device)
		if err != nil {
			return u, err
		}
		u.tunnel = tunnel.Counters
	}
	if u.datagrams, err = readDatagrams(n.NS); err != nil {
		return u, err
	}
	m, err := o.metrics(n) // whose sums are 0 if there is no page
	u.carried, u.carriedIn = m[`weft_packets_total{direction="out"}`], m[`weft_packets_total{direction="in"}`]
	u.dropped = m.Sum("weft_drops_total") + m.Sum("weft_queue_overflows_total")
	return u, err
}

// readDatagrams reads /proc/net/snmp of a namespace.
func readDatagrams(ns *lab.NS) (d datagrams, err error) {
	err = ns.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		d, err = parseDatagrams(b)
		return err
	})
	return d, err
}

// parseDatagrams finds the counters by their names in the line above them.
func parseDatagrams(b []byte) (d datagrams, err error) {
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
			into := map[string]*float64{"InDatagrams": &d.in, "OutDatagrams": &d.out, "RcvbufErrors": &d.refused}[string(names[i])]
			if into == nil {
				continue
			}
			if *into, err = strconv.ParseFloat(string(f), 64); err != nil {
				return d, fmt.Errorf("read UDP counters: %w", err)
			}
		}
		return d, nil
	}
	return d, errors.New("read UDP counters: no such lines")
}

// machineCPU is the processor time that this machine has used since its start.
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's processor time: %w", err)
	}
	return parseMachineCPU(b)
}

// parseMachineCPU adds up user, nice, system, irq and softirq of the first line (proc(5)); guest times are in user's
// already, and what was stolen, others have used.
func parseMachineCPU(b []byte) (time.Duration, error) {
	fields := bytes.Fields(bytes.SplitN(b, []byte("\n"), 2)[0])
	if len(fields) < 8 || string(fields[0]) != "cpu" {
		return 0, fmt.Errorf("read the machine's processor time: %q", b[:min(len(b), 80)])
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(string(fields[i]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the machine's processor time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}

// figures says what was spent between two looks for so many bytes and packets that the receiver got.
func (o *overlay) figures(before, after usage, bytes, packets float64) Figures {
	f := Figures{}
	perUnit := func(name string, spent time.Duration) {
		if bytes > 0 {
			f[name+"_per_gb"] = spent.Seconds() / (bytes / 1e9)
		}
		if packets > 0 {
			f[name+"_per_mpkt"] = spent.Seconds() / (packets / 1e6)
		}
	}
	if len(o.daemons) > 0 {
		perUnit("daemon_cpu", after.cpu.daemons-before.cpu.daemons)
	}
	perUnit("machine_cpu", after.cpu.machine-before.cpu.machine)
	sender, receiver := 0, len(after.nodes)-1
	ratio := func(name string, packets, calls float64) {
		if packets > 0 && calls > 0 {
			f[name] = packets / calls
		}
	}
	out := after.nodes[sender].carried - before.nodes[sender].carried
	in := after.nodes[receiver].carriedIn - before.nodes[receiver].carriedIn
	ratio("packets_per_send", out, after.nodes[sender].datagrams.out-before.nodes[sender].datagrams.out)
	ratio("packets_per_receive", in, after.nodes[receiver].datagrams.in-before.nodes[receiver].datagrams.in)
	ratio("packets_per_tun_read", out, float64(after.nodes[sender].tunnel.TxPackets-before.nodes[sender].tunnel.TxPackets))
	ratio("packets_per_tun_write", in, float64(after.nodes[receiver].tunnel.RxPackets-before.nodes[receiver].tunnel.RxPackets))
	for i := range after.nodes {
		f["daemon_drops"] += after.nodes[i].dropped - before.nodes[i].dropped
		f["socket_drops"] += after.nodes[i].datagrams.refused - before.nodes[i].datagrams.refused
	}
	return f
}
