// Command install-conf puts the CNI config where the kubelet looks for it. With two arguments it is flannel's install-conf:
// one atomic copy. With --ready it waits first until the daemon is ready, so that no pod starts before its network is up,
// and with --hold it stays and puts the file there again whenever it is gone or is another.
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
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const usage = `install-conf [--ready URL] [--hold] SOURCE TARGET

Copies a CNI config atomically.

  --ready  wait until a GET of this URL is answered with 200
  --hold   stay, and copy again when either file has changed
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// installer is what the command line asks for.
type installer struct {
	source, target string
	ready          string // URL; empty: do not wait
	hold           bool
	every          time.Duration // between two looks at what is waited for
	log            io.Writer
	said           string // the trouble said last
}

// run returns the exit code: 0 when all is done or a signal ended it.
func run(ctx context.Context, args []string, log io.Writer) int {
	i := installer{every: time.Second, log: log}
	flags := flag.NewFlagSet("install-conf", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.Usage = func() { fmt.Fprint(log, usage) }
	flags.StringVar(&i.ready, "ready", "", "")
	flags.BoolVar(&i.hold, "hold", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() != 2:
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
	if i.ready != "" && !i.await(ctx) {
		return nil
	}
	if !i.hold {
		_, err := i.install()
		return err
	}
	for {
		changed, err := i.install()
		i.say(err)
		if changed {
			fmt.Fprintln(i.log, "install-conf: wrote", i.target)
		}
		if !i.pause(ctx) {
			return nil
		}
	}
}

// await returns true when the URL is answered with 200, false when ctx has ended.
func (i *installer) await(ctx context.Context) bool {
	for {
		err := ask(ctx, i.ready)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			i.say(err)
		}
		if !i.pause(ctx) {
			return false
		}
	}
}

// askTimeout bounds one question, and longest what is read of its answer.
const (
	askTimeout = 5 * time.Second
	longest    = 4 << 10
)

func ask(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, longest))
	return errors.Join(fmt.Errorf("%s: %s: %s", url, answer.Status, bytes.TrimSpace(b)), err)
}

// pause waits for the next look; false says that ctx has ended.
func (i *installer) pause(ctx context.Context) bool {
	t := time.NewTimer(i.every)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// say writes trouble once for as long as it stays the same.
func (i *installer) say(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != i.said {
		fmt.Fprintln(i.log, "install-conf: waiting:", text)
	}
	i.said = text
}

// install makes the target hold what the source does. changed is false if it does already.
func (i *installer) install() (changed bool, err error) {
	b, err := os.ReadFile(i.source)
	if err != nil {
		return false, err
	}
	if !json.Valid(b) {
		return false, fmt.Errorf("%s is not JSON, nothing is installed", i.source)
	}
	have, err := os.ReadFile(i.target)
	if err == nil && bytes.Equal(have, b) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, replace(i.target, b)
}

// replace writes a file by way of a hidden one beside it: what reads the folder sees the old file or the new one.
func replace(path string, b []byte) (err error) {
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
	// The mode is for others to read, whatever the umask.
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
