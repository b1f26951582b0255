package agent

import (
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"weft/cmd/control"
	"weft/cmd/weftd/cgroup"
	"weft/cmd/weftd/config"
	"weft/dataplane"
)

// limits are the resources that this process may use and the sizes that follow from them. They are
// part of the status.
type limits control.Limits

const (
	// gcPercent is the growth of the heap between two garbage collections after the start. From
	// then on the daemon allocates little: a few MB per second while 10,000 nodes change a hundred
	// times per second, for which half the default costs less than one per cent of a CPU.
	gcPercent = 50
	// goShare is the share of the memory limit for Go's heap and stacks, in percent. Of flannel's
	// 50 MiB that leaves 10 for the sockets, the pages of the binary and the kernel's own needs.
	goShare = 80
	// daemonMemory is the part of GoMemory for all but the workers: a cluster of some thousand
	// nodes.
	daemonMemory = 20 << 20
	// socketShare is the share of the memory limit for socket buffers, in percent.
	socketShare = 10
	// bufferOverhead is the kernel's memory per byte of buffer: it doubles SO_RCVBUF and SO_SNDBUF
	// (socket(7)).
	bufferOverhead = 2
	// minSocketBuffer is about the kernel's default, net.core.rmem_default.
	minSocketBuffer = 208 << 10

	// maxConnections is enough for probes, several scrapers and operators.
	maxConnections = 32
	minConnections = 4
	// daemonDescriptors is the number of descriptors for all but workers and health server:
	// netlink, the lease store, logs, files while read.
	daemonDescriptors = 24
)

// readLimits reads the limits of this process and logs those that it cannot read.
func readLimits(e config.Engine, log *slog.Logger) limits {
	l := limits{Descriptors: math.MaxInt32}
	group, err := cgroup.Read()
	if err != nil {
		log.Warn("cannot read all limits of the control group", "err", err)
	}
	l.Memory, l.CPUs = group.Memory, group.CPUs
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("cannot read the limit of descriptors", "err", err)
	} else {
		l.Descriptors = files.Cur
	}
	return l.withSizes(e, runtime.GOMAXPROCS(0))
}

// withSizes computes the sizes for the limits, the flags and the number of CPUs.
func (l limits) withSizes(e config.Engine, cpus int) limits {
	l.Connections = int(min(max(l.Descriptors/8, minConnections), maxConnections))
	if l.Memory > 0 {
		l.GoMemory = int64(l.Memory / 100 * goShare)
	}
	if l.Workers = e.Workers; l.Workers == 0 {
		l.Workers = l.maxWorkers(cpus)
	}
	if l.Memory > 0 {
		perSocket := int(l.Memory/100*socketShare) / (2 * bufferOverhead * l.Workers)
		if perSocket < dataplane.DefaultBuffer {
			l.SocketBuffer = max(perSocket, minSocketBuffer)
		}
	}
	// A worker that busy-polls uses up a quota in a part of each period and then stands still, with
	// all others, for the rest of it.
	l.Spin = e.Spin && (l.CPUs == 0 || l.CPUs >= float64(l.Workers)+1)
	return l
}

// maxWorkers returns the number of workers that CPUs, memory and descriptors suffice for, at least
// one.
func (l limits) maxWorkers(cpus int) int {
	n := min(cpus, dataplane.MaxWorkers)
	if l.CPUs > 0 {
		n = min(n, int(math.Ceil(l.CPUs)))
	}
	if l.Memory > 0 {
		n = min(n, int(l.GoMemory-daemonMemory)/dataplane.WorkerMemory)
	}
	free := int(min(l.Descriptors, math.MaxInt32)) - daemonDescriptors - l.Connections
	return max(1, min(n, free/dataplane.WorkerDescriptors))
}

// apply sets the memory limit of Go's runtime, unless the environment has done so, and logs the
// limits that change the daemon's behaviour.
func (l limits) apply(log *slog.Logger) {
	if l.GoMemory > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(l.GoMemory)
	}
	if l.Memory > 0 || l.CPUs > 0 {
		log.Info("limits of the control group", "memory", l.Memory, "cpus", l.CPUs,
			"workers", l.Workers, "spin", l.Spin)
	}
	need := uint64(daemonMemory+l.Workers*dataplane.WorkerMemory) / goShare * 100
	if l.Memory > 0 && l.Memory < need {
		log.Warn("memory limit is low, the daemon may be killed", "limit", l.Memory, "want", need)
	}
}

// shrink returns the memory of the start, several times what the daemon then keeps, and lets the
// heap grow less from now on, unless the environment says how much.
func shrink() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	debug.FreeOSMemory()
}
