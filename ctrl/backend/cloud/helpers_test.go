package cloud

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/ctrl/backend/cloud/testcloud"
)

// me is this node in all tests.
func me() Node {
	return Node{
		Networks: prefixes("10.5.0.0/16", "fd00:5::/48"),
		Subnets:  prefixes("10.5.1.0/24"),
		Addrs:    []netip.Addr{netip.MustParseAddr("172.31.0.1")},
		Public:   []netip.Addr{netip.MustParseAddr("172.31.0.1")},
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

// logged is the log of a Manager.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// rig is a Manager and its cloud.
type rig struct {
	*Manager
	cloud *testcloud.Cloud
	log   *logged
	stop  func()
}

// start runs a Manager for the node me. Environment variables of clouds are empty.
func start(t *testing.T, config Config, c *testcloud.Cloud) *rig {
	t.Helper()
	r := prepare(t, config, c)
	r.run(t)
	r.Set(me())
	return r
}

// prepare returns a Manager that does not run yet.
func prepare(t *testing.T, config Config, c *testcloud.Cloud) *rig {
	t.Helper()
	t.Cleanup(c.Close)
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
		"AWS_REGION", "AWS_ENDPOINT_URL_EC2", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST",
		"ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI",
	} {
		t.Setenv(name, "")
	}
	log := &logged{}
	m, err := newManager(config, slog.New(slog.NewTextHandler(log, nil)),
		endpoints{api: c.API.URL, metadata: c.Metadata.URL})
	if err != nil {
		t.Fatal(err)
	}
	m.pace = pace{interval: 20 * time.Millisecond, relocate: time.Hour, settle: time.Hour,
		retry: time.Millisecond, max: 20 * time.Millisecond}
	return &rig{Manager: m, cloud: c, log: log}
}

// run runs the Manager until the end of the test.
func (r *rig) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(func() {
		r.stop()
		for _, p := range r.cloud.Problems() {
			t.Errorf("protocol: %s", p)
		}
	})
}

// await waits for a condition of the status.
func (r *rig) await(t *testing.T, what string, met func(Status) bool) Status {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s := r.Status()
		if met(s) {
			return s
		}
		if time.Now().After(deadline) {
			requests := r.cloud.Requests()
			t.Fatalf("no %s: %+v\n%s\n%s", what, s,
				strings.Join(requests[max(0, len(requests)-10):], "\n"), r.log)
		}
	}
}

// awaitInPlace waits until the routes are in place and without an error.
func (r *rig) awaitInPlace(t *testing.T) Status {
	t.Helper()
	return r.await(t, "routes", func(s Status) bool { return s.InPlace && s.Err == nil })
}

// awaitError waits for an error of a kind.
func (r *rig) awaitError(t *testing.T, kind Kind) string {
	t.Helper()
	s := r.await(t, "error "+string(kind), func(s Status) bool {
		return s.Err != nil && kindOf(s.Err) == kind
	})
	return s.Err.Error()
}

// awaitRoutes waits until a table has these routes.
func (r *rig) awaitRoutes(t *testing.T, table string, want ...string) {
	t.Helper()
	slices.Sort(want)
	r.await(t, table+" "+strings.Join(want, ", "), func(Status) bool {
		return slices.Equal(r.cloud.Routes(table), want)
	})
}

// wantText compares a text with a part that it must have.
func wantText(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
