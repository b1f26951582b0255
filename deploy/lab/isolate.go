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
	// stageVariable tells the second start of the program that it is the one inside.
	stageVariable = "WEFT_LAB_STAGE"
	stageInside   = "inside"
	// stageInsideUser is stageInside in a user namespace of its own.
	stageInsideUser = "inside-user"

	// reportFD is the inherited pipe by which the inner process says whether its namespaces could be furnished.
	reportFD = 3
	ready    = "ready"

	// markFolder exists only in a lab's own /run.
	markFolder = "/run/weft-lab"
	// outsideFile holds the number that the inner process has outside, and its stage.
	outsideFile = "/run/weft-lab-outside"
	// netnsFolder is where `ip netns` looks for named namespaces.
	netnsFolder = "/run/netns"

	// signalStatus is what a shell adds to a signal's number to make an exit status of it.
	signalStatus = 128
)

// NamespaceError says that this host does not let us have the namespaces, and what its owner can do about it.
type NamespaceError struct {
	Cause  error
	Remedy string
}

// Error names the cause and the remedy.
func (e *NamespaceError) Error() string {
	return fmt.Sprintf("this host does not allow the namespaces of the lab: %v (%s)", e.Cause, e.Remedy)
}

// Unwrap returns the cause.
func (e *NamespaceError) Unwrap() error { return e.Cause }

// Inside reports whether this process lives in the namespaces that [Run] or [Main] made.
func Inside() bool {
	_, err := os.Stat(markFolder)
	return err == nil && os.Getpid() == 1
}

// HostView is what an operator on the host must know to enter the lab.
type HostView struct {
	// PID is the number that the lab's first process has on the host.
	PID string
	// UserNamespace says that the lab has a user namespace of its own.
	UserNamespace bool
}

// ReadHostView tells a process inside how the host sees the lab.
func ReadHostView() (HostView, error) {
	b, err := os.ReadFile(outsideFile)
	if err != nil {
		return HostView{}, fmt.Errorf("find out how the host sees the lab: %w", err)
	}
	pid, user, _ := strings.Cut(string(b), " ")
	return HostView{PID: pid, UserNamespace: user == stageInsideUser}, nil
}

// Run starts the program again inside namespaces of its own, where it calls body, and returns body's exit status. It is
// to be called first thing in main: outside, body never runs. A [NamespaceError] means that the host forbids it; nothing
// has been done then.
func Run(body func() int) (status int, err error) {
	if stage := os.Getenv(stageVariable); stage == stageInside || stage == stageInsideUser {
		return inner(stage, body), nil
	}
	return outer()
}

// inner furnishes the new namespaces, reports to the outer process and runs body.
func inner(stage string, body func() int) int {
	report := os.NewFile(reportFD, "report")
	syscall.CloseOnExec(reportFD)
	// Programs that are started from here may build labs of their own.
	err := os.Unsetenv(stageVariable)
	if err == nil {
		err = furnish(stage)
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

// outer starts the program again and waits for it. As root it does without a user namespace, which also works where
// those are forbidden; a root without the right to make namespaces (in a container) tries like everybody else.
func outer() (int, error) {
	// The kernel kills the inner process when the thread that started it ends (PR_SET_PDEATHSIG), so this thread stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Getuid() == 0 {
		status, err := start(0)
		if !errors.Is(err, unix.EPERM) {
			return status, refused(err)
		}
	}
	status, err := start(unix.CLONE_NEWUSER)
	return status, refused(err)
}

func refused(err error) error {
	if err == nil {
		return nil
	}
	return &NamespaceError{Cause: err, Remedy: remedy()}
}

// start runs the program once more in new namespaces. The error is about the namespaces only; when it is nil, status is
// the exit status.
func start(extra uintptr) (status int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find own program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make report pipe: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	stage := stageInside
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | extra,
		Pdeathsig:  syscall.SIGKILL,
	}
	if extra&unix.CLONE_NEWUSER != 0 {
		stage = stageInsideUser
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
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
		return 0, errors.Join(fmt.Errorf("furnish new namespaces: %s", message), err, ignoreExit(cmd.Wait()))
	}
	return wait(cmd, signals)
}

// wait passes signals on until the inner process ends, and returns its exit status.
func wait(cmd *exec.Cmd, signals <-chan os.Signal) (int, error) {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// It may have ended in this moment; done says so next.
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("pass on %v: %w", s, err)
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

// ignoreExit drops the error that only says that a process ended with another status than 0.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// furnish makes the new namespaces usable: mounts that stay private, an empty /run, and /proc and /sys that show what is
// inside.
func furnish(stage string) error {
	// The old /proc still counts processes as the host does.
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("find own process number: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("lab", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount own /run: %w", err)
	}
	for _, dir := range []string{netnsFolder, markFolder} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("furnish /run: %w", err)
		}
	}
	if err := os.WriteFile(outsideFile, []byte(pid+" "+stage), 0o644); err != nil {
		return err
	}
	for _, fs := range []string{"proc", "sysfs"} {
		if err := mountView(fs); err != nil && !hidden(err) {
			return err
		}
	}
	return setLoopbackUp()
}

// hidden says whether a view could not be mounted because the host hides parts of its own: a container may not mount new
// ones then (mount_too_revealing in the kernel's fs/namespace.c). The old ones serve nearly as well: they only show the
// processes and devices outside.
func hidden(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// mountView mounts proc or sysfs at its usual place, as the calling thread's namespaces see it.
func mountView(fs string) error {
	target := map[string]string{"proc": "/proc", "sysfs": "/sys"}[fs]
	if err := unix.Mount(fs, target, fs, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// remedy names the switch that this host has turned, as far as it can be seen.
func remedy() string {
	for _, s := range []struct{ file, closed, text string }{
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0 allows it"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1 allows it"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000 allows it"},
		{"/proc/sys/user/max_net_namespaces", "0", "sysctl user.max_net_namespaces=10000 allows it"},
	} {
		value, err := os.ReadFile(s.file)
		if err == nil && strings.TrimSpace(string(value)) == s.closed {
			return s.text + "; so does running it with sudo"
		}
	}
	if os.Getuid() == 0 {
		return "root without CAP_SYS_ADMIN, as in a container: give it --privileged, or --cap-add SYS_ADMIN with an open seccomp profile"
	}
	return "run it with sudo"
}
