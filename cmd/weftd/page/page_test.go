package page

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"weft/cmd/control"
	"weft/metrics"
)

// patience bounds every wait for the browser.
const patience = 30 * time.Second

// newBrowser starts a headless browser and returns the context of a tab.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Skipf("NOT TESTED: the page in a browser: %v", err)
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), append(
		chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox,
		chromedp.UserDataDir(t.TempDir()))...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		// Waits for the browser, which would write to its directory while that is being removed.
		if err := chromedp.Cancel(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	})
	if _, err := chromedp.Run(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// server serves the page and a status, in which traffic grows with each answer.
type server struct {
	*httptest.Server
	answers atomic.Uint64
	failing atomic.Bool
}

func newServer(t *testing.T, status func(answer uint64) control.Status) *server {
	t.Helper()
	s := &server{}
	mux := http.NewServeMux()
	for pattern, h := range Handlers() {
		mux.Handle(pattern, h)
	}
	mux.HandleFunc("GET "+control.StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		if s.failing.Load() {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		answer(t, w, status(s.answers.Add(1)))
	})
	mux.HandleFunc("GET "+control.ClusterPath, func(w http.ResponseWriter, r *http.Request) {
		answer(t, w, matrix(r.URL.Query()[control.NodeParameter], s.answers.Load()))
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// answer answers with JSON, unless the browser has left.
func answer(t *testing.T, w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	_, _ = w.Write(b)
}

// nodeCount is the number of nodes in the status of the tests.
const nodeCount = 24

// cluster is a status with a broken, a lossy and a narrow path, an unmeasured node, and a name that
// is markup.
func cluster(answer uint64) control.Status {
	s := control.Status{
		Build: metrics.Build{Version: "v1.2.3"}, Node: "node-a", Ready: true, Backend: "udp", MTU: 1472,
		Conditions: []control.Condition{{Name: "lease", OK: true},
			{Name: "nodes", OK: true, Reason: "1 of 24 other nodes unreachable"}},
		Lease: &control.Lease{Held: true, Subnet: netip.MustParsePrefix("10.5.1.0/24")},
		Store: control.Store{Kind: "etcd", Connected: true},
		Traffic: &metrics.Traffic{Engine: "offload",
			Drops: []metrics.Drop{{Reason: "no_node", Packets: 7 * answer, Meaning: "no node has the destination"}, {Reason: "too_short"}},
			In:    metrics.Volume{Bytes: 200_000_000 * answer}, Out: metrics.Volume{Bytes: 90_000_000 * answer}},
	}
	for i := range nodeCount {
		n := control.Node{Name: fmt.Sprintf("node-%02d", i), Public: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i + 2), 0}), 24)}
		n.Path = &control.Path{Address: n.Subnet.Addr(), Sent: 30, MTU: 1472, MaxMTU: 1472, Answered: time.Now(),
			RTT: 0.0002 + float64(answer%5)/1e4, RTTMedian: 0.0003}
		switch i {
		case 3:
			n.Path.Lost, n.Unreachable = 30, "no answer from 10.5.5.0 since weftd started"
		case 4:
			n.Path.Lost = 6
		case 5:
			n.Path.MTU = 1372
		case 6:
			n.Path = nil
		case 7:
			n.Name = "<b id=injected>ip-10-0-0-7.eu-central-1.compute.internal.example"
		}
		s.Nodes = append(s.Nodes, n)
		s.Traffic.Nodes = append(s.Traffic.Nodes, metrics.NodeTraffic{Node: n.Name,
			In: metrics.Volume{Bytes: 1_000_000 * answer * uint64(i+1)}, Out: metrics.Volume{Bytes: 500_000 * answer}})
	}
	return s
}

// matrix has the answers of the nodes of the cluster with the IDs: all see the same broken node,
// one is not ready, one runs flannel, and one does not count bytes.
func matrix(ids []string, answer uint64) control.Cluster {
	c := control.Cluster{Nodes: nodeCount + 1}
	self := cluster(answer)
	all := append(self.Nodes, control.Node{Name: "node-a", Subnet: self.Lease.Subnet})
	for _, id := range ids {
		i := slices.IndexFunc(all, func(n control.Node) bool { return n.ID() == id })
		r := control.ClusterRow{ID: id, Name: all[i].Name}
		if r.Name == "node-08" {
			r.Error = "no answer of its own: flannel, or an older Weft"
		} else {
			r.Row = rowOf(all[i], all, answer)
		}
		c.Rows = append(c.Rows, r)
	}
	return c
}

func rowOf(from control.Node, all []control.Node, answer uint64) *control.Row {
	row := control.Row{ID: from.ID(), Node: from.Name, Time: time.Now(), Ready: from.Name != "node-09"}
	if !row.Ready {
		row.Conditions = []control.Condition{{Name: "rules", Reason: "iptables: permission denied"}}
	}
	for i, n := range all {
		if n.ID() == from.ID() {
			continue
		}
		p := control.PeerPath{ID: n.ID(), Node: n.Name, Sent: 30, RTT: 0.0003 * float64(i%7+1), MTU: 1472}
		out, in := answer*uint64(i)*1_000_000, answer*500_000
		p.Out, p.In = &out, &in
		switch {
		case n.Name == "node-03":
			p.Lost, p.Unreachable = 30, "no answer from 10.5.5.0"
		case n.Name == "node-04":
			p.Lost = 6
		case from.Name == "node-02":
			p.Out, p.In = nil, nil
		}
		row.Paths = append(row.Paths, p)
	}
	return &row
}

// eval evaluates an expression in the page.
func eval[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// await waits until an expression is true in the page.
func await(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(patience))); err != nil {
		t.Fatalf("%s: %v; the page has: %s", expression, err, eval[string](t, ctx, "document.body.innerText"))
	}
}

func do(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

// open loads the page in a window of a width and a colour scheme.
func open(t *testing.T, ctx context.Context, url string, width int64, scheme string) {
	t.Helper()
	do(t, ctx, chromedp.EmulateViewport(width, 900), chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	}), chromedp.Navigate(url))
	await(t, ctx, "document.querySelectorAll('#matrix button').length > 0")
}

// TestPageShowsCluster reads the figures of the page.
func TestPageShowsCluster(t *testing.T) {
	ctx := newBrowser(t)
	s := newServer(t, cluster)
	open(t, ctx, s.URL, 1200, "light")
	await(t, ctx, "document.querySelector('#figures').innerText.includes('Mbit/s')")
	tiles := eval[[]string](t, ctx, "[...document.querySelectorAll('#matrix button')].map(b => b.className + ' ' + b.innerText)")
	if len(tiles) != nodeCount {
		t.Errorf("%d tiles, want %d", len(tiles), nodeCount)
	}
	for i, want := range []string{"bad node-03\n✕ unreachable", "warn node-04\n! 20 % lost", "warn node-05\n! MTU 1372",
		"unknown node-06\n? not measured"} {
		if tiles[i] != want {
			t.Errorf("tile %d is %q, want %q", i, tiles[i], want)
		}
	}
	if eval[int](t, ctx, "document.querySelectorAll('#injected').length") != 0 {
		t.Error("a node's name is taken as markup")
	}
	rows := func() []string {
		return eval[[]string](t, ctx, "[...document.querySelectorAll('#nodes tr')].map(r => r.innerText)")
	}
	do(t, ctx, chromedp.Click("th button[data-sort=in]"))
	if r := rows(); !strings.HasPrefix(r[0], "node-23") {
		t.Errorf("sorted by rate, the first is %q", r[0])
	}
	do(t, ctx, chromedp.SendKeys("#filter", "10.5.5."))
	if r := rows(); len(r) != 1 || !strings.HasPrefix(r[0], "node-03") {
		t.Errorf("filtered: %q", r)
	}
	do(t, ctx, chromedp.Click("#nodes tr"))
	await(t, ctx, "document.querySelector('#detail').innerText.includes('no answer from 10.5.5.0')")
	if text := eval[string](t, ctx, "document.querySelector('#drops').innerText"); !strings.Contains(text, "no_node\nno node has the destination") ||
		strings.Contains(text, "too_short") {
		t.Errorf("drops: %q", text)
	}
	s.failing.Store(true)
	await(t, ctx, "!document.querySelector('#outage').hidden")
	s.failing.Store(false)
	await(t, ctx, "document.querySelector('#outage').hidden")
}

// TestPageShowsMatrix reads the matrix of the cluster: states, figures, pages, and a node's own
// answer.
func TestPageShowsMatrix(t *testing.T) {
	ctx := newBrowser(t)
	s := newServer(t, cluster)
	open(t, ctx, s.URL, 1200, "light")
	await(t, ctx, "document.querySelectorAll('#cluster tbody tr').length === 24")
	selector := func(from, to string) string {
		ids := map[string]string{"node-a": "10.5.1.0/24"}
		for _, n := range cluster(0).Nodes {
			ids[n.Name] = n.ID()
		}
		return fmt.Sprintf("#cluster td[data-from='%s'][data-to='%s']", ids[from], ids[to])
	}
	cell := func(from, to string) string {
		return eval[string](t, ctx, fmt.Sprintf(
			"(c => c ? c.className + ' ' + c.innerText + ' ' + c.title : 'none')(document.querySelector(%q))", selector(from, to)))
	}
	click := func(selector string) { do(t, ctx, chromedp.Click(selector)) }
	for _, c := range []struct{ kind, from, to, want string }{
		{"state", "node-a", "node-03", "bad ✕ node-a → node-03: unreachable: no answer from 10.5.5.0"},
		{"state", "node-04", "node-a", "ok ✓ node-04 → node-a: RTT "},
		{"rtt", "node-04", "node-a", "ok 1.2 "},
		{"loss", "node-05", "node-04", "warn 20 "},
		{"rate", "node-05", "node-03", "bad "},
		{"rate", "node-02", "node-a", "ok – "},
	} {
		click("#kinds [data-kind=" + c.kind + "]")
		if got := cell(c.from, c.to); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s from %s to %s: %q, want %q", c.kind, c.from, c.to, got, c.want)
		}
	}
	await(t, ctx, fmt.Sprintf("document.querySelector(%q).innerText.endsWith('M')", selector("node-05", "node-10"))) // two answers
	if n := eval[int](t, ctx, "document.querySelectorAll('#cluster #injected').length"); n != 0 {
		t.Error("a node's name is taken as markup")
	}
	if text := eval[string](t, ctx, "document.querySelector('#cluster .silent').innerText"); !strings.Contains(text, "flannel") {
		t.Errorf("node without an answer: %q", text)
	}
	click(selector("node-05", "node-04"))
	await(t, ctx, "document.querySelector('#cluster-cell').innerText.startsWith('node-05 → node-04: RTT')")
	click("#cluster tbody th button[title=node-09]")
	await(t, ctx, "document.querySelector('#detail').innerText.includes('rules: iptables: permission denied')")
	click("#page-next")
	await(t, ctx, "document.querySelectorAll('#cluster tbody tr').length === 1")
}

// TestPageLayout checks that nothing is wider than the window and that text has the contrast of
// WCAG 2.2 (section 1.4.3), and stores pictures with -artifacts.
func TestPageLayout(t *testing.T) {
	ctx := newBrowser(t)
	s := newServer(t, cluster)
	for _, width := range []int64{390, 1200} {
		for _, scheme := range []string{"light", "dark"} {
			name := fmt.Sprintf("%d-%s", width, scheme)
			open(t, ctx, s.URL+"/#node-03", width, scheme)
			do(t, ctx, chromedp.Reload()) // a new hash alone loads nothing
			await(t, ctx, "!document.querySelector('#detail').hidden")
			await(t, ctx, "document.querySelector('#figures').innerText.includes('Mbit/s')")
			if w := eval[int64](t, ctx, "document.documentElement.scrollWidth"); w > width {
				t.Errorf("%s: the page is %d pixels wide", name, w)
			}
			await(t, ctx, "document.querySelectorAll('#cluster tbody tr').length > 0")
			if w := eval[int64](t, ctx, "Math.max(...[...document.querySelectorAll('.scroll')].map(s => s.scrollWidth - s.clientWidth))"); w > 0 {
				t.Errorf("%s: a table is %d pixels too wide", name, w)
			}
			if low := eval[[]string](t, ctx, lowContrast); len(low) > 0 {
				t.Errorf("%s: low contrast: %q", name, low)
			}
			picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
			if err == nil {
				err = os.WriteFile(filepath.Join(t.ArtifactDir(), name+".png"), picture, 0o644)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// lowContrast lists the texts with a contrast below 4.5 to the nearest ground behind them.
const lowContrast = `(() => {
  const rgb = s => s.match(/[\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(e => e.offsetParent &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).filter(e => {
    const a = light(rgb(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5; }).map(e => e.innerText);
})()`

// TestHandlersHeaders checks that the page can load nothing but its own files.
func TestHandlersHeaders(t *testing.T) {
	for pattern, h := range Handlers() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != http.StatusOK || w.Body.Len() == 0 || w.Header().Get("Content-Type") == "" ||
			!strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: status %d, %d bytes, header %v", pattern, w.Code, w.Body.Len(), w.Header())
		}
	}
	for line := range strings.Lines(string(slices.Concat(document, style, script, clusterScript))) {
		if strings.Contains(line, "://") && !strings.Contains(line, "http://www.w3.org/2000/svg") {
			t.Errorf("the page refers to another host: %s", line)
		}
	}
}
