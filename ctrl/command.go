package ctrl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// commandTimeout bounds a command of the extension backend, because the reconciler waits for
	// it.
	commandTimeout = time.Minute
	// shutdownTimeout bounds all shutdown commands together. It leaves time of the 30 seconds
	// after which Kubernetes kills a daemon.
	shutdownTimeout = 10 * time.Second
	// maxCommandOutput bounds the standard output of a command, in bytes. It is published in the
	// lease, and etcd and Kubernetes limit that to 1.5 MiB and 256 KiB.
	maxCommandOutput = 64 << 10
	// maxCommandError bounds the part of the standard error in an error text, in bytes.
	maxCommandError = 4 << 10
)

// RunCommand runs a command line of the extension backend and returns its trimmed output. It is
// split into words as a shell does; if it has pipes, lists, redirection or substitution, sh runs
// it. env, NAME=value lines, extends the environment of this process. stdin is passed with a
// trailing newline, as in flannel. The command and its children are killed when ctx is done, after
// a minute, or if the output exceeds 64 KiB; each is an error.
func RunCommand(ctx context.Context, line, env, stdin string) (string, error) {
	vars := map[string]string{}
	for l := range strings.Lines(env) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(l, "\n"), "="); ok {
			vars[name] = value
		}
	}
	words, err := commandWords(line, func(name string) string {
		if v, ok := vars[name]; ok {
			return v
		}
		return os.Getenv(name)
	})
	if err != nil || len(words) == 0 {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, commandTimeout,
		fmt.Errorf("still running after %v", commandTimeout))
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	c.Env = os.Environ()
	for name, value := range vars {
		c.Env = append(c.Env, name+"="+value)
	}
	c.Stdin = strings.NewReader(stdin + "\n")
	killGroup(c)
	c.WaitDelay = time.Second // do not wait for a child that keeps the pipes open
	stdout := boundedOutput{limit: maxCommandOutput, exceeded: func() {
		abort(fmt.Errorf("output exceeds %d bytes", maxCommandOutput))
	}}
	stderr := boundedOutput{limit: maxCommandError, exceeded: func() {}}
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := errors.Join(c.Run(), context.Cause(ctx)); err != nil {
		return "", fmt.Errorf("run %q: %w: %s", words[0], err, bytes.TrimSpace(stderr.kept.Bytes()))
	}
	return strings.TrimSpace(stdout.kept.String()), nil
}

// killGroup makes the end of c's context kill the children of the command, too: a shell leaves
// them running.
func killGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
}

// boundedOutput keeps the first bytes that are written and discards the rest.
type boundedOutput struct {
	kept     bytes.Buffer
	limit    int    // bytes to keep
	exceeded func() // called when bytes are discarded
}

// Write never fails, so that the command does not.
func (b *boundedOutput) Write(p []byte) (int, error) {
	free := b.limit - b.kept.Len()
	b.kept.Write(p[:min(len(p), free)])
	if len(p) > free {
		b.exceeded()
	}
	return len(p), nil
}
