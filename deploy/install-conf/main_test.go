package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const conf = `{"name": "cbr0", "cniVersion": "0.3.1", "plugins": []}`

// files creates a source with the given content and returns its path and that of the target.
func files(t *testing.T, source string) (string, string) {
	t.Helper()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "cni-conf.json"), filepath.Join(t.TempDir(), "10-flannel.conflist")
	write(t, from, source)
	return from, to
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func TestCopy(t *testing.T) {
	from, to := files(t, conf)
	write(t, to, "old")
	var log bytes.Buffer
	if code := run(t.Context(), []string{from, to}, &log); code != 0 {
		t.Fatalf("exit code %d: %s", code, &log)
	}
	if got := read(to); got != conf {
		t.Errorf("target holds %q", got)
	}
	info, err := os.Stat(to)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(to))
	if err != nil || len(entries) != 1 {
		t.Errorf("directory of the target: %v, %v; want only the target", entries, err)
	}
}

func TestCopyFailed(t *testing.T) {
	for name, arguments := range map[string]func(from, to string) []string{
		"no source":    func(_, to string) []string { return []string{to + "-none", to} },
		"not JSON":     func(from, to string) []string { write(t, from, `{"name":`); return []string{from, to} },
		"no directory": func(from, to string) []string { return []string{from, filepath.Join(to, "x", "y")} },
		"one file":     func(from, _ string) []string { return []string{from} },
		"three files":  func(from, to string) []string { return []string{from, to, to} },
	} {
		t.Run(name, func(t *testing.T) {
			from, to := files(t, conf)
			write(t, to, "old")
			var log bytes.Buffer
			if code := run(t.Context(), arguments(from, to), &log); code == 0 || log.Len() == 0 {
				t.Errorf("exit code %d, logged %q", code, &log)
			}
			if got := read(to); got != "old" {
				t.Errorf("target holds %q", got)
			}
		})
	}
}

// start runs an installer with a short interval until the test ends.
func start(t *testing.T, i installer) {
	t.Helper()
	i.interval, i.log = time.Millisecond, &bytes.Buffer{}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := i.run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
}

// eventually waits until ok returns true.
func eventually(t *testing.T, desc string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("no %s within 20 s", desc)
		}
	}
}

func TestWaitReady(t *testing.T) {
	from, to := files(t, conf)
	var ready atomic.Bool
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		if !ready.Load() {
			http.Error(w, "lease: no subnet yet", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	url, err := parseReady(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	start(t, installer{source: from, target: to, ready: url})
	eventually(t, "requests", func() bool { return requests.Load() > 3 })
	if read(to) != "" {
		t.Fatal("installed before the daemon was ready")
	}
	ready.Store(true)
	eventually(t, "config", func() bool { return read(to) == conf })
}

func TestReadyRejected(t *testing.T) {
	for _, value := range []string{"", "127.0.0.1:8081", "https://127.0.0.1/readyz", "http:///readyz"} {
		var log bytes.Buffer
		code := run(t.Context(), []string{"--ready=" + value, "a", "b"}, &log)
		if code != 2 || !strings.Contains(log.String(), "want http://HOST:PORT/PATH") {
			t.Errorf("%q: exit code %d, %s", value, code, log.String())
		}
	}
}

func TestHold(t *testing.T) {
	from, to := files(t, conf)
	start(t, installer{source: from, target: to, hold: true})
	eventually(t, "config", func() bool { return read(to) == conf })
	if err := os.Remove(to); err != nil {
		t.Fatal(err)
	}
	eventually(t, "restored config after removal", func() bool { return read(to) == conf })
	write(t, to, "overwritten")
	eventually(t, "restored config after overwriting", func() bool { return read(to) == conf })
	changed := strings.Replace(conf, "cbr0", "cbr1", 1)
	write(t, from, changed)
	eventually(t, "changed config", func() bool { return read(to) == changed })
}
