package deploy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"weft/deploy/lab"
)

// initArg as first argument makes the test binary the init process of a container.
const initArg = "weft-test-container"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == initArg {
		fmt.Fprintln(os.Stderr, "container:", runContainer(os.Args[2])) // returns only on error
		os.Exit(125)
	}
	if len(os.Args) > 2 && os.Args[1] == dockerArg {
		fmt.Fprintln(os.Stderr, "dockerd:", execDockerd(os.Args[2:]))
		os.Exit(125)
	}
	status := lab.Main(m)
	if err := os.RemoveAll(image.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// container is a minimal container runtime. It is the tests' own so that they follow the manifest
// to the letter.
type container struct {
	Root         string // directory with the image's files
	ReadOnlyRoot bool
	Mounts       []mount
	Argv, Env    []string
	Capabilities []string // the complete set
	NoNewPrivs   bool
}

// mount is a bind mount of a file or directory of the node.
type mount struct {
	Source, Target string
	ReadOnly       bool
}

// newContainer converts a container of a manifest to one that runs on a lab's node. It runs as
// root, the image's default. fields holds the values for fieldRef, volumes the host paths of the
// pod's volumes by name.
func newContainer(
	t testing.TB, c corev1.Container, fields map[string]string, root string, volumes map[string]string,
) container {
	t.Helper()
	r := container{Root: root, Argv: slices.Concat(c.Command, c.Args), Env: []string{imagePath(t)},
		Capabilities: defaultCapabilities()}
	if s := c.SecurityContext; s != nil {
		r.ReadOnlyRoot = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
		r.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if fmt.Sprint(s.Capabilities.Drop) == "[ALL]" {
			r.Capabilities = nil
		}
		for _, a := range s.Capabilities.Add {
			r.Capabilities = append(r.Capabilities, string(a))
		}
	}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom == nil:
			r.Env = append(r.Env, e.Name+"="+e.Value)
		case e.ValueFrom.FieldRef != nil && fields[e.ValueFrom.FieldRef.FieldPath] != "":
			r.Env = append(r.Env, e.Name+"="+fields[e.ValueFrom.FieldRef.FieldPath])
		default:
			t.Fatalf("%s: variable %s: unsupported source", c.Name, e.Name)
		}
	}
	for _, m := range c.VolumeMounts {
		source, ok := volumes[m.Name]
		if !ok {
			t.Fatalf("%s: no volume %s", c.Name, m.Name)
		}
		r.Mounts = append(r.Mounts, mount{source, m.MountPath, m.ReadOnly})
	}
	return r
}

// start runs the container on a node, with the additions of a kubelet: the service account and the
// API server's address.
func (c container) start(t testing.TB, n *lab.Node, account string, env ...string) *lab.Process {
	t.Helper()
	c.Mounts = append(c.Mounts, mount{account, "/var/run/secrets/kubernetes.io/serviceaccount", true})
	c.Env = append(c.Env, env...)
	spec, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Start([]string{self, initArg, string(spec)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// runContainer turns the calling process into the container's program.
func runContainer(spec string) error {
	runtime.LockOSThread() // mount namespaces and capabilities are per thread
	var c container
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		return err
	}
	root, err := c.mountRoot()
	if err != nil {
		return err
	}
	if err := unix.PivotRoot(root, root); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	// The old root is mounted over the new one (pivot_root(2)).
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := c.dropPrivileges(); err != nil {
		return err
	}
	for _, e := range c.Env {
		if name, value, _ := strings.Cut(e, "="); name == "PATH" {
			if err := os.Setenv(name, value); err != nil {
				return err
			}
		}
	}
	program, err := exec.LookPath(c.Argv[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", program, syscall.Exec(program, c.Argv, c.Env))
}

// imagePath returns the variable PATH that the Dockerfile sets.
func imagePath(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("docker/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if env, ok := strings.CutPrefix(line, "ENV "); ok {
			return strings.TrimSpace(env)
		}
	}
	t.Fatal("the Dockerfile sets no PATH")
	return ""
}

// mountRoot mounts the container's file system and makes its root the working directory.
func (c container) mountRoot() (string, error) {
	root, err := os.MkdirTemp("/run", "container")
	if err != nil {
		return "", err
	}
	if err := unix.Mount("root", root, "tmpfs", 0, "mode=0755"); err != nil {
		return "", fmt.Errorf("mount root: %w", err)
	}
	if err := os.CopyFS(root, os.DirFS(c.Root)); err != nil {
		return "", err
	}
	mounts := []mount{{"/proc", "/proc", false}, {"/proc/sys", "/proc/sys", true}, {"/sys", "/sys", true}}
	for _, device := range []string{"null", "zero", "random", "urandom"} {
		mounts = append(mounts, mount{"/dev/" + device, "/dev/" + device, false})
	}
	for _, m := range append(mounts, c.Mounts...) {
		if err := m.mount(root); err != nil {
			return "", fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	if c.ReadOnlyRoot {
		if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return "", fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return root, os.Chdir(root)
}

// mount bind-mounts m below root. It creates a missing target.
func (m mount) mount(root string) error {
	target := filepath.Join(root, m.Target)
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if info.IsDir() {
			err = os.Mkdir(target, 0o755)
		} else {
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !m.ReadOnly {
		return nil
	}
	// A user namespace must keep the flags that the mount already has.
	var stat unix.Statfs_t
	if err := unix.Statfs(target, &stat); err != nil {
		return err
	}
	kept := uintptr(stat.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|kept, "")
}

// capabilities maps the names used in manifests to capability numbers (linux/capability.h).
func capabilities() map[string]int {
	return map[string]int{
		"AUDIT_WRITE":      unix.CAP_AUDIT_WRITE,
		"BPF":              unix.CAP_BPF,
		"CHOWN":            unix.CAP_CHOWN,
		"DAC_OVERRIDE":     unix.CAP_DAC_OVERRIDE,
		"FOWNER":           unix.CAP_FOWNER,
		"FSETID":           unix.CAP_FSETID,
		"KILL":             unix.CAP_KILL,
		"MKNOD":            unix.CAP_MKNOD,
		"NET_ADMIN":        unix.CAP_NET_ADMIN,
		"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
		"NET_RAW":          unix.CAP_NET_RAW,
		"PERFMON":          unix.CAP_PERFMON,
		"SETFCAP":          unix.CAP_SETFCAP,
		"SETGID":           unix.CAP_SETGID,
		"SETPCAP":          unix.CAP_SETPCAP,
		"SETUID":           unix.CAP_SETUID,
		"SYS_CHROOT":       unix.CAP_SYS_CHROOT,
		"SYS_NICE":         unix.CAP_SYS_NICE,
	}
}

// defaultCapabilities returns the capabilities that containerd and docker grant by default.
func defaultCapabilities() []string {
	return []string{"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
		"NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
}

// dropPrivileges drops all capabilities that the container does not have and sets no_new_privs.
func (c container) dropPrivileges() error {
	kept := 0
	for _, name := range c.Capabilities {
		n, ok := capabilities()[name]
		if !ok {
			return fmt.Errorf("unknown capability %s", name)
		}
		kept |= 1 << n
	}
	for n := 0; n <= unix.CAP_LAST_CAP; n++ {
		if kept&(1<<n) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{}
	for i := range data {
		word := uint32(kept >> (32 * i))
		data[i] = unix.CapUserData{Effective: word, Permitted: word}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if !c.NoNewPrivs {
		return nil
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// processStatus reads one line of a process's /proc/PID/status.
func processStatus(t testing.TB, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); name == key {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of process %d", key, pid)
	return ""
}
