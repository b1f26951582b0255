package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// stageVariable marks the second start of the program, the one inside the namespaces.
	stageVariable = "WEFT_LAB_STAGE"
	stageInside   = "inside"
	// stageInsideUser is stageInside within a new user namespace.
	stageInsideUser = "inside-user"

	// reportFD is the inherited pipe on which the inner process reports whether its namespaces
	// could be set up.
	reportFD = 3
	ready    = "ready"

	// labDir exists only in a lab's own /run; it holds the nodes' /run directories.
	labDir = "/run/weft-lab"
	// hostViewFile holds the PID of the inner process on the host, and its stage.
	hostViewFile = "/run/weft-lab-outside"
	// netnsDir is the directory in which ip-netns(8) looks for named namespaces.
	netnsDir = "/run/netns"

	// signalStatus is added to a signal's number to form the exit status, as shells do.
	signalStatus = 128
)

// NamespaceError reports that the host does not allow the namespaces, and how its owner can allow
// them.
type NamespaceError struct {
	Cause  error
	Remedy string
}

// Error names the cause and the remedy.
func (e *NamespaceError) Error() string {
	return fmt.Sprintf("host does not allow the lab's namespaces: %v (%s)", e.Cause, e.Remedy)
}

// Unwrap returns the cause.
func (e *NamespaceError) Unwrap() error { return e.Cause }

// Inside reports whether this process runs in the namespaces that [Run] or [Main] created.
func Inside() bool {
	_, err := os.Stat(labDir)
	return err == nil && os.Getpid() == 1
}

// HostView identifies the lab on the host, for an operator who wants to enter it.
type HostView struct {
	// PID is the process ID of the lab's first process on the host.
	PID string
	// UserNamespace reports whether the lab has a user namespace of its own.
	UserNamespace bool
}

// ReadHostView returns the host's view of the lab; it must be called inside.
func ReadHostView() (HostView, error) {
	b, err := os.ReadFile(hostViewFile)
	if err != nil {
		return HostView{}, fmt.Errorf("read the host's view of the lab: %w", err)
	}
	pid, user, _ := strings.Cut(string(b), " ")
	return HostView{PID: pid, UserNamespace: user == stageInsideUser}, nil
}

// Run starts the program again inside namespaces of its own, calls body there, and returns body's
// exit status. Call it first in main: outside the namespaces, body never runs. A [NamespaceError]
// means that the host forbids them; then Run has had no effect.
func Run(body func() int) (status int, err error) {
	if stage := os.Getenv(stageVariable); stage == stageInside || stage == stageInsideUser {
		return inner(stage, body), nil
	}
	return outer()
}

// inner sets up the new namespaces, reports to the outer process and runs body.
func inner(stage string, body func() int) int {
	report := os.NewFile(reportFD, "report")
	syscall.CloseOnExec(reportFD)
	// Programs started by body may build labs of their own.
	err := os.Unsetenv(stageVariable)
	if err == nil {
		err = setUpNamespaces(stage)
	}
	message := ready
	if err != nil {
		message = err.Error()
	}
	_, werr := io.WriteString(report, message)
	if err = errors.Join(err, werr, report.Close()); err != nil {
		return 1
	}
	return body()
}

// outer starts the program again and waits for it. Root needs no user namespace, which some hosts
// forbid; root without CAP_SYS_ADMIN (in a container) falls back to one.
func outer() (int, error) {
	// PR_SET_PDEATHSIG kills the inner process when the thread that started it exits, so keep this
	// thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Getuid() == 0 {
		status, err := start(0)
		if !errors.Is(err, unix.EPERM) {
			return status, namespaceError(err)
		}
	}
	status, err := start(unix.CLONE_NEWUSER)
	return status, namespaceError(err)
}

// namespaceError wraps an error of start; it returns nil for nil.
func namespaceError(err error) error {
	if err == nil {
		return nil
	}
	return &NamespaceError{Cause: err, Remedy: remedy()}
}

// start runs the program again in new namespaces; extra holds more clone flags. The error concerns
// only the namespaces. If it is nil, status is the exit status.
func start(extra uintptr) (status int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find own executable: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("create report pipe: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	stage := stageInside
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC |
			extra,
		Pdeathsig: syscall.SIGKILL,
	}
	if extra&unix.CLONE_NEWUSER != 0 {
		stage = stageInsideUser
		uid := syscall.SysProcIDMap{ContainerID: 0, HostID: os.Getuid(), Size: 1}
		gid := syscall.SysProcIDMap{ContainerID: 0, HostID: os.Getgid(), Size: 1}
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{uid}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{gid}
	}
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w", err)
	}
	message, err := io.ReadAll(r)
	if err != nil || string(message) != ready {
		return 0, errors.Join(fmt.Errorf("set up new namespaces: %s", message), err,
			ignoreExit(cmd.Wait()))
	}
	return wait(cmd, signals)
}

// wait forwards signals until the inner process exits, and returns its exit status.
func wait(cmd *exec.Cmd, signals <-chan os.Signal) (int, error) {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// It may just have exited; done reports that next.
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("forward signal %v: %w", s, err)
			}
		case err := <-done:
			if ignoreExit(err) != nil {
				return 0, err
			}
			ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if ok && ws.Signaled() {
				return signalStatus + int(ws.Signal()), nil
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

// ignoreExit returns nil for an error that only reports a non-zero exit status.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// setUpNamespaces makes the mounts private, mounts an empty /run, and mounts /proc and /sys that
// show the new namespaces.
func setUpNamespaces(stage string) error {
	// The old /proc still shows the host's process IDs.
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("find own process ID: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	err = unix.Mount("lab", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	if err != nil {
		return fmt.Errorf("mount own /run: %w", err)
	}
	for _, dir := range []string{netnsDir, labDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create directory in /run: %w", err)
		}
	}
	if err := os.WriteFile(hostViewFile, []byte(pid+" "+stage), 0o644); err != nil {
		return err
	}
	for _, fs := range []string{"proc", "sysfs"} {
		if err := mountPseudoFS(fs); err != nil && !isMountHidden(err) {
			return err
		}
	}
	if err := mountBPF(); err != nil {
		return err
	}
	return setLoopbackUp()
}

// bpfDir is the lab's BPF file system under a name that a node's mount of /sys does not hide.
const bpfDir = "/run/weft-bpf"

// mountBPF mounts a BPF file system for programs that outlast their process. Without the right to
// do so, the lab has none.
func mountBPF() error {
	if err := os.Mkdir(bpfDir, 0o700); err != nil {
		return err
	}
	err := unix.Mount("bpf", bpfDir, "bpf", 0, "mode=0700")
	if isMountHidden(err) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", bpfDir, err)
	}
	return bindBPF()
}

// bindBPF shows the lab's BPF file system at its usual place.
func bindBPF() error {
	err := unix.Mount(bpfDir, "/sys/fs/bpf", "", unix.MS_BIND, "")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount BPF file system: %w", err)
	}
	return nil
}

// isMountHidden reports whether mounting proc or sysfs failed because the host hides parts of its
// own: in a container the kernel then refuses new mounts (mount_too_revealing in fs/namespace.c).
// The old mounts serve nearly as well, but show the processes and devices outside.
func isMountHidden(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// mountPseudoFS mounts proc or sysfs at its usual place, for the calling thread's namespaces.
func mountPseudoFS(fs string) error {
	target := map[string]string{"proc": "/proc", "sysfs": "/sys"}[fs]
	err := unix.Mount(fs, target, fs, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// remedy names the setting by which this host forbids namespaces, if it can be found.
func remedy() string {
	for _, s := range []struct{ file, forbids, remedy string }{
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
			"sysctl kernel.apparmor_restrict_unprivileged_userns=0 allows them"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0",
			"sysctl kernel.unprivileged_userns_clone=1 allows them"},
		{"/proc/sys/user/max_user_namespaces", "0",
			"sysctl user.max_user_namespaces=10000 allows them"},
		{"/proc/sys/user/max_net_namespaces", "0",
			"sysctl user.max_net_namespaces=10000 allows them"},
	} {
		value, err := os.ReadFile(s.file)
		if err == nil && strings.TrimSpace(string(value)) == s.forbids {
			return s.remedy + "; or run it with sudo"
		}
	}
	if os.Getuid() == 0 {
		return "root without CAP_SYS_ADMIN, as in a container: run it with --privileged, " +
			"or with --cap-add SYS_ADMIN and --security-opt seccomp=unconfined"
	}
	return "run it with sudo"
}
