package conntest

import (
	"net/netip"
	"slices"
)

// Check is the name of a check.
type Check string

// The checks of a pair of nodes, in the order of the report.
const (
	PodToPod  Check = "pod-pod"   // echo
	Large     Check = "large"     // echo of the pods' MTU that must not be fragmented
	TCP       Check = "tcp"       // a MiB there and back, pod to pod, compared by SHA-256
	Fragments Check = "fragments" // a UDP datagram of several fragments there and back, pod to pod
	PodToHost Check = "pod-host"  // echo and HTTP from a pod to the other node
	HostToPod Check = "host-pod"  // echo and HTTP from the node to a pod of the other node
	Service   Check = "service"   // HTTP from a pod to the address of a Service
)

// checks returns the checks of a pair of nodes.
func checks() []Check {
	return []Check{PodToPod, Large, TCP, Fragments, PodToHost, HostToPod}
}

// Outcome is the outcome of a check.
type Outcome string

// The outcomes.
const (
	Passed  Outcome = "ok"
	Failed  Outcome = "FAILED"
	Skipped Outcome = "-"
)

// Result is the outcome of one check.
type Result struct {
	From    string  `json:"from"` // name of a node
	To      string  `json:"to"`   // name of a node, or address of a Service
	Family  string  `json:"family"`
	Check   Check   `json:"check"`
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"` // why the check failed or was skipped
	// RTT is the round-trip time in seconds, of checks with an echo.
	RTT float64 `json:"rtt_seconds,omitempty"`
}

// Names of the families.
const (
	ipv4 = "IPv4"
	ipv6 = "IPv6"
)

// Target is another node.
type Target struct {
	Node string `json:"node"`
	// Public is the address of the node on the underlay.
	Public netip.Addr `json:"public,omitzero"`
	// Host has the addresses of the node that are reached through the overlay, at most one per
	// family. With host-gw there are none, and these are the node's own.
	Host []netip.Addr `json:"host,omitempty"`
	// Pod has the addresses of the pod with a server, at most one per family.
	Pod []netip.Addr `json:"pod,omitempty"`
	// NoServer is the reason why the node has no server; empty if it has one.
	NoServer string `json:"no_server,omitempty"`
}

// ofFamily returns the address of a family; it is invalid if there is none.
func ofFamily(all []netip.Addr, family string) netip.Addr {
	i := slices.IndexFunc(all, func(a netip.Addr) bool { return a.Is6() == (family == ipv6) })
	if i < 0 {
		return netip.Addr{}
	}
	return all[i]
}

// NotRun returns the result for a node from which nothing could be tested.
func NotRun(node string, err error) Result {
	return Result{From: node, To: "others", Family: "any", Check: "run", Outcome: Failed,
		Reason: err.Error()}
}

// OK reports whether all checks passed.
func OK(results []Result) bool {
	return len(results) > 0 && !slices.ContainsFunc(results, func(r Result) bool {
		return r.Outcome != Passed
	})
}
