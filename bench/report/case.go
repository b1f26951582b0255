package report

// Case describes a workload.
type Case struct {
	Name, Title string
	// Description completes "the workload is".
	Description string
	// Headlines are the metrics to compare targets by, the most important one first.
	Headlines []string
	// Cost explains why a userspace tunnel is slower than a kernel tunnel in this workload.
	Cost string
}

// Costs of a userspace tunnel, by the kind of workload.
const (
	copyCost = "a TUN device and a UDP socket on each node make the kernel copy each byte four more times, and weftd copies it" +
		" twice; `bare` makes the kernel's copies only"
	wakeCost = "a packet that arrives alone wakes a daemon on each node, where a kernel tunnel continues in the same interrupt"
	busyCost = "weftd's workers are threads that wait for a CPU, where a kernel tunnel works in interrupts"
	bulkCost = "flows that share a worker with a bulk flow wait behind its packets: one flow in as many as there are workers"
	fanCost  = "the daemons of all nodes share the CPUs of this machine"
)

// Cases lists the workloads in the order of the reports.
func Cases() []Case {
	throughput, rate, connections := []string{"throughput"}, []string{"rate"}, []string{"connections"}
	rtt := []string{"p50", "p99"}
	return []Case{
		{"tcp-1", "TCP, 1 stream", "one TCP stream", throughput, copyCost},
		{"tcp-4", "TCP, 4 streams", "four TCP streams at the same time, added up", throughput,
			copyCost},
		{"tcp-16", "TCP, 16 streams", "sixteen TCP streams at the same time, added up", throughput,
			copyCost},
		{"tcp-busy", "TCP, 1 stream, busy CPUs",
			"one TCP stream beside two threads per CPU that use all the time they get",
			throughput, copyCost},
		{"udp-64-1", "UDP 64 B, 1 flow", "64-byte datagrams of one flow", rate, wakeCost},
		{"udp-64-256", "UDP 64 B, 256 flows", "64-byte datagrams of 256 flows in turn", rate,
			wakeCost},
		{"udp-64-runs", "UDP 64 B, 256 flows, 32 in a row",
			"64-byte datagrams of 256 flows, 32 of a flow before the next one",
			rate, wakeCost},
		{"udp-1400-1", "UDP 1,400 B, 1 flow", "1,400-byte datagrams of one flow", rate, copyCost},
		{"udp-1400-256", "UDP 1,400 B, 256 flows", "1,400-byte datagrams of 256 flows in turn",
			rate, copyCost},
		{"rtt-idle", "round trip, idle", "64-byte datagrams and their answers, the next one sent when the answer arrives", rtt, wakeCost},
		{"rtt-sparse", "round trip, 50 per second",
			"round trips with a pause of 20 ms before each, in which CPUs and daemons fall asleep",
			[]string{"p50", "daemon_cpu_per_mpkt"}, wakeCost},
		{"rtt-bulk", "round trip under bulk load",
			"round trips beside one TCP stream between the same pods", rtt, bulkCost},
		{"rtt-busy", "round trip, busy CPUs", "round trips beside two threads per CPU that use all the time they get", rtt, busyCost},
		{"connect", "TCP connections", "TCP connections, four at a time: connect, one byte each way, reset", connections, wakeCost},
		{"connect-busy", "TCP connections, busy CPUs",
			"TCP connections beside two threads per CPU that use all the time they get",
			connections, busyCost},
		{"fan-out-64", "UDP 64 B to 100 nodes", "64-byte datagrams to 100 nodes in turn", rate,
			fanCost},
		{"fan-out-1400", "UDP 1,400 B to 100 nodes", "1,400-byte datagrams to 100 nodes in turn",
			rate, fanCost},
	}
}

// headlineTitle returns the title of a row or chart of a case, without the unit.
func (c Case) headlineTitle(m Metric) string {
	if len(c.Headlines) == 1 {
		return c.Title
	}
	return c.Title + " " + m.Title
}
