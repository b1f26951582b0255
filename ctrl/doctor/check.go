package doctor

import "slices"

// source is a kind of facts that may be missing.
type source string

const (
	fromDaemon  source = "daemon"
	fromEnv     source = "subnet.env" // or the daemon's own values, which are as exact
	fromSubnet  source = "pod subnet" // at least as far as the kernel's state shows it
	fromKernel  source = "kernel"
	fromFilter  source = "packet filter"
	fromProbes  source = "probes"
	fromTraffic source = "traffic counters"
	fromPods    source = "pods"
	fromCNI     source = "CNI configuration"
	fromStore   source = "store"
	fromHost    source = "host" // files and processes
)

// check looks for one fault.
type check struct {
	name  string
	needs []source
	// symptom marks an observation with many causes.
	symptom bool
	find    func(*Facts) []Finding
}

// checks lists all checks, causes before symptoms.
func checks() []check {
	return slices.Concat(daemonChecks(), storeChecks(), nodeChecks(), ipsecChecks(),
		cloudChecks(), familyChecks())
}

// familyChecks lists the checks that are made for each address family of the node.
func familyChecks() []check {
	return slices.Concat(kernelChecks(), deviceChecks(), routeChecks(), filterChecks(), podChecks(), probeChecks())
}
