package report

// Case describes a workload.
type Case struct {
	Name, Title string
	// Description completes "the workload is".
	Description string
	// Headlines are the metrics to compare targets by, the most important one first.
	Headlines []string
	// Note helps to judge the headlines; it is empty for most cases.
	Note string
	// Cost explains why a userspace tunnel is slower than a kernel tunnel in this workload.
	Cost string
	// FastCost explains why the fast path is; empty without a known reason.
	FastCost string
}

// cost explains why a target of Weft's is slower than a kernel tunnel.
func (c Case) cost(target string) string {
	if target == fastTarget {
		return c.FastCost
	}
	return c.Cost
}

// busyThreads is the load of the cases with busy CPUs.
const busyThreads = "two threads per CPU that use all the time they get"

// Costs of a userspace tunnel, by the kind of workload.
const (
	copyCost = "a TUN device and a UDP socket on each node make the kernel copy each byte four more times, and weftd copies it" +
		" twice; `bare` makes the kernel's copies only"
	wakeCost = "a packet that arrives alone wakes a daemon on each node, where a kernel tunnel continues in the same interrupt"
	busyCost = "weftd's workers are threads that wait for a CPU, where a kernel tunnel works in interrupts"
	bulkCost = "flows that share a worker with a bulk flow wait behind its packets: one flow in as many as there are workers"
	fanCost  = "the daemons of all nodes share the CPUs of this machine"
)

// joinCost is the cost of the fast path for TCP.
const joinCost = "the receiving CPU handles each packet twice, when it arrives and in the veth pair where the kernel joins" +
	" packets (GRO), which it can do for VXLAN at once. In mode “off” it also cuts frames that arrived whole, because a" +
	" bridge would: they have the mark of the sender's tunnel"

// idleNote is the note on round trips of an idle machine.
const idleNote = "the engine of weftd busy-polls between round trips, which keeps the CPUs awake; others pay for waking" +
	" them. A program that holds `/dev/cpu_dma_latency` open at 0, or in a guest a larger `guest_halt_poll_ns`," +
	" keeps them awake for any target, so a ratio below 1 is no gain on such a host"

// Cases lists the workloads in the order of the reports.
func Cases() []Case {
	throughput := []string{"throughput", "machine_cpu_per_gb"}
	rate := []string{"rate", "machine_cpu_per_mpkt"}
	connections, rtt := []string{"connections"}, []string{"p50", "p99"}
	return []Case{
		{Name: "tcp-1", Title: "TCP, 1 stream", Description: "one TCP stream",
			Headlines: throughput, Cost: copyCost, FastCost: joinCost},
		{Name: "tcp-4", Title: "TCP, 4 streams", Headlines: throughput, Cost: copyCost, FastCost: joinCost,
			Description: "four TCP streams at the same time, added up"},
		{Name: "tcp-16", Title: "TCP, 16 streams", Headlines: throughput, Cost: copyCost, FastCost: joinCost,
			Description: "sixteen TCP streams at the same time, added up"},
		{Name: "tcp-busy", Title: "TCP, 1 stream, busy CPUs",
			Headlines: []string{"throughput"}, Cost: copyCost, FastCost: joinCost,
			Description: "one TCP stream beside " + busyThreads},
		{Name: "udp-64-1", Title: "UDP 64 B, 1 flow", Headlines: rate, Cost: wakeCost,
			Description: "64-byte datagrams of one flow"},
		{Name: "udp-64-256", Title: "UDP 64 B, 256 flows", Headlines: rate, Cost: wakeCost,
			Description: "64-byte datagrams of 256 flows in turn"},
		{Name: "udp-64-runs", Title: "UDP 64 B, 256 flows, 32 in a row",
			Headlines: rate, Cost: wakeCost,
			Description: "64-byte datagrams of 256 flows, 32 of a flow before the next one"},
		{Name: "udp-1400-1", Title: "UDP 1,400 B, 1 flow", Headlines: rate, Cost: copyCost,
			Description: "1,400-byte datagrams of one flow"},
		{Name: "udp-1400-256", Title: "UDP 1,400 B, 256 flows", Headlines: rate, Cost: copyCost,
			Description: "1,400-byte datagrams of 256 flows in turn"},
		{Name: "rtt-idle", Title: "round trip, idle", Headlines: rtt,
			Description: "64-byte datagrams and their answers, the next one sent when the answer" +
				" arrives", Note: idleNote, Cost: wakeCost},
		{Name: "rtt-sparse", Title: "round trip, 50 per second",
			Headlines: []string{"p50", "daemon_cpu_per_mpkt"}, Cost: wakeCost,
			Description: "round trips with a pause of 20 ms before each, in which CPUs and daemons" +
				" fall asleep"},
		{Name: "rtt-sparse-busy", Title: "round trip, 50 per second, busy CPUs",
			Headlines: []string{"p50"}, Cost: busyCost,
			Description: "round trips with a pause of 20 ms before each, beside " + busyThreads},
		{Name: "rtt-bulk", Title: "round trip under bulk load", Headlines: rtt, Cost: bulkCost,
			Description: "round trips beside one TCP stream between the same pods"},
		{Name: "rtt-busy", Title: "round trip, busy CPUs", Headlines: rtt, Cost: busyCost,
			Description: "round trips beside " + busyThreads},
		{Name: "connect", Title: "TCP connections", Headlines: connections, Cost: wakeCost,
			Description: "TCP connections, four at a time: connect, one byte each way, reset"},
		{Name: "connect-busy", Title: "TCP connections, busy CPUs",
			Headlines: connections, Cost: busyCost,
			Description: "TCP connections beside " + busyThreads},
		{Name: "fan-out-64", Title: "UDP 64 B to 100 nodes", Headlines: rate, Cost: fanCost,
			Description: "64-byte datagrams to 100 nodes in turn"},
		{Name: "fan-out-1400", Title: "UDP 1,400 B to 100 nodes", Headlines: rate, Cost: fanCost,
			Description: "1,400-byte datagrams to 100 nodes in turn"},
	}
}

// headlineTitle returns the title of a row or chart of a case, without the unit. The titles of
// rates need no metric.
func (c Case) headlineTitle(m Metric) string {
	switch m.Name {
	case "throughput", "rate", "connections":
		return c.Title
	}
	return c.Title + " " + m.Title
}
