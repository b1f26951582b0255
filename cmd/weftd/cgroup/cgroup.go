// Package cgroup reads the limits of the control groups (cgroups(7)) of this process.
//
// Libraries read either the memory limit or the CPU quota, each with a parser of /proc/self/cgroup
// and mountinfo of its own; this package needs one for both.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Limits are the limits of a process: of its cgroup or of one above, whichever is lower.
type Limits struct {
	Memory uint64  // bytes; 0: unlimited
	CPUs   float64 // CPU time per time; 0: unlimited
}

// Read returns the limits of this process. With an error, those that could be read.
func Read() (Limits, error) { return read("/") }

// read reads the files below root.
func read(root string) (Limits, error) {
	h, err := readHierarchies(root)
	if err != nil {
		return Limits{}, fmt.Errorf("read cgroup limits: %w", err)
	}
	var l Limits
	var errs []error
	for _, dir := range h.dirs("memory") {
		for _, file := range []string{"memory.max", "memory.high", "memory.limit_in_bytes"} {
			limit, err := memoryLimit(filepath.Join(dir, file))
			errs = append(errs, err)
			if limit > 0 && (l.Memory == 0 || limit < l.Memory) {
				l.Memory = limit
			}
		}
	}
	for _, dir := range h.dirs("cpu") {
		quota, err := cpuQuota(dir)
		errs = append(errs, err)
		if quota > 0 && (l.CPUs == 0 || quota < l.CPUs) {
			l.CPUs = quota
		}
	}
	if err := errors.Join(errs...); err != nil {
		return l, fmt.Errorf("read cgroup limits: %w", err)
	}
	return l, nil
}

// hierarchies are the cgroups of the process and the mounted file systems that show them.
type hierarchies struct {
	root   string
	groups []group
	mounts []mount
}

// group is a line of /proc/self/cgroup, such as "4:cpu,cpuacct:/system.slice" or, of version 2,
// "0::/system.slice".
type group struct {
	controllers []string // none: version 2
	path        string
}

// mount is a line of /proc/self/mountinfo for a cgroup file system.
type mount struct {
	root, point string   // the cgroup at the mount point, and that point
	controllers []string // among other options; nil: version 2
}

func readHierarchies(root string) (hierarchies, error) {
	h := hierarchies{root: root}
	err := eachLine(filepath.Join(root, "proc/self/cgroup"), func(line string) {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 {
			g := group{path: f[2]}
			if f[1] != "" {
				g.controllers = strings.Split(f[1], ",")
			}
			h.groups = append(h.groups, g)
		}
	})
	if err != nil {
		return h, err
	}
	err = eachLine(filepath.Join(root, "proc/self/mountinfo"), func(line string) {
		before, after, _ := strings.Cut(line, " - ")
		f, source := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(source) < 3 {
			return
		}
		m := mount{root: unescape(f[3]), point: unescape(f[4])}
		switch source[0] {
		case "cgroup2":
		case "cgroup":
			m.controllers = strings.Split(source[2], ",")
		default:
			return
		}
		h.mounts = append(h.mounts, m)
	})
	return h, err
}

// eachLine calls f for each line of a file. Without /proc or cgroups there is no line.
func eachLine(name string, f func(string)) error {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		f(strings.TrimSuffix(line, "\n"))
	}
	return err
}

// unescape decodes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// dirs returns the directories of the process's cgroup and those above that a controller is in.
// A controller belongs to one version at a time, so files of the other are absent.
func (h hierarchies) dirs(controller string) []string {
	var dirs []string
	for _, g := range h.groups {
		for _, m := range h.mounts {
			v2 := g.controllers == nil && m.controllers == nil
			v1 := slices.Contains(g.controllers, controller) &&
				slices.Contains(m.controllers, controller)
			if !v1 && !v2 {
				continue
			}
			for dir := m.relative(g.path); ; dir = path.Dir(dir) {
				dirs = append(dirs, filepath.Join(h.root, m.point, dir))
				if dir == "/" {
					break
				}
			}
		}
	}
	return dirs
}

// relative returns the path of a cgroup below the mount point. In a container with a view of its
// own cgroup only, that may be the mount point itself while the path is the host's.
func (m mount) relative(cgroup string) string {
	rest, below := strings.CutPrefix(cgroup, strings.TrimSuffix(m.root, "/"))
	if !below || rest != "" && rest[0] != '/' || strings.HasPrefix(cgroup, "/..") {
		return "/"
	}
	return path.Join("/", rest)
}

// memoryLimit reads a limit in bytes: 0 if the file is absent or sets none.
func memoryLimit(file string) (uint64, error) {
	f, err := fields(file)
	if len(f) == 0 || f[0] == "max" || f[0] == "-1" {
		return 0, err
	}
	limit, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	if limit >= math.MaxInt64/4096*4096 { // version 1: PAGE_COUNTER_MAX pages
		return 0, nil
	}
	return max(limit, 1), nil
}

// cpuQuota reads the CPU time per time of a cgroup, of either version: 0 if it sets none.
func cpuQuota(dir string) (float64, error) {
	f, err := fields(filepath.Join(dir, "cpu.max"))
	if err != nil {
		return 0, err
	}
	for _, v1 := range []string{"cpu.cfs_quota_us", "cpu.cfs_period_us"} {
		if len(f) >= 2 {
			break
		}
		more, err := fields(filepath.Join(dir, v1))
		if err != nil {
			return 0, err
		}
		f = append(f, more...)
	}
	if len(f) < 2 || f[0] == "max" || f[0] == "-1" {
		return 0, nil
	}
	quota, err := strconv.ParseFloat(f[0], 64)
	period, periodErr := strconv.ParseFloat(f[1], 64)
	if err = errors.Join(err, periodErr); err != nil || period <= 0 {
		return 0, fmt.Errorf("%s: invalid CPU quota %q per %q: %w", dir, f[0], f[1], err)
	}
	return quota / period, nil
}

// fields returns the fields of a file, none if it is absent.
func fields(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(text)), err
}
