// Package doctor finds faults of the overlay on one node and names their causes.
//
//	Gather -> Facts -> checks -> Report
//
// Gather reads the kernel, the packet filters, the files of the CNI plugin and of the daemon, looks
// into the network namespaces of pods, and sends a few packets to other nodes. The checks are pure
// functions of these Facts, in files by subject, and listed in checks. The daemon's status is one
// of the facts, as an option: without it the kernel's state alone is examined, and the checks that
// need it are listed as not checked. Facts are of one address family; those of a node with both
// hold the facts about the other one, too.
//
// A finding has a name, which is its anchor in docs/troubleshooting.md, the evidence, the likely
// cause and a command that mends it. Symptoms are findings of observations that have many causes,
// such as a node that does not answer. They are reported apart if a cause was found.
package doctor
