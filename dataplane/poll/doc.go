// Package poll decides how a dataplane worker waits for packets: without giving up the CPU while
// they keep coming, and without using it while they do not.
//
//	   more to do: KeepRunning
//	          +-----+
//	          v     |
//	      +----------+  nothing to do: Wait
//	+---> |   busy   | ----+---------------------+---------------------+
//	|     +----------+     | waits < 200 µs,     | waits < 5 ms        | otherwise
//	|                      | CPU not contended   |                     |
//	|                      v                     v                     v
//	|                +-----------+  200 µs  +-----------+   5 ms   +-----------+
//	| one is ready   | busy-poll | -------> | raw ppoll | -------> | netpoller |
//	|                +-----------+          +-----------+          +-----------+
//	|                      |                     |                     |
//	+----------------------+---------------------+---------------------+
//
// Wait enters the state that suits the recent waits: a streak of short ones makes another one
// likely.
//
//   - busy: the goroutine is pinned to a thread, which has raised priority if the worker works for
//     at least a quarter of the time. All states but netpoller keep the thread.
//   - busy-poll: ppoll without a timeout and sched_yield(2) in turn. Blocking costs two context
//     switches and, on an idle CPU, the time to wake that up, part of which the sender pays.
//     Busy-polling uses only CPU time that no other program wants: it stops on a contended CPU.
//   - raw ppoll: blocks in the kernel, invisible to Go's scheduler. The worker keeps its thread and
//     its P and runs as soon as a packet arrives. So each worker needs its own P in GOMAXPROCS.
//   - netpoller: blocks as a goroutine in net.Conn.Read does, and releases thread and P. The woken
//     thread is the one that ran the netpoller. Before the worker runs long, a Handoff passes that
//     role to another thread, once per busy period.
//
// # Tuning constants
//
// All measurements are medians, made on one machine with two CPUs for both nodes and all programs.
// "wire" cuts frames to the MTU, "off" passes them whole. The workload is the one to measure with.
//
//	constant          value   measurement or source                              workload
//	busyPollTimeout   200 µs  RTT relative to kernel VXLAN: wire 0.93, off       rtt-idle
//	                          0.70; without 2.15 and 1.68 (5 interleaved
//	                          rounds); throughput did not suffer
//	rawPollTimeout    5 ms    1 and 4 TCP streams 5-20 % faster, in all 4        tcp-1, tcp-4
//	                          pairs of medians (4 rounds)
//	streakMin         4       no measurement recorded                            rtt-sparse
//	streakMax         8       no measurement recorded                            rtt-sparse
//	longYield         700 µs  kernel/sched/fair.c, sysctl_sched_base_slice       rtt-busy
//	wastedYieldRatio  16      value: no measurement recorded; effect: see        rtt-busy,
//	                          type contention                                    udp-64-1
//	contentionWindow  10 ms   no measurement recorded                            connect-busy
//	contentionPause   1 s     no measurement recorded                            connect-busy
//	busyWindow        10 ms   chosen: long enough to change priority seldom      tcp-busy
//	niceBoost         10      TCP: 1 stream 1.20 (wire) and 1.09 (off) times     tcp-1, tcp-4
//	                          as fast, 4 streams 1.09 and 1.16 (12
//	                          interleaved rounds); 5 gave about half of
//	                          that, 19 no more
//	shortSlice        100 µs  RTT p50 0.85 and p99 0.76 of those with the        rtt-busy,
//	                          kernel's 1.4 ms (wire; better in 8 and 9 of 10     connect-busy
//	                          interleaved rounds; no difference in mode off);
//	                          connections 1.07 (6 of 10) and 1.11 (off, 7 of
//	                          10); the other workloads did not change
//
// To measure one again, change it, build weftd, and compare with the old one in the same rounds:
//
//	weft bench --cases rtt-idle --targets weftd --target old=/path/to/old/weftd --rounds 5
package poll
