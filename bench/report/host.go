package report

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host describes the machine, the kernel and the build that produced a result.
type Host struct {
	Time      time.Time `json:"time"`
	Version   string    `json:"version"`
	Commit    string    `json:"commit"`
	Kernel    string    `json:"kernel"`
	Arch      string    `json:"arch"`
	CPU       string    `json:"cpu"`
	CPUs      int       `json:"cpus"`
	MemoryMiB int64     `json:"memory_mib"`
	Governor  string    `json:"governor,omitempty"`
	// Idle is the cpuidle driver and governor, and how long a guest polls before it halts a CPU.
	Idle       string `json:"idle,omitempty"`
	Hypervisor bool   `json:"hypervisor"`
	// Privileges is "root", or "limited" for a process without some capabilities, as in a
	// container.
	Privileges string   `json:"privileges,omitempty"`
	Congestion string   `json:"congestion,omitempty"` // TCP congestion control in a new network namespace
	Load       string   `json:"load"`                 // averages at the start over 1, 5 and 15 minutes
	Go         string   `json:"go"`
	Args       []string `json:"args"`
	// Offloads lists the offload features that are on at a node's underlay device, by underlay
	// mode.
	Offloads map[string][]string `json:"underlay_offloads"`
}

// ReadHost reads the host's properties from the kernel. A property that the kernel does not offer
// stays empty.
func ReadHost(version, commit string, args []string) Host {
	h := Host{Time: time.Now().UTC().Truncate(time.Second), Version: version, Commit: commit,
		Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(), Args: args,
		Offloads: map[string][]string{}}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err == nil {
		h.MemoryMiB = int64(uint64(s.Totalram) * uint64(s.Unit) >> 20)
	}
	h.Privileges = privileges()
	h.CPU, h.Hypervisor = cpuModel("/proc/cpuinfo")
	h.Governor = firstLine("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
	h.Idle = idlePolicy()
	h.Congestion = firstLine("/proc/sys/net/ipv4/tcp_congestion_control")
	if load := strings.Fields(firstLine("/proc/loadavg")); len(load) >= 3 {
		h.Load = strings.Join(load[:3], " ")
	}
	return h
}

// property is a line of the host's description.
type property struct{ Name, Value string }

// properties returns the host's description for the pages.
func (h Host) properties() []property {
	optional := func(format, value string) string {
		if value == "" {
			return ""
		}
		return fmt.Sprintf(format, value)
	}
	virtual := ""
	if h.Hypervisor {
		virtual = ", virtual"
	}
	return []property{
		{"measured", h.Time.Format("2006-01-02 15:04") + " UTC"},
		{"weft", h.Version + " " + h.Commit + ", " + h.Go},
		{"command", "weft " + strings.Join(h.Args, " ")},
		{"kernel", "Linux " + h.Kernel + ", " + h.Arch +
			optional(", TCP congestion control %s", h.Congestion)},
		{"CPU", fmt.Sprintf("%d × %s%s%s", h.CPUs, h.CPU, virtual,
			optional(", governor %s", h.Governor))},
		{"idle CPUs", h.Idle},
		{"memory", fmt.Sprintf("%d MiB", h.MemoryMiB)},
		{"load at the start", h.Load},
		{"privileges", h.Privileges},
	}
}

// idlePolicy describes how idle CPUs sleep, which decides the time to wake them.
func idlePolicy() string {
	const cpuidle = "/sys/devices/system/cpu/cpuidle/"
	driver := firstLine(cpuidle + "current_driver")
	if driver == "" || driver == "none" {
		return ""
	}
	text := "driver " + driver + ", governor " + firstLine(cpuidle+"current_governor")
	if ns := firstLine("/sys/module/haltpoll/parameters/guest_halt_poll_ns"); ns != "" {
		text += ", guest_halt_poll_ns " + ns
	}
	return text
}

// privileges returns "root" for a process in the initial user namespace with every capability.
// Other processes cannot get the large socket buffers and high priorities that weftd asks for.
func privileges() string {
	const initialNamespace = "user:[4026531837]" // PROC_USER_INIT_INO of include/linux/proc_ns.h
	var have [2]unix.CapUserData
	namespace, err := os.Readlink("/proc/self/ns/user")
	last, lastErr := strconv.Atoi(firstLine("/proc/sys/kernel/cap_last_cap"))
	capErr := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0])
	if errors.Join(err, lastErr, capErr) != nil {
		return ""
	}
	if namespace == initialNamespace && uint64(have[1].Effective)<<32|uint64(have[0].Effective) == 1<<(last+1)-1 {
		return "root"
	}
	return "limited"
}

// cpuModel reads the CPU model and whether the CPU is a virtual one.
func cpuModel(path string) (model string, virtual bool) {
	file, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(key) {
		case "model name", "Model":
			model = strings.TrimSpace(value)
		case "flags":
			virtual = strings.Contains(value+" ", " hypervisor ")
		}
	}
	return model, virtual
}

func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}
