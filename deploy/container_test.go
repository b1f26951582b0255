package deploy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
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

// initArg makes the test binary the first program of a container.
const initArg = "weft-test-container"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == initArg {
		fmt.Fprintln(os.Stderr, "container:", enter(os.Args[2])) // it returns only to say why not
		os.Exit(125)
	}
	if len(os.Args) > 2 && os.Args[1] == dockerArg {
		fmt.Fprintln(os.Stderr, "dockerd:", enterDocker(os.Args[2:]))
		os.Exit(125)
	}
	status := lab.Main(m)
	if err := os.RemoveAll(image.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// container is what a runtime makes of a pod's container: the test's own, so that the manifest is followed to the letter.
type container struct {
	Root         string // folder with the image's files
	ReadOnlyRoot bool
	Mounts       []mount
	Argv, Env    []string
	Capabilities []string // all that it has
	NoNewPrivs   bool
}

// mount shows a file or folder of the node inside.
type mount struct {
	Source, Target string
	ReadOnly       bool
}

// describe turns a container of a manifest into one that runs on a lab's node, as root, which the image leaves it. fields
// are what the pod's own fields hold, volumes the node's paths of the pod's volumes by their names.
func describe(t testing.TB, c corev1.Container, fields map[string]string, root string, volumes map[string]string) container {
	t.Helper()
	r := container{Root: root, Argv: slices.Concat(c.Command, c.Args), Env: []string{"PATH=/bin"}, Capabilities: defaultCapabilities()}
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
			t.Fatalf("%s: variable %s is of an unknown kind", c.Name, e.Name)
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

// start runs the container on a node, with what a kubelet adds: the service account, and how to reach the API server.
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

// enter makes the calling process the container's program.
func enter(spec string) error {
	runtime.LockOSThread() // mounts and capabilities are a thread's
	var c container
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		return err
	}
	root, err := c.furnish()
	if err != nil {
		return err
	}
	if err := unix.PivotRoot(root, root); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	// The old root lies over the new one (pivot_root(2)).
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := c.confine(); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", c.Argv[0], syscall.Exec(c.Argv[0], c.Argv, c.Env))
}

// furnish makes the container's view of files and returns its root, which is the working folder.
func (c container) furnish() (string, error) {
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
		if err := m.make(root); err != nil {
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

// make mounts below root. The target is made if it is not there.
func (m mount) make(root string) error {
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
	// Flags that the mount has may not be taken away inside a user namespace.
	var have unix.Statfs_t
	if err := unix.Statfs(target, &have); err != nil {
		return err
	}
	kept := uintptr(have.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|kept, "")
}

// capabilities by the names that manifests use (linux/capability.h).
func capabilities() map[string]int {
	return map[string]int{
		"AUDIT_WRITE": unix.CAP_AUDIT_WRITE, "CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER,
		"FSETID": unix.CAP_FSETID, "KILL": unix.CAP_KILL, "MKNOD": unix.CAP_MKNOD, "NET_ADMIN": unix.CAP_NET_ADMIN,
		"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_RAW": unix.CAP_NET_RAW, "SETFCAP": unix.CAP_SETFCAP, "SETGID": unix.CAP_SETGID,
		"SETPCAP": unix.CAP_SETPCAP, "SETUID": unix.CAP_SETUID, "SYS_CHROOT": unix.CAP_SYS_CHROOT, "SYS_NICE": unix.CAP_SYS_NICE,
	}
}

// defaultCapabilities are those that containerd and docker leave a container.
func defaultCapabilities() []string {
	return []string{"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
		"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
}

// confine takes away what the container does not have.
func (c container) confine() error {
	kept := 0
	for _, name := range c.Capabilities {
		n, ok := capabilities()[name]
		if !ok {
			return fmt.Errorf("capability %s is not known here", name)
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
