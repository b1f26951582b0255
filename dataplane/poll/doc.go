// Package poll decides how a dataplane worker waits for packets: without giving up the CPU while they
// keep coming, and without using it while they do not.
//
//	   more to do: KeepRunning
//	          +-----+
//	          v     |
//	      +----------+  nothing to do: Wait
//	+---> |   busy   | ----+------------------------+------------------------+
//	|     +----------+     | waits < 200 us,        | waits < 5 ms           | otherwise
//	|                      | CPU not contended      |                        |
//	|                      v                        v                        v
//	|                +-----------+   200 us   +-----------+    5 ms    +-----------+
//	| one is ready   | busy-poll | ---------> | raw ppoll | ---------> | netpoller |
//	|                +-----------+            +-----------+            +-----------+
//	|                      |                        |                        |
//	+----------------------+------------------------+------------------------+
//
// Wait enters the state that suits the recent waits: a streak of short ones makes another one likely.
//
//   - busy: the goroutine is pinned to a thread, which has raised priority if the worker works for at
//     least a quarter of the time. All states but netpoller keep the thread.
//   - busy-poll: ppoll without a timeout and sched_yield(2) in turn. Blocking costs two context switches
//     and, on an idle CPU, the time to wake that up, part of which the sender pays. Busy-polling costs
//     CPU time that no other program wants, so it stops where one does.
//   - raw ppoll: blocks in the kernel, invisible to Go's scheduler. The worker keeps its thread and its
//     P and runs as soon as a packet arrives. Each such worker needs a P of its own in GOMAXPROCS.
//   - netpoller: blocks as a goroutine in net.Conn.Read does, and releases thread and P. The woken
//     thread is the one that ran the netpoller. Before the worker runs long, a Handoff passes that role
//     to another thread, once per busy period.
//
// # Tuning constants
//
// All measurements were made on one machine with two CPUs for both nodes and all programs, and are
// medians of interleaved rounds. "wire" cuts frames to the MTU, "off" passes them whole.
//
//	constant          value    measurement or source                                       workload
//	busyPollTimeout   200 us   RTT relative to kernel VXLAN: wire 0.93, off 0.70;          rtt-idle
//	                           without 2.15 and 1.68 (5 rounds); throughput unchanged
//	rawPollTimeout    5 ms     1 and 4 TCP streams 5-20 % faster, in all 4 pairs of        tcp-1, tcp-4
//	                           medians (4 rounds)
//	streakMin         4        chosen, not measured                                        rtt-lone
//	streakMax         8        chosen, not measured                                        rtt-lone
//	longYield         700 us   kernel/sched/fair.c, sysctl_sched_base_slice                rtt-busy
//	wastedYieldRatio  16       separates programs that compute from those that send:       rtt-busy,
//	                           see type contention                                         udp-64-1
//	contentionWindow  10 ms    chosen, not measured                                        connect-busy
//	contentionPause   1 s      chosen: detecting it again takes 10 ms of each second       connect-busy
//	busyWindow        10 ms    chosen: long enough to change the priority seldom           tcp-busy
//	niceBoost         10       1 TCP stream 1.20 (wire), 1.09 (off) times as fast, 4       tcp-1, tcp-4
//	                           streams 1.09, 1.16 (12 rounds); 5 gave half, 19 no more
//
// To measure one again, change it, build weftd, and run both daemons in the same rounds:
//
//	weft bench --cases rtt-idle --rivals weftd --rival old=/path/to/old/weftd --rounds 5
package poll
