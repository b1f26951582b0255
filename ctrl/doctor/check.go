package doctor

import "slices"

// source is a kind of facts that may be missing.
type source string

const (
	fromDaemon  source = "daemon"
	fromEnv     source = "subnet.env"
	fromKernel  source = "kernel"
	fromFilter  source = "packet filter"
	fromProbes  source = "probes"
	fromTraffic source = "traffic counters"
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
	return slices.Concat(daemonChecks(), storeChecks(), kernelChecks(), deviceChecks(), routeChecks(),
		filterChecks(), nodeChecks(), ipsecChecks(), probeChecks())
}
