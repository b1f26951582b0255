package clients

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"weft/lease"
)

const (
	prefix = "/coreos.com/network"
	config = `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"udp"}}`
)

// Options describe a measurement.
type Options struct {
	Etcd     []string // command line of a process that calls Serve with the arguments added
	Clients  int
	Leases   int           // of other nodes
	Spread   time.Duration // of the starts, and of the restarts
	Duration time.Duration // of the measurement without changes
	Outage   time.Duration // of etcd; 0: none
	Patience time.Duration // limit of each wait
}

// run is the state of a measurement.
type run struct {
	Options
	server server
	crowd  crowd
	rows   []Row
	log    io.Writer
}

// Measure starts the clients, leaves them alone, stops etcd for a while, and restarts all of them.
// It returns a row for each step, and after an error those of the steps before.
func Measure(ctx context.Context, o Options, progress io.Writer) (rows []Row, err error) {
	dir, err := os.MkdirTemp("", "weft-clients")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	listen, err := freePort()
	if err != nil {
		return nil, err
	}
	r := &run{Options: o, log: progress, server: server{argv: o.Etcd,
		dir: filepath.Join(dir, "etcd"), listen: listen, leases: o.Leases}}
	network, err := lease.ParseNetwork([]byte(config))
	if err != nil {
		return nil, err
	}
	r.crowd = crowd{endpoint: "http://" + listen.String(), network: network,
		quiet: slog.New(slog.DiscardHandler)}
	for n := range o.Clients {
		r.crowd.clients = append(r.crowd.clients, &client{n: n})
	}
	if err := r.server.start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.server.kill()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer r.crowd.ended.Wait()
	defer cancel()
	err = r.measure(ctx)
	return r.rows, err
}

// freePort returns a local address that is free.
func freePort() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (r *run) measure(ctx context.Context) error {
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"start", r.start},
		{"without changes", func(ctx context.Context) error { return sleep(ctx, r.Duration) }},
		{"outage and return", r.outage},
		{"restart of all", r.restart},
	}
	for _, s := range steps {
		if s.name == "outage and return" && r.Outage == 0 {
			continue
		}
		fmt.Fprintf(r.log, "%d clients: %s\n", r.Clients, s.name)
		if err := r.step(ctx, s.name, s.do); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if moved := r.crowd.moved(); moved > 0 {
		return fmt.Errorf("%d clients have another subnet than at first", moved)
	}
	return nil
}

// step measures one step and adds its row.
func (r *run) step(ctx context.Context, name string, do func(context.Context) error) error {
	before, err := r.server.usage(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := do(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := r.server.usage(ctx)
	if err != nil {
		return err
	}
	if name == "outage and return" {
		before = usage{} // the process is another one
	}
	u := after.since(before)
	r.rows = append(r.rows, u.row(name, took, r.Clients))
	fmt.Fprintf(r.log, "requests by method: %v\n", u.byMethod)
	return nil
}

// start starts all clients and waits until each sees all leases.
func (r *run) start(ctx context.Context) error {
	err := r.crowd.spread(ctx, r.Spread, func(k *client) error { return r.crowd.start(ctx, k) })
	if err != nil {
		return err
	}
	return r.converge(ctx)
}

// converge waits until all clients hold their leases and see all others.
func (r *run) converge(ctx context.Context) error {
	err := r.crowd.awaitAll(ctx, r.Patience, func(k *client) bool {
		return k.isComplete(r.Clients + r.Leases)
	})
	times := r.crowd.claimTimes()
	fmt.Fprintf(r.log, "start to lease: median %v, p99 %v\n", percentile(times, 50),
		percentile(times, 99))
	return err
}

// outage kills etcd and starts it again after a while.
func (r *run) outage(ctx context.Context) error {
	if err := r.server.kill(); err != nil {
		return err
	}
	if err := sleep(ctx, r.Outage); err != nil {
		return err
	}
	if err := r.server.start(ctx); err != nil {
		return err
	}
	began := time.Now()
	err := r.converge(ctx)
	fmt.Fprintf(r.log, "all clients connected %.1f s after the return\n",
		time.Since(began).Seconds())
	return err
}

// restart stops and starts each client at a random time.
func (r *run) restart(ctx context.Context) error {
	err := r.crowd.spread(ctx, r.Spread, func(k *client) error {
		k.stop()
		return r.crowd.start(ctx, k)
	})
	if err != nil {
		return err
	}
	return r.converge(ctx)
}
