package conntest

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// results converts what was found to results, and explains the failures. underlay is nil if the
// node was not asked on the underlay.
func (p pair) results(found map[Check]probed, underlay *probed) []Result {
	common := p.commonReason(found, underlay)
	var results []Result
	for _, c := range checks() {
		f, done := found[c]
		if !done {
			continue
		}
		r := Result{From: p.Source.Node, To: p.Target.Node, Family: p.family, Check: c,
			Outcome: Passed, RTT: f.rtt.Seconds()}
		switch {
		case common != "" && (f.err != nil || f.skipped != ""):
			r.Outcome, r.Reason = Failed, common
		case f.skipped != "":
			r.Outcome, r.Reason = Skipped, f.skipped
		case f.err != nil:
			r.Outcome, r.Reason = Failed, p.reason(c, found)
		}
		results = append(results, r)
	}
	return results
}

// addWorkers adds the failures of the packets that the workers carry to the results of those that
// the fast path may carry. there is an echo that the workers carry on the way there only.
func (p pair) addWorkers(results []Result, usual, byWorkers map[Check]probed, there probed) []Result {
	common, usualCommon := p.commonReason(byWorkers, nil), p.commonReason(usual, nil)
	for i := range results {
		r := &results[i]
		f := byWorkers[r.Check]
		switch {
		case r.Outcome == Failed && usualCommon != "" && common == "":
			r.Reason = "packets that the workers carry pass, those of the fast path are lost: something " +
				"between the nodes drops UDP without a checksum. Nodes notice within a minute and use " +
				"the workers; --fast-path=off does so at once"
		case f.err == nil || r.Outcome == Skipped || usualCommon != "":
		case common != "":
			r.Outcome, r.Reason = Failed, p.bulkReason(there)
		case r.Outcome == Passed:
			r.Outcome, r.Reason = Failed, "of the packets that the workers carry: "+p.reason(r.Check, byWorkers)
		}
	}
	return results
}

// bulkReason is the reason if only the packets of the fast path reach a node.
func (p pair) bulkReason(there probed) string {
	where := fmt.Sprintf("%s or %s", p.Source.Node, p.Target.Node)
	switch {
	case there.skipped != "":
	case there.err != nil:
		where = fmt.Sprintf("%s (INPUT), or of %s (OUTPUT),", p.Target.Node, p.Source.Node)
	default:
		where = fmt.Sprintf("%s (INPUT), or of %s (OUTPUT),", p.Source.Node, p.Target.Node)
	}
	return fmt.Sprintf("bulk flows are lost, which the workers carry, while the packets of the fast path "+
		"pass: a packet filter of %s drops the tunnel's UDP port, whose rules do not see the fast path: "+
		"weft doctor there", where)
}

// commonReason returns the one reason of many failures; it is empty if there is none. Pods are
// reached if an echo or TCP passes.
func (p pair) commonReason(found map[Check]probed, underlay *probed) string {
	podPod := stateOf(found, PodToPod, TCP)
	podHost, hostPod := stateOf(found, PodToHost), stateOf(found, HostToPod)
	switch {
	case podPod == reached:
		return ""
	case podHost != reached && hostPod != reached:
		if podPod == unknown && podHost == unknown && hostPod == unknown {
			return ""
		}
		return p.cutOffReason(underlay)
	case podPod == unknown:
		return ""
	case podHost == reached && hostPod != reached:
		return fmt.Sprintf("%[1]s answers itself, its pod does not: %[1]s does not forward to its pods "+
			"(packet filter, forwarding)", p.Target.Node)
	case podHost != reached:
		return fmt.Sprintf("packets from pods are lost, those from %[1]s itself are not: %[1]s does not "+
			"forward for its pods (packet filter, forwarding)", p.Source.Node)
	}
	return ""
}

// reach is whether something is reached.
type reach int

const (
	unknown reach = iota // not tested
	lost
	reached
)

// stateOf combines checks of one way: one success is enough, also an echo whose check failed later.
func stateOf(found map[Check]probed, ways ...Check) reach {
	state := unknown
	for _, c := range ways {
		f, done := found[c]
		switch {
		case !done || f.skipped != "":
		case f.err == nil || f.pinged:
			return reached
		default:
			state = lost
		}
	}
	return state
}

// cutOffReason is the reason if nothing of a node answers through the overlay.
func (p pair) cutOffReason(underlay *probed) string {
	switch {
	case underlay == nil:
		return p.Target.Node + " does not answer through the overlay"
	case underlay.err != nil:
		return fmt.Sprintf("%s does not answer on the underlay (%s) either: it is down or cut off",
			p.Target.Node, p.Public)
	}
	return fmt.Sprintf("%s answers on the underlay (%s), not through the overlay: the tunnel's packets "+
		"are dropped, or its daemon does not run", p.Target.Node, p.Public)
}

// reason returns the reason of one failure.
func (p pair) reason(c Check, found map[Check]probed) string {
	f := found[c]
	switch {
	case c == Large && f.tooBig != 0:
		return fmt.Sprintf("packets of %d bytes, the MTU of pods, do not fit: an ICMP error reports a "+
			"path MTU of %d", f.size, f.tooBig)
	case c == Large && f.fits != 0:
		return fmt.Sprintf("path MTU black hole: packets of up to %d bytes pass, larger ones are lost "+
			"without an ICMP error (the MTU of pods is %d)", f.fits, f.size)
	case errors.Is(f.err, errStalled) && found[Large].err != nil && found[Large].skipped == "":
		return "the data stalled: large packets are lost"
	case c == Fragments && found[Large].err != nil && found[Large].skipped == "":
		return "the fragments, which are large packets, are lost"
	case errors.Is(f.err, errNoAnswer) && c == PodToPod && found[TCP].err == nil:
		return "no answer to ping, but TCP passes: a packet filter drops ICMP"
	case isTimeout(f.err) && (f.pinged || c == TCP && found[PodToPod].err == nil):
		return "ping passes, no answer to TCP: a packet filter drops it, or checksum offload for " +
			"tunnels is broken"
	case c == Fragments && isTimeout(f.err) && found[Large].err == nil:
		return "small and large packets pass, fragments of a UDP datagram are lost: a packet filter " +
			"drops UDP or fragments"
	}
	return Describe(f.err)
}

// tcpReason describes an error of a connection.
func Describe(err error) string {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "connection refused: a packet filter rejects it, or the server has ended"
	case isTimeout(err):
		return "no answer"
	}
	return err.Error()
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, unix.ETIMEDOUT)
}
