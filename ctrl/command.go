package ctrl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// commandTimeout bounds a command of the extension backend, because the reconciler waits for it.
const commandTimeout = time.Minute

// RunCommand runs a command line of the extension backend and returns its trimmed output. env,
// NAME=value lines, extends the environment of this process. stdin is passed with a trailing
// newline, as in flannel.
func RunCommand(ctx context.Context, line, env, stdin string) (string, error) {
	vars := map[string]string{}
	for l := range strings.Lines(env) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(l, "\n"), "="); ok {
			vars[name] = value
		}
	}
	words, err := splitCommand(line, func(name string) string {
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
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	c.Env = os.Environ()
	for name, value := range vars {
		c.Env = append(c.Env, name+"="+value)
	}
	c.Stdin = strings.NewReader(stdin + "\n")
	c.WaitDelay = time.Second // do not wait for a child that keeps the pipes open
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", errors.Join(fmt.Errorf("run %q: %w: %s", words[0], err,
			bytes.TrimSpace(stderr.Bytes())), context.Cause(ctx))
	}
	return strings.TrimSpace(stdout.String()), nil
}
