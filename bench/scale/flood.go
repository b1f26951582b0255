package scale

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// floodSize is the payload of a packet of the flood, and floodTrain the number that are sent
	// with one system call (UDP_SEGMENT): below the 64 kB of a datagram.
	floodSize  = 1200
	floodTrain = 50
	// floodRounds alternate between a quiet store and changes, each for a part of the duration of a
	// measurement.
	floodRounds = 4
	floodPart   = 20
	// floodRate is the number of changes per second.
	floodRate = 100
)

// Flood is the throughput of the node in bytes per second, to one other node.
type Flood struct{ Quiet, Churn float64 }

// flood measures the throughput with and without changes, in turns.
func (r *run) flood(ctx context.Context, f *Figures) error {
	conn, err := r.lab.Nodes[0].ListenUDP(netip.IPv4Unspecified(), 0)
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, floodSize)
	})
	if err := errors.Join(err, optErr); err != nil {
		return errors.Join(err, conn.Close())
	}
	to := r.next // changes leave it alone
	if _, err := r.addLease(ctx); err != nil {
		return errors.Join(err, conn.Close())
	}
	for range floodRounds {
		quiet, err := r.floodOnce(ctx, sender{conn}, to, 0)
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		churn, err := r.floodOnce(ctx, sender{conn}, to, floodRate)
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		f.Flood.Quiet += quiet / floodRounds
		f.Flood.Churn += churn / floodRounds
	}
	return conn.Close()
}

// floodOnce sends as much as possible to a lease while leases change at a rate, and returns the
// bytes per second that arrived.
func (r *run) floodOnce(ctx context.Context, s sender, to, rate int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Duration/floodPart)
	defer cancel()
	var work sync.WaitGroup
	var changeErr error
	if rate > 0 {
		work.Go(func() { _, changeErr = r.makeChanges(ctx, rate) })
	}
	train := make([]byte, floodTrain*floodSize)
	began, before := time.Now(), r.sink.bytes.Load()
	for ctx.Err() == nil {
		if err := s.sendTrain(to, train); err != nil {
			time.Sleep(100 * time.Microsecond) // the device's queue is full
		}
	}
	arrived, took := r.sink.bytes.Load()-before, time.Since(began)
	work.Wait()
	return float64(arrived) / took.Seconds(), changeErr
}
