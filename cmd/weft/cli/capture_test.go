package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/cmd/buildinfo"
	"weft/cmd/control"
	"weft/dataplane/capture"
)

// fakeDaemon serves a control socket that answers a capture with records. The function returns the
// last request.
func fakeDaemon(t *testing.T, all []capture.Record) (socket string, asked func() control.Capture) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var last control.Capture
	handler := http.NewServeMux()
	handler.HandleFunc(control.CapturePath, func(w http.ResponseWriter, r *http.Request) {
		if last, err = control.ParseCapture(r.URL.Query()); err != nil {
			t.Error(err)
		}
		file, err := capture.NewWriter(w, capture.File{
			SnapLen: 1000, Missed: func(p capture.Point) uint64 { return uint64(p) * 9 }})
		if err != nil {
			t.Error(err)
			return
		}
		for _, rec := range all {
			if err := file.Write(&rec); err != nil {
				return // the client has gone
			}
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
	return socket, func() control.Capture { return last }
}

// weft runs the tool and returns its output.
func weft(args ...string) (status int, out, problems string) {
	var stdout, stderr bytes.Buffer
	root := NewRoot(buildinfo.Info{})
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	root.SetArgs(args)
	status = explain(&stderr, root.Execute())
	return status, stdout.String(), stderr.String()
}

// echoRequest is an ICMP echo request between pods.
var echoRequest = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 5, 1, 2, 10, 5, 2, 2, 8, 0, 0, 0, 0, 1, 0, 7}

func fakeRecords(n int) []capture.Record {
	var all []capture.Record
	for i := range n {
		all = append(all, capture.Record{Length: len(echoRequest), Bytes: echoRequest, Meta: capture.Meta{
			Time: time.Unix(int64(i), 0), Outbound: true, Node: "two", Outer: netip.MustParseAddr("192.0.2.2")}})
	}
	all[n-1].Drop, all[n-1].Missed = "no_room", 3
	return all
}

func TestCaptureText(t *testing.T) {
	socket, asked := fakeDaemon(t, fakeRecords(2))
	status, out, problems := weft("capture", "--control-socket", socket, "-c", "5", "-i", "any", "--node=two", "icmp", "or", "tcp")
	want := []string{
		"inner out  10.5.1.2 > 10.5.2.2: ICMP EchoRequest id 1 seq 7, length 28  node=two outer=192.0.2.2 worker=0 verdict=forwarded",
		"... 3 packets missed",
		"inner out  10.5.1.2 > 10.5.2.2: ICMP EchoRequest id 1 seq 7, length 28  node=two outer=192.0.2.2 worker=0 drop=no_room",
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if status != 0 || len(lines) != len(want) ||
		slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool { return !strings.HasSuffix(lines[i], want[i]) }) {
		t.Errorf("status %d, %s:\n%s", status, problems, out)
	}
	if !strings.Contains(problems, "2 packets captured, 9 missed") {
		t.Errorf("summary %q", problems)
	}
	if got := asked(); got != (control.Capture{Inner: true, Outer: true, Node: "two", Count: 5, Filter: "icmp or tcp"}) {
		t.Errorf("asked for %+v", got)
	}
}

func TestCaptureJSON(t *testing.T) {
	socket, _ := fakeDaemon(t, fakeRecords(2))
	status, out, problems := weft("capture", "--control-socket", socket, "--json", "--drops")
	var line struct {
		Drop, Node, Packet string
		Bytes              []byte
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil || status != 0 || len(lines) != 2 ||
		line.Drop != "no_room" || line.Node != "two" || !bytes.Equal(line.Bytes, echoRequest) {
		t.Errorf("%v, status %d %s:\n%s", err, status, problems, out)
	}
}

// readFile returns the number of records in a file.
func readFile(t *testing.T, path string) (n int) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := capture.NewReader(file)
	for err == nil {
		if _, err = r.Read(); err == nil {
			n++
		}
	}
	return n
}

func TestCaptureFiles(t *testing.T) {
	socket, _ := fakeDaemon(t, fakeRecords(30_000)) // about 4 MB
	dir := t.TempDir()
	one := filepath.Join(dir, "one.pcapng")
	if status, _, problems := weft("capture", "--control-socket", socket, "-w", one); status != 0 || readFile(t, one) != 30_000 {
		t.Errorf("status %d, %d records, %s", status, readFile(t, one), problems)
	}
	ring := filepath.Join(dir, "ring.pcapng")
	status, _, problems := weft("capture", "--control-socket", socket, "-w", ring, "-C", "1", "-W", "2")
	names, err := filepath.Glob(filepath.Join(dir, "ring-*.pcapng"))
	if err != nil || status != 0 || len(names) != 2 {
		t.Fatalf("status %d, files %v, %v, %s", status, names, err, problems)
	}
	if info, err := os.Stat(names[0]); err != nil || info.Size() < 900_000 || info.Size() > 1_200_000 ||
		readFile(t, names[0]) == 0 || readFile(t, names[1]) == 0 {
		t.Errorf("files %v: %v, %v", names, info, err)
	}
	status, out, _ := weft("capture", "--control-socket", socket, "-w", "-")
	if r, err := capture.NewReader(strings.NewReader(out)); err != nil || status != 0 {
		t.Errorf("status %d, %v", status, err)
	} else if _, err := r.Read(); err != nil {
		t.Error(err)
	}
}

func TestCaptureUsage(t *testing.T) {
	for _, args := range []string{"-i wrong", "-c -1", "-C 5", "-w - -C 5", "-w f -W 5", "-w f --json", "-s 9999999"} {
		if status, _, problems := weft(append([]string{"capture"}, strings.Fields(args)...)...); status != statusUsage {
			t.Errorf("%s: status %d, %s", args, status, problems)
		}
	}
	if status, _, problems := weft("capture", "--control-socket", filepath.Join(t.TempDir(), "none")); status != statusNoDaemon {
		t.Errorf("without a daemon: status %d, %s", status, problems)
	}
}
