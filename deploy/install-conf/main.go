// Command install-conf copies the CNI config to the directory where the kubelet reads it. With two
// arguments it behaves as flannel's install-conf: one atomic copy. With --ready it first waits
// until the daemon is ready, so that no pod starts before its network is up. With --hold it keeps
// running and restores the file whenever it is missing or differs.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const usage = `install-conf [--ready URL] [--hold] SOURCE TARGET
install-conf --plugins DIR

Copies a CNI config atomically, or the image's CNI plugins to a directory of the node.

  --ready    first wait until a GET of this URL returns 200
  --hold     keep running, and copy again when either file changes
  --plugins  directory for the CNI plugins; those it already has stay, unless they are older versions
`

// imagePlugins is the directory with the CNI plugins in the image.
const imagePlugins = "/usr/lib/cni"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// installer holds the command line and the state of the command.
type installer struct {
	source, target string
	ready          *url.URL // nil: do not wait
	hold           bool
	plugins        string // directory for the CNI plugins; empty: install the config
	pluginSource   string
	interval       time.Duration // between polls of the URL or the files
	log            io.Writer
	lastLogged     string // last error logged; empty after success
}

// run returns the exit code: 0 when the copy is done or a signal ended it.
func run(ctx context.Context, args []string, log io.Writer) int {
	i := installer{interval: time.Second, pluginSource: imagePlugins, log: log}
	flags := flag.NewFlagSet("install-conf", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.Usage = func() { fmt.Fprint(log, usage) }
	flags.Func("ready", "", func(s string) (err error) {
		i.ready, err = parseReady(s)
		return err
	})
	flags.BoolVar(&i.hold, "hold", false, "")
	flags.StringVar(&i.plugins, "plugins", "", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case i.plugins == "" && flags.NArg() != 2, i.plugins != "" && flags.NArg()+flags.NFlag() != 1:
		flags.Usage()
		return 2
	}
	i.source, i.target = flags.Arg(0), flags.Arg(1)
	if err := i.run(ctx); err != nil {
		fmt.Fprintln(log, "install-conf:", err)
		return 1
	}
	return 0
}

func (i *installer) run(ctx context.Context) error {
	if i.plugins != "" {
		return i.installPlugins()
	}
	if i.ready != nil && !i.waitReady(ctx) {
		return nil
	}
	if !i.hold {
		_, err := i.install()
		return err
	}
	for {
		changed, err := i.install()
		i.logOnce(err)
		if changed {
			fmt.Fprintln(i.log, "install-conf: wrote", i.target)
		}
		if !i.sleep(ctx) {
			return nil
		}
	}
}

// waitReady returns true when the URL returns 200, false when ctx ends.
func (i *installer) waitReady(ctx context.Context) bool {
	for {
		err := checkReady(ctx, i.ready)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			i.logOnce(err)
		}
		if !i.sleep(ctx) {
			return false
		}
	}
}

// Bounds of one readiness request: its duration, and the bytes read of its response.
const (
	requestTimeout = 5 * time.Second
	maxBody        = 4 << 10
)

// parseReady parses the value of --ready.
func parseReady(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		return nil, errors.New("want http://HOST:PORT/PATH")
	}
	return u, nil
}

// checkReady returns nil if a GET of the URL returns 200. It speaks HTTP/1.0 by itself: net/http
// would add 3 MB to the image.
func checkReady(ctx context.Context, u *url.URL) error {
	port := u.Port()
	if port == "" {
		port = "80"
	}
	d := net.Dialer{Timeout: requestTimeout}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host); err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxBody))
	status, rest, _ := strings.Cut(string(answer), "\r\n")
	version, status, _ := strings.Cut(status, " ")
	switch {
	case !strings.HasPrefix(version, "HTTP/1."):
		return errors.Join(fmt.Errorf("%s: no HTTP answer", u), err)
	case strings.HasPrefix(status, "200 "):
		return nil
	}
	_, body, _ := strings.Cut(rest, "\r\n\r\n")
	return errors.Join(fmt.Errorf("%s: %s: %s", u, status, strings.TrimSpace(body)), err)
}

// sleep waits for the interval; it returns false if ctx ended.
func (i *installer) sleep(ctx context.Context) bool {
	t := time.NewTimer(i.interval)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// logOnce logs an error once while it lasts.
func (i *installer) logOnce(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != i.lastLogged {
		fmt.Fprintln(i.log, "install-conf: waiting:", text)
	}
	i.lastLogged = text
}

// install copies the source to the target. changed is false if they are already equal.
func (i *installer) install() (changed bool, err error) {
	b, err := os.ReadFile(i.source)
	if err != nil {
		return false, err
	}
	if !json.Valid(b) {
		return false, fmt.Errorf("%s: not valid JSON; target left unchanged", i.source)
	}
	old, err := os.ReadFile(i.target)
	if err == nil && bytes.Equal(old, b) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, replace(i.target, b, 0o644)
}

// replace writes a file by renaming a hidden temporary file in the same directory, so that a reader
// sees the old content or the new one.
func replace(path string, b []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	// Readable by all users, regardless of the umask.
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
