package bench

import (
	"bufio"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Facts say on what machine a result was measured.
type Facts struct {
	Time       time.Time `json:"time"`
	Version    string    `json:"version"`
	Commit     string    `json:"commit"`
	Kernel     string    `json:"kernel"`
	Arch       string    `json:"arch"`
	CPU        string    `json:"cpu"`
	CPUs       int       `json:"cpus"`
	MemoryMiB  int64     `json:"memory_mib"`
	Governor   string    `json:"governor,omitempty"`
	Hypervisor bool      `json:"hypervisor"`
	Rights     string    `json:"rights,omitempty"`     // "root" or "limited", which is less, as without root or in a container
	Congestion string    `json:"congestion,omitempty"` // TCP's congestion control in a new network namespace
	Load       string    `json:"load"`                 // averages at the start, 1, 5 and 15 minutes
	Go         string    `json:"go"`
	Args       []string  `json:"args"`
	// Underlay lists the offload features that are on at a node's underlay device, by mode.
	Underlay map[string][]string `json:"underlay"`
}

// GatherFacts asks the kernel; what it does not tell stays empty.
func GatherFacts(version, commit string, args []string) Facts {
	f := Facts{Time: time.Now().UTC().Truncate(time.Second), Version: version, Commit: commit, Arch: runtime.GOARCH,
		CPUs: runtime.NumCPU(), Go: runtime.Version(), Args: args, Underlay: map[string][]string{}}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err == nil {
		f.MemoryMiB = int64(uint64(s.Totalram) * uint64(s.Unit) >> 20)
	}
	f.Rights = rights()
	f.CPU, f.Hypervisor = cpuModel("/proc/cpuinfo")
	f.Governor = firstLine("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
	f.Congestion = firstLine("/proc/sys/net/ipv4/tcp_congestion_control")
	if load := strings.Fields(firstLine("/proc/loadavg")); len(load) >= 3 {
		f.Load = strings.Join(load[:3], " ")
	}
	return f
}

// rights are "root" for a process in the first user namespace, which always has the same number, with every capability. The
// kernel refuses others the large buffers and high priorities that our daemon asks for.
func rights() string {
	const firstNamespace = "user:[4026531837]" // PROC_USER_INIT_INO of include/linux/proc_ns.h
	var have [2]unix.CapUserData
	namespace, err := os.Readlink("/proc/self/ns/user")
	last, lastErr := strconv.Atoi(firstLine("/proc/sys/kernel/cap_last_cap"))
	capErr := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0])
	if errors.Join(err, lastErr, capErr) != nil {
		return ""
	}
	if namespace == firstNamespace && uint64(have[1].Effective)<<32|uint64(have[0].Effective) == 1<<(last+1)-1 {
		return "root"
	}
	return "limited"
}

// cpuModel reads the model and whether the CPU says that it is a virtual one.
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
