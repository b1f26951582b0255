package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"weft/cmd/control"
	"weft/cmd/weftd/page"
)

// endpoint is a path of the control socket. pattern is one of [http.ServeMux].
type endpoint struct {
	pattern string
	handler http.Handler
}

// endpoints returns the paths of the control socket. A handler may stream; it ends when the
// context of its request is done.
func (d *daemon) endpoints() []endpoint {
	all := []endpoint{
		{"GET " + control.StatusPath, withDeadline(statusHandler(d.statusWithDifferences))},
		{"GET " + control.MetricsPath, withDeadline(metricsHandler(d, d.log))},
		{"GET " + control.CapturePath, http.HandlerFunc(d.serveCapture)},
		{"GET " + control.LeaseEntryPath, withDeadline(http.HandlerFunc(d.serveLeaseEntry))},
		{"GET " + control.TopPath, http.HandlerFunc(d.serveTop)},
		{"GET " + control.TracePath, http.HandlerFunc(d.watchPackets)},
		{"GET " + control.RowPath, withDeadline(rowHandler(d.status))},
		{"GET " + control.ClusterPath,
			withDeadline(newMatrix(d.status, requestedPort(d.cfg.Health.Port)))},
	}
	for pattern, h := range page.Handlers() {
		all = append(all, endpoint{pattern, withDeadline(h)})
	}
	return all
}

// maxDifferences bounds the differences in a status.
const maxDifferences = 50

// statusWithDifferences returns the status with a comparison of the kernel's state.
func (d *daemon) statusWithDifferences() control.Status {
	status := d.status()
	if s := d.snapshot.Load(); s != nil && s.reconciler != nil {
		var err error
		if status.Kernel.Differences, err = s.reconciler.Differences(maxDifferences); err != nil {
			status.Kernel.Error = err.Error()
		}
	}
	return status
}

// statusHandler answers with the result of read, or the nodes that the request asks for.
func statusHandler(read func() control.Status) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := read()
		if err := s.Select(r.URL.Query()); err != nil {
			answer(w, http.StatusBadRequest, err.Error()+"\n")
			return
		}
		answerJSON(w, s)
	})
}

// controlServer serves the control socket.
type controlServer struct {
	path     string
	listener net.Listener
	lock     *os.File // held while the socket is in use
	log      *slog.Logger
}

// errSocketInUse means that another daemon serves the control socket.
var errSocketInUse = errors.New("another daemon uses it: " +
	"give one of them another --control-socket")

// listenControl creates the control socket, with access for its owner only. A socket that a killed
// daemon left behind is replaced; the lock tells it from one in use.
func listenControl(ctx context.Context, path string, log *slog.Logger) (*controlServer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errSocketInUse
	}
	var l net.Listener
	if err == nil {
		l, err = listenPrivate(ctx, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), lock.Close())
	}
	return &controlServer{path, l, lock, log}, nil
}

// listenPrivate listens on a socket that appears at path with its final mode.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("exists and is not a socket")
	}
	first := path + ".new"
	if err := os.Remove(first); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", first)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would remove first
	err = os.Chmod(first, 0o600)
	if err == nil {
		err = os.Rename(first, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// run serves the endpoints until ctx is done.
func (c *controlServer) run(ctx context.Context, endpoints []endpoint) error {
	mux := http.NewServeMux()
	for _, e := range endpoints {
		mux.Handle(e.pattern, e.handler)
	}
	server := newServer(mux, c.log)
	// A stream has no end of its own.
	server.BaseContext = func(net.Listener) context.Context { return ctx }
	err := serve(ctx, server, c.listener)
	if err != nil {
		err = fmt.Errorf("control socket: %w", err)
	}
	return errors.Join(err, os.Remove(c.path), c.lock.Close())
}

// startControl opens the control socket of --control-socket; it returns nil if that is empty or
// fails. The daemon carries packets without one, and two daemons may share a node.
func (d *daemon) startControl(ctx context.Context) *controlServer {
	path := d.cfg.Control.Socket
	if path == "" {
		return nil
	}
	c, err := listenControl(ctx, path, d.log)
	if err != nil {
		d.log.Warn("no control socket: weft cannot ask this daemon", "err", err)
		return nil
	}
	return c
}
