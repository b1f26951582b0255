package bench

import (
	"math"
	"testing"
	"time"

	"weft/bench/report"
	"weft/deploy/lab"
)

func TestKernelCounters(t *testing.T) {
	d, err := parseUDPCounters([]byte("Ip: a b\nIp: 1 2\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 11 2 3 14 5\nUdpLite: InDatagrams\nUdpLite: 9\n"))
	if err != nil || d != (udpCounters{11, 14, 5}) {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := parseUDPCounters([]byte("Tcp: a\nTcp: 1\n")); err == nil {
		t.Error("no error without UDP counters")
	}
	cpu, err := parseMachineCPU([]byte("cpu  100 1 10 5000 50 2 3 4 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if want := 1160 * time.Millisecond; err != nil || cpu != want {
		t.Errorf("%v, %v, want %v", cpu, err, want)
	}
	if _, err := parseMachineCPU([]byte("cpu 1 2")); err == nil {
		t.Error("no error for a short line")
	}
}

func TestUsageMetrics(t *testing.T) {
	o := &overlay{daemons: make([]*lab.Process, 2)}
	at := func(cpu time.Duration, packets, calls float64) usage {
		u := usage{cpu: cpuTime{daemons: cpu, machine: 2 * cpu}, nodes: make([]nodeUsage, 2)}
		u.nodes[0] = nodeUsage{out: packets, udp: udpCounters{out: calls},
			tunnel: lab.Counters{TxPackets: uint64(calls)}}
		u.nodes[1] = nodeUsage{in: packets, udp: udpCounters{in: calls, dropped: 1},
			tunnel: lab.Counters{RxPackets: uint64(calls)}, dropped: packets / 100}
		return u
	}
	got := o.usageMetrics(at(time.Second, 1000, 100), at(3*time.Second, 5000, 300), delivered{4e9, 2e6})
	wanted := report.Sample{"daemon_cpu_per_gb": 0.5, "machine_cpu_per_gb": 1, "daemon_cpu_per_mpkt": 1,
		"packets_per_send":    20,
		"packets_per_receive": 20, "packets_per_tun_read": 20, "packets_per_tun_write": 20, "daemon_drops": 40, "socket_drops": 0}
	for name, want := range wanted {
		if got, ok := got[name]; !ok || math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if _, ok := (&overlay{}).usageMetrics(at(0, 0, 0), at(0, 0, 0), delivered{bytes: 1e9})["daemon_cpu_per_gb"]; ok {
		t.Error("a target without daemons has daemons' CPU time")
	}
}
