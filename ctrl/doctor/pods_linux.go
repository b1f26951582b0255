package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"weft/ctrl"
)

// maxNamespaces is the number of network namespaces that are looked into: a node has about a
// hundred pods, and each takes a millisecond.
const maxNamespaces = 500

// Limits of the probes of pods, which are made one after the other.
const (
	maxProbedPods = 8
	podTries      = 2
)

// readPods looks into the other network namespaces of this host.
func (g gathering) readPods(ctx context.Context) error {
	own, err := namespaceID("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	seen := map[[2]uint64]bool{own: true}
	files, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the patterns are well formed
	named, _ := filepath.Glob("/run/netns/*")
	var failed error
	for _, file := range append(named, files...) {
		id, err := namespaceID(file)
		if err != nil || seen[id] || len(seen) > maxNamespaces {
			continue // a process that has ended, or a file that is no namespace
		}
		seen[id] = true
		pods, err := g.podsIn(ctx, file)
		if err != nil {
			failed = fmt.Errorf("enter the network namespace %s: %w", file, err)
		}
		g.Pods = append(g.Pods, pods...)
	}
	if len(g.Pods) > 0 || failed != nil {
		return failed
	}
	for _, bridge := range g.bridges() {
		if len(g.Ports[bridge]) > 0 {
			return errors.New("their namespaces are not visible here: run it on the host, not in a container")
		}
	}
	return nil
}

// namespaceID identifies the namespace of a file.
func namespaceID(file string) ([2]uint64, error) {
	var s unix.Stat_t
	err := unix.Stat(file, &s)
	return [2]uint64{uint64(s.Dev), s.Ino}, err
}

// podsIn returns the addresses of the node's subnet in a namespace.
func (g gathering) podsIn(ctx context.Context, file string) (pods []Pod, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Without the opposite, so the thread ends with the goroutine, or stays unused if it is the
		// first one of the process: /proc/self is in another namespace then.
		runtime.LockOSThread()
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		if pods, err = g.podsHere(namespaceName(file)); err == nil && g.options.Probe {
			g.probePods(ctx, pods)
		}
	}()
	<-done
	return pods, err
}

// namespaceName returns the name of a file of /run/netns, or the process of one of /proc.
func namespaceName(file string) string {
	rest, isProcess := strings.CutPrefix(file, "/proc/")
	if !isProcess {
		return filepath.Base(file)
	}
	pid, _, _ := strings.Cut(rest, "/")
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "PID " + pid
	}
	return strings.TrimSpace(string(name)) + ", PID " + pid
}

// podsHere returns the addresses of the node's subnet in the namespace of the thread.
func (g gathering) podsHere(name string) ([]Pod, error) {
	k, err := ctrl.OpenKernel(nil)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	state, err := k.Read(ctrl.OverlayName)
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for _, a := range state.Addrs {
		if !g.subnet().Masked().Contains(a.Prefix.Addr()) {
			continue
		}
		p := Pod{Name: name, Dev: a.Dev, Addr: a.Prefix}
		for _, l := range state.Links {
			if l.Name == a.Dev {
				p.MTU = l.MTU
			}
		}
		p.Route.LookupResult, p.Route.Err = k.Lookup(ctrl.Lookup{Dst: g.elsewhere()})
		pods = append(pods, p)
	}
	return pods, nil
}

// probePods sends echoes from the namespace of the thread.
func (g gathering) probePods(ctx context.Context, pods []Pod) {
	if len(g.Nodes) == 0 || len(g.gateways()) == 0 || len(g.Pods) >= maxProbedPods {
		return
	}
	for i := range pods {
		p := &pods[i]
		r := echoRequest{src: p.Addr.Addr(), dst: g.gateways()[0], size: echoSize, tries: podTries, wait: probeWait}
		p.Gateway = echo(ctx, r)
		r.dst = g.Nodes[0].Target
		p.Far = echo(ctx, r)
		p.Probed = true
	}
}

// elsewhere returns an address of the network that is not in the node's subnet.
func (g gathering) elsewhere() netip.Addr {
	for _, n := range g.Nodes {
		return n.Subnet.Masked().Addr().Next().Next()
	}
	if a := g.network().Masked().Addr().Next(); !g.subnet().Masked().Contains(a) {
		return a
	}
	return netip.PrefixFrom(g.subnet().Addr(), g.subnet().Bits()-1).Masked().Addr().Next()
}
