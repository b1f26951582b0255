package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/deploy/lab"
)

// serviceManager stores descriptors for a daemon as systemd does (sd_pid_notify_with_fds(3)).
type serviceManager struct {
	t      *testing.T
	socket *net.UnixConn

	mu    sync.Mutex
	files map[string]*os.File // by name
}

func newServiceManager(t *testing.T, n *lab.Node) *serviceManager {
	t.Helper()
	address := &net.UnixAddr{Name: n.Path("notify"), Net: "unixgram"}
	socket, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	m := &serviceManager{t: t, socket: socket, files: map[string]*os.File{}}
	var reader sync.WaitGroup
	reader.Go(m.read)
	t.Cleanup(func() {
		socket.Close()
		reader.Wait()
		for _, f := range m.files {
			f.Close()
		}
	})
	return m
}

// read handles notifications until the socket is closed.
func (m *serviceManager) read() {
	b, oob := make([]byte, 1024), make([]byte, 1024)
	for {
		n, oobn, _, _, err := m.socket.ReadMsgUnix(b, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			err = m.handle(string(b[:n]), oob[:oobn])
		}
		if err != nil {
			m.t.Errorf("notification: %v", err)
			return
		}
	}
}

func (m *serviceManager) handle(message string, oob []byte) error {
	fields := map[string]string{}
	for line := range strings.Lines(message) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[key] = value
	}
	file, err := passedFile(oob)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := fields["FDNAME"]
	switch {
	case fields["FDSTORE"] == "1" && file != nil && m.files[name] == nil:
		m.files[name] = file
	case fields["FDSTOREREMOVE"] == "1" && m.files[name] != nil:
		m.files[name].Close()
		delete(m.files, name)
	case fields["BARRIER"] == "1" && file != nil:
		file.Close()
	case file != nil, strings.HasPrefix(message, "FD"):
		return fmt.Errorf("unexpected %q", message)
	}
	return nil
}

// passedFile returns the file that a message carries, or nil.
func passedFile(oob []byte) (*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "stored"), nil
}

// start starts a daemon with the stored descriptors.
func (m *serviceManager) start(c *cluster, n *lab.Node, flags ...string) *member {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(m.files))
	var files []*os.File
	for _, name := range names {
		files = append(files, m.files[name])
	}
	argv := append([]string{self, fmt.Sprintf("--healthz-port=%d", clusterHealth),
		"--etcd-endpoints=" + c.endpoint()}, flags...)
	env := []string{asDaemon + "=1", "NOTIFY_SOCKET=/run/notify"}
	if len(files) > 0 {
		env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(files)),
			"LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	p, err := n.StartWithFiles(argv, files, env...)
	if err != nil {
		m.t.Fatal(err)
	}
	return &member{Process: p, node: n, t: m.t}
}

// awaitStored waits until n descriptors are stored.
func (m *serviceManager) awaitStored(n int) {
	m.t.Helper()
	await(m.t, patience, "descriptors", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.files) != n {
			return fmt.Errorf("%d stored, want %d", len(m.files), n)
		}
		return nil
	})
}

// TestNetnsRestartKeepsPackets restarts a daemon without a fast path. Packets that arrive meanwhile
// wait for the next process.
func TestNetnsRestartKeepsPackets(t *testing.T) {
	const off, two = "--fast-path=off", "--workers=2"
	c := newCluster(t, lab.Options{}, clusterNetwork)
	m := newServiceManager(t, c.Nodes[0])
	ds := []*member{m.start(c, c.Nodes[0], off, two), c.start(c.Nodes[1], off)}
	for _, d := range ds {
		d.awaitReady()
		d.attach()
	}
	c.awaitMesh()
	m.awaitStored(6) // two queues and a socket of each worker
	ping := lab.Ping{Count: -1, Interval: time.Millisecond}
	for _, end := range []struct {
		name string
		do   func(d *member)
	}{
		{"SIGTERM", func(d *member) { d.stop() }},
		{"SIGKILL", func(d *member) { d.Kill(); <-d.Done() }},
	} {
		for from, to := range map[*lab.Pod]*lab.Pod{
			c.Nodes[0].Pods[0]: c.Nodes[1].Pods[0], c.Nodes[1].Pods[0]: c.Nodes[0].Pods[0],
		} {
			p, err := from.StartPing(t.Context(), to.Addr, ping)
			if err != nil {
				t.Fatal(err)
			}
			c.awaitAnswers(patience, p, 100)
			begin := time.Now()
			end.do(ds[0])
			ds[0] = m.start(c, c.Nodes[0], off, two)
			ds[0].awaitReady()
			outage := time.Since(begin)
			c.awaitAnswers(patience, p, 100)
			// A queue of the device holds 500 packets; the outage is shorter on an idle machine.
			most := max(0, int((outage-500*time.Millisecond)/ping.Interval))
			r := p.Stop()
			r.RTT = nil
			t.Logf("%s, from %s: %d lost in %v", end.name, from.Name, r.Lost(), outage)
			if r.Lost() > most || r.Duplicates > 0 {
				t.Errorf("want at most %d: %+v", most, r)
			}
		}
	}
	ds[0].checkDevice()

	// Descriptors that do not fit are removed, and no packets are lost in them.
	for _, change := range []struct {
		name, backend, workers string
		stored                 int
	}{
		{"workers", `{"Type": "udp"}`, "--workers=1", 3},
		{"port", `{"Type": "udp", "Port": 8286}`, "--workers=1", 3},
		{"backend", `{"Type": "vxlan"}`, "--workers=1", 0},
	} {
		for _, d := range ds {
			d.stop()
		}
		c.put(clusterPrefix+"/config", `{"Network": "10.5.0.0/16", "Backend": `+change.backend+`}`)
		ds = []*member{m.start(c, c.Nodes[0], off, change.workers), c.start(c.Nodes[1], off)}
		for _, d := range ds {
			d.awaitReady()
		}
		c.awaitMesh()
		m.awaitStored(change.stored)
		if change.stored > 0 {
			ds[0].checkDevice()
		}
		c.awaitMesh()
	}
}
