package ctrl

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Apply performs the operations in order and returns an error for each, nil on success. Deleting a
// missing object succeeds. Consecutive routes, neighbours and forwarding entries are sent in
// batches, and so are consecutive WireGuard peers.
func (k *Kernel) Apply(ctx context.Context, ops []Op) []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, 0, len(ops))
	for len(ops) > 0 {
		n, apply := 1, k.applyBatch
		switch {
		case batchable(ops[0]):
			n = prefixLen(ops, batchable)
		case isPeer(ops[0]):
			n, apply = prefixLen(ops, isPeer), k.wg.applyPeers
		default:
			apply = func(ops []Op) []error {
				return []error{retryInterrupted(func() error { return k.applyOne(ctx, ops[0]) })}
			}
		}
		for i, err := range apply(ops[:n]) {
			if err != nil {
				err = fmt.Errorf("%s: %w", ops[i], err)
			}
			errs = append(errs, err)
		}
		ops = ops[n:]
	}
	return errs
}

// prefixLen returns how many leading operations match; the first is known to.
func prefixLen(ops []Op, match func(Op) bool) int {
	n := 1
	for n < len(ops) && match(ops[n]) {
		n++
	}
	return n
}

func isPeer(o Op) bool {
	_, ok := o.Object.(Peer)
	return ok
}

// applyOne performs an operation that cannot be batched.
func (k *Kernel) applyOne(ctx context.Context, o Op) error {
	switch x := o.Object.(type) {
	case Link:
		return k.applyLink(o.Verb, x)
	case Addr:
		return k.applyAddr(o.Verb, x)
	case FOUPort:
		return k.applyFOU(o.Verb, x)
	case Tunnel:
		return k.wg.setTunnel(x)
	case Policy:
		return k.applyPolicy(o.Verb, x)
	case Association:
		return k.deleteAssociations(x)
	case Command:
		return k.applyCommand(ctx, o.Verb, x)
	}
	return fmt.Errorf("%w: %T", errors.ErrUnsupported, o.Object)
}

func (k *Kernel) applyAddr(v Verb, a Addr) error {
	l, err := k.h.LinkByName(a.Dev)
	if err != nil {
		return err
	}
	n := &netlink.Addr{IPNet: ipNet(a.Prefix)}
	if v == Delete {
		if err := k.h.AddrDel(l, n); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil
	}
	return k.h.AddrReplace(l, n)
}

// applyCommand runs a command of the extension backend and records that it was run.
func (k *Kernel) applyCommand(ctx context.Context, v Verb, c Command) error {
	line := c.Add
	if v == Delete {
		line = c.Remove
	}
	if _, err := RunCommand(ctx, line, c.Env, c.Stdin); err != nil {
		return err
	}
	if v == Delete {
		delete(k.ran, c.ID)
	} else {
		k.ran[c.ID] = c
	}
	return nil
}

// RemoveCommands runs the removal of the extension backend's commands that were run, as if no plan
// wanted them any more: the plans of another network config do not know them.
func (k *Kernel) RemoveCommands(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, c := range k.ran {
		if _, err := RunCommand(ctx, c.Remove, c.Env, c.Stdin); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

// Shutdown runs the shutdown commands of the extension backend whose commands were run, within ten
// seconds. Call it when the daemon ends, not only its connection to the kernel.
func (k *Kernel) Shutdown(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, shutdownTimeout,
		fmt.Errorf("still running after %v", shutdownTimeout))
	defer cancel()
	var errs []error
	for _, c := range k.ran {
		if _, err := RunCommand(ctx, c.Shutdown, c.Env, ""); err != nil {
			errs = append(errs, fmt.Errorf("ShutdownCommand: %w", err))
		}
	}
	return errors.Join(errs...)
}
