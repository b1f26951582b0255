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

// commandTimeout bounds a command of the extension backend, which holds up the reconciler.
const commandTimeout = time.Minute

// runCommand runs a command line of the extension backend with the variables of env, NAME=value lines, added to ours,
// and gives what it printed, trimmed. stdin gets a newline at its end, as flannel does it.
func runCommand(ctx context.Context, line, env, stdin string) (string, error) {
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
	ctx, cancel := context.WithTimeoutCause(ctx, commandTimeout, fmt.Errorf("no end after %v", commandTimeout))
	defer cancel()
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	c.Env = os.Environ()
	for name, value := range vars {
		c.Env = append(c.Env, name+"="+value)
	}
	c.Stdin = strings.NewReader(stdin + "\n")
	c.WaitDelay = time.Second // a child that keeps our pipes open must not hold us
	var printed, complaint bytes.Buffer
	c.Stdout, c.Stderr = &printed, &complaint
	if err := c.Run(); err != nil {
		return "", errors.Join(fmt.Errorf("run %q: %w: %s", words[0], err, bytes.TrimSpace(complaint.Bytes())), context.Cause(ctx))
	}
	return strings.TrimSpace(printed.String()), nil
}
