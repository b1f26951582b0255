package scale

import (
	"context"
	"os"
	"time"
)

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// version returns the current version of a lease.
func (c *cluster) version(i int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leases[i].version
}

func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.counts[:])
	s.firstBad = ""
}

func (s *sink) totals() (r, l, w int, firstWrong string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[right], s.counts[late], s.counts[wrong], s.firstBad
}

// sampleInterval is the time between two packets to random leases.
const sampleInterval = 5 * time.Millisecond

// sample sends packets to leases that have not changed for a while, until ctx ends. Lost counts
// those without an arrival within half a second.
func (r *run) sample(ctx context.Context) (sent, lost int) {
	type packet struct {
		lease int
		at    time.Time
	}
	var under []packet
	for sleep(ctx, sampleInterval) == nil {
		p := packet{r.cluster.random(r.Leases), time.Now()}
		r.sender.send(p.lease)
		under = append(under, p)
		for len(under) > 0 && time.Since(under[0].at) > 500*time.Millisecond {
			sent++
			if r.sink.last(under[0].lease).at.Before(under[0].at) {
				lost++
			}
			under = under[1:]
		}
	}
	return sent, lost
}

// settleLimit bounds the wait for a complete table after the churn.
const settleLimit = 15 * time.Second

// settle sends packets to all leases until each arrives at the node that the store has, and none to
// removed leases arrives. It returns how long that took and the number of leases that differ at the
// end of its patience.
func (r *run) settle() (time.Duration, int) {
	began := time.Now()
	for {
		round := time.Now()
		if n := r.differing(round); n == 0 || time.Since(began) > settleLimit {
			return round.Sub(began), n
		}
	}
}

func (r *run) differing(since time.Time) (n int) {
	live, gone := r.cluster.listed()
	for _, leases := range [][]int{live, gone} {
		for k, i := range leases {
			r.sender.send(i)
			if k%256 == 255 {
				time.Sleep(5 * time.Millisecond) // the queues of devices hold some hundred packets
			}
		}
	}
	time.Sleep(100 * time.Millisecond)
	for _, i := range live {
		a := r.sink.last(i)
		if a.at.Before(since) || a.outer != publicAddr(i, r.cluster.version(i)) {
			n++
		}
	}
	for _, i := range gone {
		if !r.sink.last(i).at.Before(since) {
			n++
		}
	}
	return n
}

// outage stops the store for a while.
func (r *run) outage(ctx context.Context, f *Figures) (err error) {
	if r.Outage <= 0 {
		return nil
	}
	r.etcd.Close()
	if f.OutageCPU, err = r.cpuDuring(ctx, r.Outage); err != nil {
		return err
	}
	if err := r.etcd.Start(); err != nil {
		return err
	}
	f.Return, err = r.addLease(ctx)
	return err
}
