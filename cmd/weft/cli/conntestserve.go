package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"weft/ctrl/conntest"
)

// newTestServe returns weft test serve.
func newTestServe() *cobra.Command {
	var (
		a    asking
		port uint16
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "answer weft test of other nodes, until a signal ends it",
		Long: "Answers the packets of weft test on this node and in a pod of its own, until SIGINT or\n" +
			"SIGTERM. Everyone who reaches the port can make it test the connectivity of this node, as\n" +
			"weft test --all does.",
		Args: Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return a.serveTest(ctx, cmd.OutOrStdout(), port)
		},
	}
	a.registerSocket(cmd)
	cmd.Flags().Uint16Var(&port, "port", conntest.DefaultPort, "TCP and UDP `port` to listen on")
	return cmd
}

// serveTest serves on the host and in a pod until ctx is done.
func (a *asking) serveTest(ctx context.Context, out io.Writer, port uint16) (err error) {
	node, err := a.thisNode(ctx)
	if err != nil {
		return err
	}
	pod, err := conntest.NewPod(ctx, node.subnets(), node.MTU)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	info := conntest.Info{Node: node.Node, Pod: pod.Addrs}
	if i := node.Interface; i != nil {
		for _, addr := range []netip.Addr{i.Address, i.Address6} {
			if addr.IsValid() {
				info.Host = append(info.Host, addr)
			}
		}
	}
	host, inPod := &conntest.Server{Info: info}, &conntest.Server{Info: info}
	host.Run = func(ctx context.Context) ([]conntest.Result, error) {
		now, err := a.thisNode(ctx)
		if err != nil {
			return nil, err
		}
		return conntest.Run(ctx, now.source(pod, port, nil), now.targets(ctx, port)), nil
	}
	if err := host.Listen(port); err != nil {
		return err
	}
	if err := pod.Do(func() error { return inPod.Listen(port) }); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "pod %v and host answer on port %d\n", pod.Addrs, port); err != nil {
		return err
	}
	ended := make(chan error, 2)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, s := range []*conntest.Server{host, inPod} {
		go func() {
			ended <- s.Serve(ctx)
			cancel() // one without the other would answer some checks only
		}()
	}
	return errors.Join(<-ended, <-ended)
}
