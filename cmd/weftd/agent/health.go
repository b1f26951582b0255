package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/cmd/weftd/config"
	"weft/metrics"
)

// healthServer serves /healthz, /readyz, /status and /metrics. It starts before the other parts and
// reads the daemon's status per request.
type healthServer struct {
	listener net.Listener
	server   *http.Server
}

const (
	// readHeaderTimeout limits the time that a client takes to send the header of a request.
	readHeaderTimeout = 5 * time.Second
	// shutdownTimeout limits the time for responses in progress at exit. A response takes
	// milliseconds, and the whole daemon must exit within two seconds.
	shutdownTimeout = 500 * time.Millisecond
)

// listenHealth listens on the address of --healthz-ip and --healthz-port.
func listenHealth(
	ctx context.Context, c config.Health, current func() Status, log *slog.Logger,
) (*healthServer, error) {
	address := net.JoinHostPort(c.IP, strconv.Itoa(c.Port))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--healthz-port: port %d is in use, cannot listen on %s",
			c.Port, address)
	}
	if err != nil {
		return nil, fmt.Errorf("--healthz-ip, --healthz-port: %w", err)
	}
	return &healthServer{
		listener: l,
		server: &http.Server{
			Handler:           healthHandler(current, c.Profile, log),
			ReadHeaderTimeout: readHeaderTimeout,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// run serves until ctx is done.
func (h *healthServer) run(ctx context.Context) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := h.server.Shutdown(ctx)
		if err != nil {
			err = h.server.Close()
		}
		stopped <- err
	})
	if err := h.server.Serve(h.listener); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("health server: %w", err)
	}
	return <-stopped
}

// healthHandler returns the handler of all paths. The status codes are flannel's.
func healthHandler(current func() Status, profile bool, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "weftd is running\n")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		answerReady(w, current())
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		answerStatus(w, current())
	})
	mux.Handle("/metrics", metrics.Handler(metrics.Options{
		Build: current().Build,
		Read:  func() metrics.Snapshot { return current().metrics() },
		Log:   log,
	}))
	if profile {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// answerReady writes the readiness and the reasons of the conditions that are not met.
func answerReady(w http.ResponseWriter, s Status) {
	if s.Ready {
		answer(w, http.StatusOK, "weftd is ready\n")
		return
	}
	var b strings.Builder
	b.WriteString("weftd is not ready yet\n")
	for _, c := range s.Conditions {
		if !c.OK {
			fmt.Fprintf(&b, "%s: %s\n", c.Name, c.Reason)
		}
	}
	answer(w, http.StatusServiceUnavailable, b.String())
}

func answerStatus(w http.ResponseWriter, s Status) {
	body, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		answer(w, http.StatusInternalServerError, err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	answer(w, http.StatusOK, string(body)+"\n")
}

func answer(w http.ResponseWriter, code int, body string) {
	w.WriteHeader(code)
	// An error means that the client is gone, which does not concern the daemon.
	_, _ = io.WriteString(w, body)
}
