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

// healthServer answers /healthz, /readyz, /status and /metrics. It starts
// before anything else is known and asks for the daemon's state at each request.
type healthServer struct {
	listener net.Listener
	server   *http.Server
}

const (
	// slowestHeader is how long a client may take to send its request's header.
	slowestHeader = 5 * time.Second
	// healthStop is how long answers under way may take at the end: an answer is
	// made in milliseconds, and the whole daemon is to be gone in two seconds.
	healthStop = 500 * time.Millisecond
)

// listenHealth binds the address that --healthz-ip and --healthz-port name.
func listenHealth(ctx context.Context, c config.Health, current func() Status, log *slog.Logger) (*healthServer, error) {
	address := net.JoinHostPort(c.IP, strconv.Itoa(c.Port))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--healthz-port: port %d is in use, nothing can listen on %s", c.Port, address)
	}
	if err != nil {
		return nil, fmt.Errorf("--healthz-ip, --healthz-port: %w", err)
	}
	return &healthServer{
		listener: l,
		server: &http.Server{
			Handler:           healthHandler(current, c.Profile, log),
			ReadHeaderTimeout: slowestHeader,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// run serves until ctx ends.
func (h *healthServer) run(ctx context.Context) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthStop)
		defer cancel()
		err := h.server.Shutdown(limit)
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

// healthHandler routes the paths. Status codes are flannel's; the texts say more.
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

// answerReady says whether every condition holds, and why one does not.
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
	// The client may be gone by now, which is no concern of the daemon's.
	_, _ = io.WriteString(w, body)
}
