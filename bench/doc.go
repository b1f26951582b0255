// Package bench measures how fast pods reach each other, through this project's daemon and through its rivals, and says
// how much of a difference is noise.
//
//	Case     what traffic, over which underlay            (case.go)
//	Rival    what carries it: no tunnel, kernel VXLAN, weftd with one engine or another, ...   (rival.go)
//	         or the system calls of a userspace tunnel alone, as the limit of what one can reach   (bare.go)
//	round    every rival once on one case, in turn, so that a slow minute of the machine hits all of them
//	Result   medians, spread, ratios within the run, machine facts   (result.go)
//	report   one HTML page, a Markdown table, a comparison of two results   (report.go, compare.go)
//
// The generators (tcp.go, udp.go, rtt.go, connect.go) open their sockets inside pods of a [lab.Lab] and run in this
// process. They use plain blocking sockets, as ordinary programs do, and batches of system calls where one packet each
// would measure the generator. All rates are what the receiver got.
//
// Out of scope: checks that anything arrives unharmed. The namespace tests do that.
package bench
