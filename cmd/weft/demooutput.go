package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
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
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nNODE\tADDRESS\tLEASE\tEXPIRES IN\tDEVICE\tMTU\tPACKETS OUT/IN\tMB OUT/IN\tDROPS\tUNDERLAY FRAMES OUT/IN")
	for i, n := range d.lab.Nodes {
		if err := d.row(ctx, w, i); err != nil {
			return &stepError{i, "read the counters of " + n.Name, err}
		}
	}
	fmt.Fprintln(w)
	return w.Flush()
}

func (d *demonstration) row(ctx context.Context, w *tabwriter.Writer, i int) error {
	node := d.lab.Nodes[i]
	m, err := bench.Scrape(ctx, d.health(i))
	if err != nil {
		return err
	}
	page, err := bench.GetInside(ctx, node.NS, d.health(i), "/status")
	if err != nil {
		return err
	}
	var s daemonStatus
	if err := json.Unmarshal(page, &s); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	device, err := node.Link(s.Device)
	if err != nil {
		return err
	}
	underlay, err := node.Link("eth0")
	if err != nil {
		return err
	}
	out, in := m[`weft_packets_total{direction="out"}`], m[`weft_packets_total{direction="in"}`]
	if out == 0 || in == 0 {
		return errors.New("the daemon counted no packets, although pods reached each other")
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%.0f/%.0f\t%.0f/%.0f\t%.0f\t%d/%d\n",
		node.Name, node.Addr, s.Lease.Subnet, time.Until(s.Lease.Expires).Round(time.Minute), s.Device, device.MTU, out, in,
		m[`weft_bytes_total{direction="out"}`]/1e6, m[`weft_bytes_total{direction="in"}`]/1e6,
		m.Sum("weft_drops_total"), underlay.Counters.TxPackets, underlay.Counters.RxPackets)
	return nil
}

// printFailure prints the error and the end of the log of the daemons concerned.
func (d *demonstration) printFailure(err error) {
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

// keep prints commands to inspect the lab, and waits for Ctrl-C.
func (d *demonstration) keep(ctx context.Context) error {
	seen, err := lab.ReadHostView()
	if err != nil {
		return err
	}
	pid, enter := seen.PID, "nsenter --target "+seen.PID+" --mount"
	if seen.UserNamespace {
		enter += " --user --preserve-credentials"
	}
	root := filepath.Join("/proc", pid, "root")
	inside := func(name string) string {
		return enter + " --net=" +
			filepath.Join(root, "run/netns", name)
	}
	a, b := d.lab.Nodes[0], d.lab.Nodes[1]
	fmt.Fprintf(d.out, `The lab keeps running; Ctrl-C ends it. From another terminal of this user:

  a pod         %s sh
  a node        %s sh
  etcd          %s --net=/proc/%s/ns/net sh
  others        the same with node1, node2, node3, node1-pod1, node2-pod1, node3-pod1

Things to try:

  in the pod    ping %s
  in the node   ip route; ip -s link show dev flannel0; tcpdump -ni eth0 udp port 8285
                ip link del flannel0        (weftd recreates it, the ping continues)
                curl http://%s/status
  from etcd     curl http://%s/metrics
  from outside  cat %s
                %s --pid kill -9 %d   (the daemon of %s: only its pod becomes unreachable)
`, inside(a.Pods[0].Name), inside(a.Name), enter, pid, b.Pods[0].Addr, d.health(0), d.health(0),
		filepath.Join(root, strings.TrimPrefix(a.Path("flannel/subnet.env"),
			"/")), enter, d.daemons[demoNodes-1].PID(), d.lab.Nodes[demoNodes-1].Name)
	<-ctx.Done()
	fmt.Fprintln(d.out)
	return nil
}
