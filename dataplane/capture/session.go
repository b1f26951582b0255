package capture

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"weft/dataplane/capture/filter"
)

// Options selects the packets of a session.
type Options struct {
	Inner, Outer bool           // the points to record; neither means Inner
	Filter       *filter.Filter // nil matches every packet
	Node         string         // only packets to and from this node; empty means all
	DropsOnly    bool           // only packets that were dropped
	SnapLen      int            // bytes recorded per packet; 0 means MaxSnapLen
	Partial      bool           // need not see packets that the kernel's fast path takes
	Memory       int            // bytes for the rings of all workers; 0 means DefaultMemory
	Listeners    int            // number of devices to listen on, beside the workers
}

const (
	// MaxSnapLen is the largest snapshot length in bytes: that of tcpdump.
	MaxSnapLen = 262144
	// DefaultMemory is the memory of a session in bytes. It bridges 4 ms of 10 Gb/s in each
	// direction, during which the reader may be off its CPU.
	DefaultMemory = 8 << 20
	// MaxMemory is the largest memory of a session in bytes.
	MaxMemory = 1 << 30
	// minRing is the smallest ring in bytes: several packets of the largest size.
	minRing = 256 << 10
	// bytesPerSlot is the number of bytes in a ring per record, enough for small packets.
	bytesPerSlot = 256
	// pollInterval is the time between two looks at empty rings. It adds to the latency of a live
	// view, and a ring must last for it. The workers cannot notify: that would cost system calls.
	pollInterval = 2 * time.Millisecond
)

// wants reports whether a packet of the point can be in the capture, apart from the filter.
func (o *Options) wants(p Point, m *Meta) bool {
	return (p == Inner && o.Inner || p == Outer && o.Outer) &&
		(!o.DropsOnly || m.Drop != "") && (o.Node == "" || o.Node == m.Node)
}

// withDefaults fills in the defaults and rejects invalid values.
func (o Options) withDefaults() (Options, error) {
	if !o.Inner && !o.Outer {
		o.Inner = true
	}
	if o.Filter == nil {
		o.Filter = &filter.Filter{}
	}
	if o.SnapLen == 0 {
		o.SnapLen = MaxSnapLen
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	switch {
	case o.SnapLen < 0, o.SnapLen > MaxSnapLen:
		return o, fmt.Errorf("invalid snapshot length %d: want 1 to %d bytes", o.SnapLen, MaxSnapLen)
	case o.Memory < 0, o.Memory > MaxMemory:
		return o, fmt.Errorf("invalid memory %d: want at most %d bytes", o.Memory, MaxMemory)
	}
	return o, nil
}

// Session is one capture.
type Session struct {
	options Options
	rings   []*Ring // of the workers, then of the listeners
	workers int
	sample  atomic.Int32 // records one packet in so many
}

// NewSession returns a session with rings for a number of workers, and for the listeners.
func NewSession(workers int, o Options) (*Session, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	s := &Session{options: o, workers: workers}
	s.sample.Store(1)
	rings := workers + o.Listeners
	bytes := max(o.Memory/max(rings, 1), minRing)
	for range rings {
		s.rings = append(s.rings, newRing(s, bytes/bytesPerSlot, bytes))
	}
	return s, nil
}

// Ring returns the ring of a worker.
func (s *Session) Ring(worker int) *Ring { return s.rings[worker] }

// Partial reports whether the session need not see the packets of the kernel's fast path.
func (s *Session) Partial() bool { return s.options.Partial }

// SetSample makes the session record one packet in n, at random, from now on. n is at least 1.
func (s *Session) SetSample(n int) { s.sample.Store(int32(n)) }

// Missed returns the number of packets of a point that found a ring full. At the outer point, some
// of them might not have matched the filter.
func (s *Session) Missed(p Point) (n uint64) {
	for _, r := range s.rings {
		n += r.missed[p].Load()
	}
	return n
}

// Sink receives the records of a session.
type Sink interface {
	// Write takes one record, which is valid during the call.
	Write(*Record) error
	// Flush is called when no record is waiting, and at least once per second.
	Flush() error
}

// Run passes records to the sink, those of different workers in the order of their times, until ctx
// is done, which is a success, count records have passed, if count is not 0, or the sink fails.
func (s *Session) Run(ctx context.Context, sink Sink, count int) error {
	timer := time.NewTicker(pollInterval)
	defer timer.Stop()
	flushed := time.Now()
	for n := 0; ; {
		before := n
		for r := s.oldest(); r != nil; r = s.oldest() {
			if err := sink.Write(r.peek()); err != nil {
				return err
			}
			r.release()
			if n++; n == count || n%flushEvery == 0 && ctx.Err() != nil {
				return sink.Flush()
			}
		}
		if n > before || time.Since(flushed) >= flushInterval {
			if err := sink.Flush(); err != nil {
				return err
			}
			flushed = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
}

const (
	flushInterval = time.Second
	flushEvery    = 1024 // records between two looks at ctx while they keep coming
)

// oldest returns the ring with the oldest record, or nil if all are empty.
func (s *Session) oldest() *Ring {
	var first *Ring
	for _, r := range s.rings {
		rec := r.peek()
		if rec != nil && (first == nil || rec.Time.Before(first.peek().Time)) {
			first = r
		}
	}
	return first
}
