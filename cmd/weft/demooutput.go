package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"weft/bench"
	"weft/deploy/lab"
)

// daemonStatus is the part of a daemon's /status that the demo prints.
type daemonStatus struct {
	Backend string `json:"backend"`
	Device  string `json:"device"`
	Lease   struct {
		Subnet  netip.Prefix `json:"subnet"`
		Expires time.Time    `json:"expires"`
	} `json:"lease"`
}

// table prints a row per node, from the daemons' metrics and status and from the kernel's counters.
func (d *demonstration) table(ctx context.Context) error {
	dropped := map[string]float64{}
	rows := make([]demoRow, len(d.lab.Nodes))
	for i, n := range d.lab.Nodes {
		var err error
		if rows[i], err = d.row(ctx, i, dropped); err != nil {
			return &stepError{i, "read the counters of " + n.Name, err}
		}
	}
	if d.flags.json {
		d.encode(struct {
			Nodes   []demoRow          `json:"nodes"`
			Dropped map[string]float64 `json:"dropped"`
		}{rows, dropped})
		return nil
	}
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nNODE\tADDRESS\tLEASE\tEXPIRES IN\tDEVICE\tMTU\tPACKETS OUT/IN\tMB OUT/IN\tDROPS\tUNDERLAY FRAMES OUT/IN")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%.0f/%.0f\t%.0f/%.0f\t%.0f\t%d/%d\n",
			r.Node, r.Address, r.Lease, time.Until(r.Expires).Round(time.Minute), r.Device, r.MTU,
			r.PacketsOut, r.PacketsIn, r.BytesOut/1e6, r.BytesIn/1e6, r.Drops, r.FramesOut, r.FramesIn)
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	for _, reason := range slices.Sorted(maps.Keys(dropped)) {
		fmt.Fprintf(d.out, "%.0f packets dropped: %s%s\n\n", dropped[reason], reason, dropRemarks[reason])
	}
	return nil
}

// dropRemarks explains the drops of a healthy demo.
var dropRemarks = map[string]string{
	"multicast":         " (harmless: IPv6 announcements of the kernel; the overlay is unicast only)",
	"neighbour_message": " (harmless: router solicitations of the kernel; a TUN has no neighbours)",
}

// demoRow is the state of a node at the end.
type demoRow struct {
	Node       string       `json:"node"`
	Address    netip.Addr   `json:"address"`
	Lease      netip.Prefix `json:"lease"`
	Expires    time.Time    `json:"expires"`
	Device     string       `json:"device"`
	MTU        int          `json:"mtu"`
	PacketsOut float64      `json:"packets_out"`
	PacketsIn  float64      `json:"packets_in"`
	BytesOut   float64      `json:"bytes_out"`
	BytesIn    float64      `json:"bytes_in"`
	Drops      float64      `json:"drops"`
	FramesOut  uint64       `json:"underlay_frames_out"`
	FramesIn   uint64       `json:"underlay_frames_in"`
}

// demoEvent is a step of the demo.
type demoEvent struct {
	Seconds float64 `json:"seconds"` // since the start
	Subject string  `json:"subject"`
	Text    string  `json:"text"`
}

// encode prints a line of JSON. As with the other output, an error has no other place to go.
func (d *demonstration) encode(v any) { _ = json.NewEncoder(d.out).Encode(v) }

func (d *demonstration) row(
	ctx context.Context, i int, dropped map[string]float64,
) (r demoRow, err error) {
	node := d.lab.Nodes[i]
	m, err := bench.Scrape(ctx, d.health(i))
	if err != nil {
		return r, err
	}
	page, err := bench.GetInside(ctx, node.NS, d.health(i), "/status")
	if err != nil {
		return r, err
	}
	var s daemonStatus
	if err := json.Unmarshal(page, &s); err != nil {
		return r, fmt.Errorf("read status: %w", err)
	}
	device, err := node.Link(s.Device)
	if err != nil {
		return r, err
	}
	underlay, err := node.Link("eth0")
	if err != nil {
		return r, err
	}
	out, in := m[`weft_packets_total{direction="out"}`], m[`weft_packets_total{direction="in"}`]
	if out == 0 || in == 0 {
		return r, errors.New("the daemon counted no packets, although pods reached each other")
	}
	for reason, n := range m.ByLabel("weft_drops_total", "reason") {
		if n > 0 {
			dropped[reason] += n
		}
	}
	return demoRow{
		Node: node.Name, Address: node.Addr, Lease: s.Lease.Subnet, Expires: s.Lease.Expires,
		Device: s.Device, MTU: device.MTU, PacketsOut: out, PacketsIn: in,
		BytesOut:  m[`weft_bytes_total{direction="out"}`],
		BytesIn:   m[`weft_bytes_total{direction="in"}`],
		Drops:     m.Sum("weft_drops_total"),
		FramesOut: uint64(underlay.Counters.TxPackets), FramesIn: uint64(underlay.Counters.RxPackets),
	}, nil
}

// printFailure prints the error and the end of the log of the daemons concerned.
func (d *demonstration) printFailure(err error) {
	if d.flags.json {
		d.encode(map[string]string{"error": err.Error()})
		return
	}
	fmt.Fprintln(d.out, "FAILED:", err)
	for _, i := range failedNodes(err) {
		p := d.daemons[i]
		if p == nil {
			continue
		}
		state := "is running"
		if !p.Running() {
			state = "exited"
		}
		fmt.Fprintf(d.out, "the daemon on %s %s; the end of its log:\n", d.lab.Nodes[i].Name, state)
		for _, line := range p.Tail(tailLines) {
			fmt.Fprintln(d.out, "    "+line)
		}
	}
}

// failedNodes returns the nodes of the errors joined in err.
func failedNodes(err error) []int {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var nodes []int
		for _, e := range joined.Unwrap() {
			nodes = append(nodes, failedNodes(e)...)
		}
		return nodes
	}
	var step *stepError
	if errors.As(err, &step) && step.node >= 0 {
		return []int{step.node}
	}
	return nil
}

// keep prints commands to inspect the lab, reports daemons that exit, and waits for Ctrl-C.
func (d *demonstration) keep(ctx context.Context) error {
	if err := d.copyLogs(); err != nil {
		return err
	}
	if err := d.printCommands(); err != nil {
		return err
	}
	exited := make(chan int)
	for i, p := range d.daemons {
		go func() {
			select {
			case <-p.Done():
			case <-ctx.Done():
				return
			}
			select {
			case exited <- i:
			case <-ctx.Done():
			}
		}()
	}
	for {
		select {
		case i := <-exited:
			d.log(d.lab.Nodes[i].Name, "the daemon exited")
		case <-ctx.Done():
			fmt.Fprintln(d.out)
			return nil
		}
	}
}

// logFile is the path of a daemon's log inside the lab.
func (d *demonstration) logFile(i int) string { return d.lab.Nodes[i].Path("weftd.log") }

// copyLogs keeps the daemons' logs in files.
func (d *demonstration) copyLogs() error {
	for i, p := range d.daemons {
		file, err := os.Create(d.logFile(i)) // open until the process ends
		if err != nil {
			return err
		}
		if err := p.CopyLog(file); err != nil {
			return err
		}
	}
	return nil
}

// exitedDaemons lists the nodes whose daemon has exited.
func (d *demonstration) exitedDaemons() []string {
	var names []string
	for i, p := range d.daemons {
		if p != nil && !p.Running() {
			names = append(names, d.lab.Nodes[i].Name)
		}
	}
	return names
}

// printCommands prints commands for another terminal.
func (d *demonstration) printCommands() error {
	view, err := lab.ReadHostView()
	if err != nil {
		return err
	}
	enter := "nsenter --target " + view.PID + " --mount"
	if view.UserNamespace {
		enter += " --user --preserve-credentials"
	}
	root := filepath.Join("/proc", view.PID, "root")
	shell := func(name, netns string) string {
		return enter + " --net=" + netns + " env PS1='" + name + "# ' sh"
	}
	inside := func(name string) string { return shell(name, filepath.Join(root, "run/netns", name)) }
	outside := func(path string) string { return filepath.Join(root, strings.TrimPrefix(path, "/")) }
	a, b, last := d.lab.Nodes[0], d.lab.Nodes[1], demoNodes-1
	fmt.Fprintf(d.out, `The lab keeps running; Ctrl-C ends it. From another terminal of this user:

  a pod         %s
  a node        %s
  etcd          %s
  others        the same with node1, node2, node3, node1-pod1, node2-pod1, node3-pod1

Things to try:

  in the pod    ping %s
  in the node   ip route; ip -s link show dev flannel0
                tcpdump -Z root -ni eth0 udp port %d
                curl http://%s/status; curl http://%s/metrics
                ip link del flannel0        (weftd recreates it, the ping continues)
  from etcd     ETCDCTL_API=3 etcdctl --endpoints=%s get --prefix %s
  from outside  cat %s
                tail -f %s
                %s --pid kill -9 %d   (the daemon of %s: only its pod becomes unreachable)
`, inside(a.Pods[0].Name), inside(a.Name), shell("etcd", "/proc/"+view.PID+"/ns/net"),
		b.Pods[0].Addr, udpPort, d.health(0), d.health(0), d.etcd.Endpoint(), demoPrefix,
		outside(a.Path("flannel/subnet.env")), outside(d.logFile(0)), enter, d.daemons[last].PID(),
		d.lab.Nodes[last].Name)
	return nil
}
