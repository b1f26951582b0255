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
	"syscall"
	"time"

	"weft/cmd/control"
	"weft/cmd/weftd/config"
	"weft/cmd/weftd/page"
	"weft/metrics"
)

// healthServer serves /healthz, /readyz, /status and /metrics. It starts before the other parts and
// reads the daemon's state per request.
//
// Every pod can reach it, so clients share bounded resources: connections (boundedListener), times
// and header sizes (below), and memory (oneByOne).
type healthServer struct {
	listener net.Listener
	server   *http.Server
}

const (
	// readHeaderTimeout limits the time that a client takes to send the header of a request.
	readHeaderTimeout = 5 * time.Second
	// idleTimeout limits the time between two requests on a connection. Prometheus opens a new one
	// if its interval is longer.
	idleTimeout = 30 * time.Second
	// writeTimeout limits the time of a response, except for profiles.
	writeTimeout = 10 * time.Second
	// maxHeaderBytes is many times the size of the header of a scrape.
	maxHeaderBytes = 16 << 10
	// shutdownTimeout limits the time for responses in progress at exit. A response takes
	// milliseconds, and the whole daemon must exit within two seconds.
	shutdownTimeout = 500 * time.Millisecond
)

// healthSource is the state that the health server shows.
type healthSource interface {
	// conditions returns the conditions of readiness. It costs little, however many nodes there
	// are.
	conditions() []control.Condition
	status() control.Status
	// watchForNodes answers a request for [control.TracePath].
	watchForNodes(http.ResponseWriter, *http.Request)
}

// listenHealth listens on the address of --healthz-ip and --healthz-port and keeps at most
// connections open.
func listenHealth(
	ctx context.Context, c config.Health, connections int, s healthSource, log *slog.Logger,
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
		listener: &boundedListener{Listener: l, limit: connections},
		server:   newServer(healthHandler(c, s, log), log),
	}, nil
}

// newServer returns a server with the limits above.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// run serves until ctx is done.
func (h *healthServer) run(ctx context.Context) error {
	if err := serve(ctx, h.server, h.listener); err != nil {
		return fmt.Errorf("health server: %w", err)
	}
	return nil
}

// serve runs a server until ctx is done.
func serve(ctx context.Context, server *http.Server, l net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		err := server.Shutdown(ctx)
		if err != nil {
			err = server.Close()
		}
		stopped <- err
	})
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	return <-stopped
}

// healthHandler returns the handler of all paths. The status codes are flannel's.
func healthHandler(c config.Health, s healthSource, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	page := func(path string, h http.Handler) { mux.Handle(path, withDeadline(h)) }
	page("/healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "weftd is running\n")
	}))
	page("/readyz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answerReady(w, s.conditions())
	}))
	details := newOneByOne(statusHandler(s.status))
	page("/status", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r) {
			answerJSON(w, newSummary(s.conditions()))
			return
		}
		details.ServeHTTP(w, r)
	}))
	scrape := newOneByOne(metricsHandler(s, log))
	switch c.Metrics {
	case config.ClientsAll:
		page("/metrics", scrape)
	case config.ClientsLocal:
		page("/metrics", localOnly(scrape))
	}
	// A row tells no more than the metrics, so it is for the same clients. Without it, the answer
	// is another than that of a daemon that does not know the path.
	var row http.Handler = newOneByOne(rowHandler(s.status))
	var traces http.Handler = http.HandlerFunc(s.watchForNodes)
	if c.Metrics != config.ClientsAll {
		row, traces = localOnly(row), localOnly(traces)
	}
	page("GET "+control.RowPath, row)
	page("GET "+control.TracePath, traces)
	handlePage(page, c, details, newOneByOne(newMatrix(s.status, fixedPort(c.Port))))
	if c.Profile {
		handleProfiles(mux)
	}
	return mux
}

// handlePage adds the status page, the status and the matrix that it reads for the clients that may
// have them.
func handlePage(add func(string, http.Handler), c config.Health, status, matrix http.Handler) {
	if c.Page != config.ClientsAll && c.Page != config.ClientsLocal {
		return
	}
	handlers := page.Handlers()
	handlers["GET "+control.StatusPath] = status
	handlers["GET "+control.ClusterPath] = matrix
	for pattern, h := range handlers {
		if c.Page == config.ClientsLocal {
			h = localOnly(h)
		}
		add(pattern, h)
	}
}

// metricsHandler returns the handler for the metrics.
func metricsHandler(s healthSource, log *slog.Logger) http.Handler {
	return metrics.Handler(metrics.Options{
		Build: s.status().Build,
		Read:  func() metrics.Snapshot { return metricsSnapshot(s.status()) },
		Log:   log,
	})
}

// handleProfiles adds the profiles, without a deadline: they take as long as the client asks for.
// They are for local clients, as the command line may hold a password.
func handleProfiles(mux *http.ServeMux) {
	for path, h := range map[string]http.HandlerFunc{
		"/debug/pprof/":        pprof.Index,
		"/debug/pprof/cmdline": pprof.Cmdline,
		"/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol":  pprof.Symbol,
		"/debug/pprof/trace":   pprof.Trace,
	} {
		mux.Handle(path, localOnly(h))
	}
}

// withDeadline limits the time for writing the response of h.
func withDeadline(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Only a ResponseWriter without a connection, as of a test, has no deadline.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
		h.ServeHTTP(w, r)
	})
}

// summary is the part of the status that all clients may read: no addresses and names of nodes.
type summary struct {
	Ready      bool                `json:"ready"`
	Conditions []control.Condition `json:"conditions"`
	Note       string              `json:"note"`
}

func newSummary(conditions []control.Condition) summary {
	ready, _ := allMet(conditions)
	return summary{
		Ready: ready, Conditions: conditions,
		Note: "the full status is for clients on this node",
	}
}

// answerReady writes the readiness, and the reasons of the conditions that are not met, or the
// notes if all are met.
func answerReady(w http.ResponseWriter, conditions []control.Condition) {
	ready, _ := allMet(conditions)
	code, text := http.StatusOK, "weftd is ready\n"
	if !ready {
		code, text = http.StatusServiceUnavailable, "weftd is not ready yet\n"
	}
	for _, c := range conditions {
		if c.OK == ready && c.Reason != "" {
			text += c.Name + ": " + c.Reason + "\n"
		}
	}
	answer(w, code, text)
}

func answerJSON(w http.ResponseWriter, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		answer(w, http.StatusInternalServerError, err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// The body has megabytes in a large cluster, so it is not copied. An error means that the
	// client is gone, which does not concern the daemon.
	_, _ = w.Write(append(body, '\n'))
}

func answer(w http.ResponseWriter, code int, body string) {
	w.WriteHeader(code)
	// An error means that the client is gone, which does not concern the daemon.
	_, _ = io.WriteString(w, body)
}
