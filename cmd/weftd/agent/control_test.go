package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/cmd/control"
	"weft/cmd/weftd/config"
)

// startTestControl serves the control socket of a daemon and returns a function that stops it.
func startTestControl(t *testing.T, d *daemon, endpoints ...endpoint) (stop func()) {
	t.Helper()
	c, err := listenControl(t.Context(), d.cfg.Control.Socket, d.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.run(ctx, append(d.endpoints(), endpoints...)) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func controlDaemon(t *testing.T) *daemon {
	return &daemon{
		cfg:      &config.Config{Control: config.Control{Socket: filepath.Join(t.TempDir(), "weft", "s")}},
		log:      slog.New(slog.DiscardHandler),
		nodeName: "n1",
	}
}

func TestControlSocket(t *testing.T) {
	d := controlDaemon(t)
	path := d.cfg.Control.Socket
	stop := startTestControl(t, d)
	if s, err := control.NewClient(path).Status(t.Context()); err != nil || s.Node != "n1" || s.Ready {
		t.Errorf("%+v, %v", s, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v, want a socket of mode 0600", info.Mode(), err)
	}
	stop()
	if _, err := control.NewClient(path).Status(t.Context()); !errors.Is(err, control.ErrNoDaemon) {
		t.Errorf("stopped: %v", err)
	}
}

// A daemon that was killed leaves its socket behind; one that runs keeps it.
func TestControlSocketOfOtherDaemon(t *testing.T) {
	d := controlDaemon(t)
	path := d.cfg.Control.Socket
	killed, err := listenControl(t.Context(), path, d.log)
	if err != nil {
		t.Fatal(err)
	}
	killed.listener.Close()
	killed.lock.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	stop := startTestControl(t, d)
	if c, err := listenControl(t.Context(), path, d.log); !errors.Is(err, errSocketInUse) {
		t.Errorf("%v, %v, want %v", c, err, errSocketInUse)
	}
	if c := d.startControl(t.Context()); c != nil {
		t.Error("the daemon has a socket of another one")
	}
	if _, err := control.NewClient(path).Status(t.Context()); err != nil {
		t.Error("after the attempt of another daemon:", err)
	}
	stop()
}

func TestControlSocketRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                     "not a socket",
		filepath.Join(file, "x"): "not a directory",
		filepath.Join(dir, strings.Repeat("x", 200)): "invalid argument",
	} {
		if c, err := listenControl(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %q", path, c, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

// A stream ends with the daemon, at once.
func TestControlStreamEnds(t *testing.T) {
	d := controlDaemon(t)
	stop := startTestControl(t, d, endpoint{"GET /v1/endless", http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})})
	body, err := control.NewClient(d.cfg.Control.Socket).Stream(t.Context(), "/v1/endless", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	begin := time.Now()
	stop()
	if _, err := io.ReadAll(body); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > shutdownTimeout {
		t.Errorf("took %v", took)
	}
}
