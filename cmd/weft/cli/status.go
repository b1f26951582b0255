package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/cmd/control"
	"weft/metrics"
)

// newStatus returns weft status.
func newStatus() *cobra.Command {
	var a asking
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show this node: lease, store, backend, interface, MTUs and the other nodes",
		Long: "weft status shows this node on a screen. Problems are red, or marked with ! where " +
			"there is no\ncolor; the exit status is then 1. Without a daemon it shows the state " +
			"that the kernel and the\nsubnet file hold, and the exit status is 3.\n\n" +
			"HEARD and SENT are the times since the last packet from and to a node, KERNEL is the " +
			"part of the\nbytes that the fast path carried, MTU that of the path. With wireguard, " +
			"OUT and IN are the bytes\nto and from a node; other kernel backends count per " +
			"device only.\n\n" +
			"With --all it asks the health port of every node. Each one tells whether it is " +
			"ready, and why\nnot, and its paths to the others, for the matrix of a small cluster; " +
			"flannel has no answer.",
		Args: Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().Status(cmd.Context())
			if errors.Is(err, control.ErrNoDaemon) || errors.Is(err, control.ErrNoAnswer) {
				return errors.Join(showKernel(cmd.OutOrStdout(), a.json, f.subnetFile, err), err)
			}
			switch {
			case err != nil:
				return err
			case f.all:
				return showCluster(cmd.Context(), cmd.OutOrStdout(), a.json, f.healthPort, s)
			}
			return show(cmd.OutOrStdout(), a.json, s, statusScreen(s, readInterfaces(), time.Now()))
		},
	}
	a.register(cmd)
	cmd.Flags().BoolVar(&f.all, "all", false, "ask all nodes of the cluster")
	cmd.Flags().Uint16Var(&f.healthPort, "health-port", 0,
		"`port` of the nodes' health servers for --all (default: this node's)")
	cmd.Flags().StringVar(&f.subnetFile, "subnet-file", "/run/flannel/subnet.env",
		"`path` of the subnet file to read if there is no daemon")
	return cmd
}

// statusFlags are the flags of weft status.
type statusFlags struct {
	all        bool
	healthPort uint16
	subnetFile string
}

// show prints v as JSON, or the screen. It returns an exit status if the screen shows a problem.
func show(w io.Writer, asJSON bool, v any, page *screen) error {
	var err error
	if asJSON {
		err = WriteJSON(w, v)
	} else {
		err = page.write(w, wantsColor(w))
	}
	if err == nil && page.problem() {
		err = ExitStatus(statusProblem)
	}
	return err
}

// problem reports whether a line is marked as a problem.
func (s *screen) problem() bool {
	for _, l := range s.lines {
		if l.problem {
			return true
		}
	}
	return false
}

// statusScreen describes a status in words.
func statusScreen(s control.Status, host interfaces, now time.Time) *screen {
	var p screen
	state := "ready"
	if !s.Ready {
		state = "NOT READY"
	}
	p.add(!s.Ready, "node", fmt.Sprintf("%s, %s, weftd %s", s.Node, state, s.Build.Version))
	addStore(&p, s.Store, now)
	if s.Network != nil {
		p.add(false, "network", joinValid(s.Network.Network, s.Network.Network6))
	}
	addLease(&p, s.Lease, now)
	addBackend(&p, s)
	if i := s.Interface; i != nil {
		p.add(false, "interface", fmt.Sprintf("%s %s, %s", i.Name, joinValid(i.Address, i.Address6), i.Reason))
		if joinValid(i.Address, i.Address6) != joinValid(i.Public, i.Public6) {
			p.add(false, "public", joinValid(i.Public, i.Public6))
		}
	}
	addMTUs(&p, s, host)
	addConditions(&p, s)
	addTraffic(&p, s.Traffic)
	addKernelTraffic(&p, s.KernelTraffic)
	addNodes(&p, s, now)
	return &p
}

func addStore(p *screen, s control.Store, now time.Time) {
	place := strings.Join(s.Endpoints, " ")
	if s.Prefix != "" {
		place += " prefix " + s.Prefix
	}
	if s.File != "" {
		place += " file " + s.File
	}
	text := fmt.Sprintf("%s %s, ", s.Kind, strings.TrimSpace(place))
	switch {
	case s.Connected && s.Error == "":
		text += fmt.Sprintf("connected for %s, revision %d", since(s.Since, now), s.Revision)
	case s.Since.IsZero():
		text += "not connected yet"
	default:
		text += fmt.Sprintf("not connected for %s: %s", since(s.Since, now), s.Error)
	}
	p.add(!s.Connected || s.Error != "", "store", text)
}

func addLease(p *screen, l *control.Lease, now time.Time) {
	if l == nil {
		p.add(true, "lease", "none")
		return
	}
	text := joinValid(l.Subnet, l.Subnet6)
	switch {
	case !l.Held:
		text += ", lost"
	case l.Expires.IsZero():
		text += ", does not expire"
	default:
		text += ", expires in " + round(l.Expires.Sub(now))
	}
	p.add(!l.Held, "lease", text)
}

// addBackend adds the backend, its path, and the features that are not used.
func addBackend(p *screen, s control.Status) {
	text := s.Backend
	if s.Device != "" {
		text += ", device " + s.Device
	}
	if s.Port != 0 {
		text += fmt.Sprintf(", port %d", s.Port)
	}
	t := s.Traffic
	if t != nil {
		text += fmt.Sprintf(", engine %s, %d workers", t.Engine, s.Limits.Workers)
	}
	p.add(false, "backend", text)
	if t == nil {
		return
	}
	for _, f := range t.Features {
		if !f.Used {
			p.add(false, "", fmt.Sprintf("without %s: %s", f.Name, f.Reason))
		}
	}
	addFastPath(p, t.FastPath)
}

// addFastPath adds whether the kernel carries packets by itself, and why not.
func addFastPath(p *screen, f metrics.FastPath) {
	if !f.Active {
		p.add(false, "fast path", "not used: "+f.Reason)
		return
	}
	p.add(false, "fast path", "used"+suffix(", ", f.Reason))
}

// addConditions adds the conditions that are not met, or have a note, and the differences between
// the desired and the actual state.
func addConditions(p *screen, s control.Status) {
	p.gap()
	var met []string
	for _, c := range s.Conditions {
		switch {
		case !c.OK:
			p.add(true, c.Name, "NOT MET: "+c.Reason)
		case c.Reason != "":
			p.add(false, c.Name, "met: "+c.Reason)
		default:
			met = append(met, c.Name)
		}
	}
	if len(met) > 0 {
		p.add(false, "met", strings.Join(met, ", "))
	}
	for _, note := range s.Rules.Notes {
		p.add(false, "note", note)
	}
	if devices := s.Kernel.UserspaceWireGuard; len(devices) > 0 {
		p.add(false, "wireguard", "the kernel has none: the daemon runs "+strings.Join(devices, " "))
	}
	for _, d := range s.Kernel.Differences {
		p.add(true, "kernel", "lacks: "+d)
	}
	if s.Kernel.Repairs+s.Rules.Repairs > 0 {
		p.add(false, "repairs", fmt.Sprintf("%d of devices and routes, %d of rules", s.Kernel.Repairs,
			s.Rules.Repairs))
	}
}

func addTraffic(p *screen, t *metrics.Traffic) {
	if t == nil {
		return
	}
	p.gap()
	p.add(false, "sent", volume(t.Out))
	addWays(p, t.FastPath, t.Out, t.FastPath.Out)
	p.add(false, "received", volume(t.In))
	addWays(p, t.FastPath, t.In, t.FastPath.In)
	for _, d := range t.Drops {
		if d.Packets > 0 {
			p.add(false, "dropped", fmt.Sprintf("%d %s%s%s", d.Packets, d.Reason,
				suffix(", last ", d.Last), suffix(": ", d.Meaning)))
		}
	}
	for _, o := range t.Overflows {
		if o.Packets > 0 {
			p.add(false, "dropped", fmt.Sprintf("%d by the kernel: the %s queue was full", o.Packets, o.Queue))
		}
	}
	for _, u := range t.UnknownSources {
		p.add(false, "unknown", fmt.Sprintf("%d packets from %s, which is not a node", u.Packets, u.Address))
	}
}

// addKernelTraffic adds the kernel's counters of overlay devices.
func addKernelTraffic(p *screen, t *metrics.KernelTraffic) {
	if t == nil {
		return
	}
	p.gap()
	if t.Error != "" {
		p.add(false, "traffic", "unknown: "+t.Error)
	}
	for _, d := range t.Devices {
		p.add(false, "sent", d.Device+" "+volume(d.Out)+dropped(d.OutDropped))
		p.add(false, "received", d.Device+" "+volume(d.In)+dropped(d.InDropped))
	}
}

// dropped tells how many packets a device has dropped, if any.
func dropped(packets uint64) string {
	if packets == 0 {
		return ""
	}
	return fmt.Sprintf(", %d dropped", packets)
}

// addNodes adds the table of the other nodes.
func addNodes(p *screen, s control.Status, now time.Time) {
	p.gap()
	if len(s.Nodes) == 0 {
		p.add(false, "no other nodes")
		return
	}
	traffic := newTrafficColumns(s, now)
	p.add(false, nodeCells([]string{"NODE", "SUBNET", "ADDRESS", "RTT", "LOSS", "MTU"},
		traffic.names, "STATE")...)
	for _, n := range s.Nodes {
		state, problem := nodeState(n, now)
		rtt, loss, mtu := pathCells(n.Path, n.Path6)
		p.add(problem, nodeCells([]string{cmp.Or(n.Host, n.Name), joinValid(n.Subnet, n.Subnet6),
			n.Public.String(), rtt, loss, mtu}, traffic.cells(n), state)...)
	}
}

func nodeCells(path, traffic []string, state string) []string {
	return append(append(path, traffic...), state)
}

// pathCells formats the measurements of the mesh probe: those of IPv4 if there are any.
func pathCells(v4, v6 *control.Path) (rtt, loss, mtu string) {
	path := cmp.Or(v4, v6)
	rtt, loss, mtu = "-", "-", "-"
	if path == nil || path.Sent == 0 {
		return rtt, loss, mtu
	}
	if path.RTTMedian > 0 {
		rtt = fmt.Sprintf("%.2f ms", path.RTTMedian*1e3)
	}
	loss = fmt.Sprintf("%d/%d", path.Lost, path.Sent)
	if path.MTU > 0 {
		mtu = strconv.Itoa(path.MTU)
	}
	return rtt, loss, mtu
}

// silence is how long a node may leave packets unanswered before that counts as a problem: longer
// than a pause of most protocols with replies.
const silence = 10 * time.Second

// nodeState describes whether a node can be reached, and whether it cannot.
func nodeState(n control.Node, now time.Time) (text string, problem bool) {
	refused := ""
	if n.Error != "" {
		refused = fmt.Sprintf("%s (%s ago)", n.Error, since(n.ErrorAt, now))
	}
	switch {
	case n.Unreachable != "":
		return "unreachable: " + n.Unreachable + suffix("; ", refused), true
	case refused != "":
		return refused, true
	case n.Unanswered > 0 && n.Sent.Sub(n.Heard) > silence && now.Sub(n.Sent) < time.Minute:
		return fmt.Sprintf("%d packets sent since it was last heard", n.Unanswered), true
	case n.Heard.IsZero() && n.Path == nil && n.Path6 == nil:
		return "", false
	}
	return "ok", false
}

func volume(v metrics.Volume) string {
	return fmt.Sprintf("%d packets, %s", v.Packets, megabytes(v.Bytes))
}

// suffix returns text after a separator; empty for an empty text.
func suffix(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

// since formats the time since t.
func since(t, now time.Time) string { return round(now.Sub(t)) }

// age is since, or a dash for the zero time.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return since(t, now)
}

// round formats a duration with at most two units.
func round(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	case d >= time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.Round(time.Second).String()
}

// joinValid joins the valid ones of the two with a space.
func joinValid[T netip.Addr | netip.Prefix](v4, v6 T) string {
	var texts []string
	for _, v := range []T{v4, v6} {
		var zero T
		if v != zero {
			texts = append(texts, fmt.Sprint(v))
		}
	}
	return strings.Join(texts, " ")
}
