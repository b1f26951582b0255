package agent

import (
	"testing"

	"weft/cmd/weftd/config"
)

func TestLimitsSizes(t *testing.T) {
	const mib = 1 << 20
	auto := config.Engine{Spin: true}
	tests := []struct {
		name   string
		limits limits
		engine config.Engine
		cpus   int
		want   limits // sizes only
	}{
		{"none", limits{Descriptors: 1 << 20}, auto, 64,
			limits{Connections: 32, Workers: 64, Spin: true}},
		{"more CPUs than queues", limits{Descriptors: 1 << 20}, auto, 512,
			limits{Connections: 32, Workers: 127, Spin: true}},
		{"flannel's 50 MiB", limits{Memory: 50 * mib, Descriptors: 1 << 20}, auto, 64,
			limits{Connections: 32, Workers: 3, Spin: true,
				GoMemory: 50 * mib / 100 * 80, SocketBuffer: 436906}},
		{"1 GiB", limits{Memory: 1024 * mib, Descriptors: 1 << 20}, auto, 64,
			limits{Connections: 32, Workers: 64, Spin: true,
				GoMemory: 1024 * mib / 100 * 80, SocketBuffer: 419430}},
		{"1 GiB, two CPUs", limits{Memory: 1024 * mib, Descriptors: 1 << 20}, auto, 2,
			limits{Connections: 32, Workers: 2, Spin: true, GoMemory: 1024 * mib / 100 * 80}},
		{"too little memory", limits{Memory: 10 * mib, Descriptors: 1 << 20}, auto, 64,
			limits{Connections: 32, Workers: 1, Spin: true,
				GoMemory: 10 * mib / 100 * 80, SocketBuffer: 262142}},
		{"flannel's 100m", limits{CPUs: 0.1, Descriptors: 1 << 20}, auto, 2,
			limits{Connections: 32, Workers: 1}},
		{"quota below the workers", limits{CPUs: 3.5, Descriptors: 1 << 20}, auto, 4,
			limits{Connections: 32, Workers: 4}},
		{"quota above the workers", limits{CPUs: 3, Descriptors: 1 << 20}, config.Engine{Workers: 2, Spin: true}, 3,
			limits{Connections: 32, Workers: 2, Spin: true}},
		{"few descriptors", limits{Descriptors: 64}, auto, 64,
			limits{Connections: 8, Workers: 5, Spin: true}},
		{"too few descriptors", limits{Descriptors: 20}, auto, 64,
			limits{Connections: 4, Workers: 1, Spin: true}},
		{"--workers", limits{Memory: 50 * mib, Descriptors: 1 << 20}, config.Engine{Workers: 16}, 64,
			limits{Connections: 32, Workers: 16, GoMemory: 50 * mib / 100 * 80, SocketBuffer: minSocketBuffer}},
	}
	for _, test := range tests {
		got := test.limits.withSizes(test.engine, test.cpus)
		test.want.Memory, test.want.CPUs = test.limits.Memory, test.limits.CPUs
		test.want.Descriptors = test.limits.Descriptors
		if test.want.Memory == 0 && got.GoMemory != 0 {
			t.Errorf("%s: a limit of Go's memory without a limit", test.name)
		}
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}
