// Package bench measures how fast pods reach each other, through weftd and through other targets.
//
//	Case     a workload: which traffic, on how many nodes            (case.go)
//	Target   the overlay under test: no tunnel, kernel VXLAN,        (target.go)
//	         weftd with some flags, or only the system calls
//	         of a userspace tunnel as an upper bound                 (bare.go)
//	Run      rounds, in each of which every target is measured once, (run.go)
//	         so that a slow minute of the machine affects all
//	usage    CPU time, memory, drops and batch sizes                 (usage.go, scrape.go)
//
// Package traffic generates the traffic, package report holds and shows the results.
//
// Out of scope: checks that packets arrive intact. The namespace tests do that.
package bench
