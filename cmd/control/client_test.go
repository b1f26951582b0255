package control

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// serve serves a handler on a socket and returns its path.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
	return path
}

func TestClientStatus(t *testing.T) {
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != StatusPath {
			t.Errorf("path %s", r.URL.Path)
		}
		_, _ = io.WriteString(w, `{"node":"n1","added_later":1}`)
	})
	if s, err := NewClient(path).Status(t.Context()); err != nil || s.Node != "n1" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestClientErrors(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mute, err := net.Listen("unix", filepath.Join(dir, "mute")) // as a daemon that is stopped
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for _, c := range []struct {
		name, path string
		want       error
		text       string
	}{
		{"mute", mute.Addr().String(), ErrNoAnswer, ""},
		{"absent", filepath.Join(dir, "absent"), ErrNoDaemon, ""},
		{"stale", stale, ErrNoDaemon, ""},
		{"not a socket", file, ErrNoDaemon, ""},
		{"older daemon", serve(t, http.NotFound), ErrUnknownPath, ""},
		{"failure", serve(t, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no engine", http.StatusConflict)
		}), nil, "409 Conflict: no engine"},
		{"not JSON", serve(t, func(http.ResponseWriter, *http.Request) {}), io.EOF, "invalid answer"},
	} {
		_, err := NewClient(c.path).Status(t.Context())
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) ||
			!strings.HasPrefix(err.Error(), c.path+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
