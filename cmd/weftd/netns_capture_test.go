package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/cmd/control"
	"weft/dataplane/capture"
	"weft/deploy/lab"
)

// capturing is a capture of a daemon.
type capturing struct {
	t    *testing.T
	file bytes.Buffer
	done chan error
}

// capture starts a capture of so many packets.
func (d *member) capture(c control.Capture) *capturing {
	d.t.Helper()
	client := control.NewClient(d.node.Path("weft/weftd.sock"))
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	d.t.Cleanup(cancel)
	body, err := client.Stream(ctx, control.CapturePath, c.Values())
	if err != nil {
		d.t.Fatal(err)
	}
	running := &capturing{t: d.t, done: make(chan error, 1)}
	go func() {
		_, err := io.Copy(&running.file, body)
		body.Close()
		running.done <- err
	}()
	return running
}

// records waits for the end of the capture and returns its records.
func (c *capturing) records() []capture.Record {
	c.t.Helper()
	if err := <-c.done; err != nil {
		c.t.Fatal(err)
	}
	r, err := capture.NewReader(bytes.NewReader(c.file.Bytes()))
	if err != nil {
		c.t.Fatal(err)
	}
	var all []capture.Record
	for {
		rec, err := r.Read()
		if err == io.EOF {
			return all
		}
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, rec)
	}
}

// TestNetnsCapture captures pings at both points with each backend, and reads them with tshark.
func TestNetnsCapture(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	for _, backend := range []struct {
		name, config, device string
		outer                bool
	}{
		{"udp", `{"Type":"udp"}`, "", true},
		{"vxlan", `{"Type":"vxlan"}`, "flannel.1", true},
		{"host-gw", `{"Type":"host-gw"}`, "eth0", false},
	} {
		t.Run(backend.name, func(t *testing.T) {
			c := c.in(t)
			c.put(clusterPrefix+"/config", `{"Network":"10.5.0.0/16","Backend":`+backend.config+`}`)
			ds := c.up("--probe-interval=0")
			from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
			points := map[capture.Point]*capturing{
				capture.Inner: ds[0].capture(control.Capture{Inner: true, Filter: "icmp", Count: 40})}
			if backend.outer {
				points[capture.Outer] = ds[0].capture(control.Capture{Outer: true, Count: 40,
					Filter: "udp port 8285 or udp port 8472"})
			}
			if r, err := from.Ping(t.Context(), to.Addr, lab.Ping{Count: 20}); err != nil || r.Received != 20 {
				t.Fatalf("ping: %+v, %v", r, err)
			}
			for point, running := range points {
				for _, r := range running.records() {
					if r.Drop != "" || r.Node == "" || r.Point != point ||
						point == capture.Inner && r.Device != backend.device {
						t.Errorf("%v %s: %s", r.Point, r.Text(), r.Comment())
					}
				}
			}
			checkTshark(t, points[capture.Inner].file.Bytes())
			ds[0].checkTop(from, to, true)
			for _, d := range ds {
				d.stop()
			}
		})
	}
}

// checkTop pings from a pod of the node until the stream for weft top shows the flow of the echoes,
// or of the replies, and the traffic of its node.
func (d *member) checkTop(from, to *lab.Pod, outbound bool) {
	d.t.Helper()
	pinger, err := from.StartPing(d.t.Context(), to.Addr, lab.Ping{Count: 1000})
	if err != nil {
		d.t.Fatal(err)
	}
	defer pinger.Stop()
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	client := control.NewClient(d.node.Path("weft/weftd.sock"))
	body, err := client.Stream(ctx, control.TopPath, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	defer body.Close()
	decoder := json.NewDecoder(body)
	for {
		var top control.Top
		if err := decoder.Decode(&top); err != nil {
			d.t.Fatalf("no sample shows the ping: %v", err)
		}
		flow := slices.IndexFunc(top.Flows, func(f control.TopFlow) bool {
			src, dst := from.Addr, to.Addr
			if !outbound {
				src, dst = dst, src
			}
			return f.Outbound == outbound && f.Proto == 1 && f.Src.Addr() == src && f.Dst.Addr() == dst &&
				f.Node == top.Nodes[0].Name && f.Packets > 20 && f.Bytes >= 28*f.Packets
		})
		if flow >= 0 && top.Nodes[0].Out.Packets > 20 && top.Nodes[0].In.Packets > 20 &&
			top.Out.Packets >= top.Nodes[0].Out.Packets {
			return
		}
	}
}

// TestNetnsTopFastPath shows flows that the workers do not see.
func TestNetnsTopFastPath(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.upFast()
	carried := func() (n uint64) {
		f := ds[0].status().Traffic.FastPath
		return f.Out.Packets
	}
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	await(t, patience, "an echo on the fast path", func() error {
		// A flow returns from the workers after a silence.
		_, err := from.Ping(t.Context(), to.Addr, lab.Ping{Count: 2, Interval: 200 * time.Millisecond})
		if err == nil && carried() == 0 {
			err = fmt.Errorf("%+v", ds[0].status().Traffic.FastPath)
		}
		return err
	})
	before := carried()
	for _, outbound := range []bool{true, false} {
		ds[0].checkTop(from, to, outbound)
	}
	if n := carried() - before; n < 40 {
		t.Errorf("the fast path carried %d packets meanwhile", n)
	}
}

// TestNetnsCaptureFollows captures pings before and after the device is recreated, in one capture.
func TestNetnsCaptureFollows(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	c.put(clusterPrefix+"/config", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`)
	ds := c.up("--probe-interval=0")
	from, to := c.Nodes[0].Pods[0], c.Nodes[1].Pods[0]
	running := ds[0].capture(control.Capture{Inner: true, Filter: "icmp", Count: 41})
	if r, err := from.Ping(t.Context(), to.Addr, lab.Ping{Count: 20}); err != nil || r.Received != 20 {
		t.Fatalf("ping: %+v, %v", r, err)
	}
	if err := ds[0].node.DeleteLink("flannel.1"); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "a packet of the new device", func() error {
		_, err := from.Ping(t.Context(), to.Addr, lab.Ping{Timeout: 100 * time.Millisecond})
		select {
		case captured := <-running.done:
			running.done <- captured
			return err
		default:
			return errors.Join(err, errors.New("none yet"))
		}
	})
	if n := len(running.records()); n != 41 {
		t.Errorf("%d records", n)
	}
}

// checkTshark compares the number of echo requests and replies in a file.
func checkTshark(t *testing.T, file []byte) {
	t.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Log("NOT TESTED: reading with tshark: not installed")
		return
	}
	cmd := exec.Command("tshark", "-r", "-", "-Y", "frame.interface_name == inner",
		"-T", "fields", "-e", "icmp.type", "-e", "frame.packet_flags_direction")
	cmd.Stdin = bytes.NewReader(file)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	requests := strings.Count(string(out), "8\t0x00000002\n") // outbound
	replies := strings.Count(string(out), "0\t0x00000001\n")  // inbound
	if requests != 20 || replies != 20 {
		t.Errorf("tshark sees %d echo requests and %d replies:\n%s", requests, replies, out)
	}
}

// TestNetnsCaptureDrops captures packets to an address without a node, and from an unknown sender.
func TestNetnsCaptureDrops(t *testing.T) {
	c := newCluster(t, lab.Options{}, clusterNetwork)
	ds := c.up("--probe-interval=0")
	running := ds[0].capture(control.Capture{Inner: true, DropsOnly: true, Count: 2, Filter: "icmp or udp port 4242"})
	pod := c.Nodes[0].Pods[0]
	if _, err := pod.Ping(t.Context(), netip.MustParseAddr("10.5.255.9"), lab.Ping{Timeout: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	stray, err := c.Root.Dial("udp", netip.AddrPortFrom(c.Nodes[0].Addr, udpPort))
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	inner := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 5, 9, 9, 10, 5, 1, 1, 0x10, 0x92, 0x10, 0x92, 0, 8, 0, 0}
	if _, err := stray.Write(inner); err != nil {
		t.Fatal(err)
	}
	all := running.records()
	if len(all) != 2 || all[0].Drop != "no_node" || !all[0].Outbound ||
		all[1].Drop != "unknown_outer_source" || all[1].Outbound ||
		all[1].Outer != netip.MustParseAddr(stray.LocalAddr().(*net.UDPAddr).IP.String()) {
		t.Errorf("captured %+v", all)
	}
}
