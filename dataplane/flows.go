package dataplane

import "time"

// class says on which of its worker's two TUN queues a flow leaves this node.
type class int

const (
	// sparse flows have a queue in which they need not wait behind the long frames of bulk flows: a request beside a
	// TCP stream at full speed took 1.2 to 1.8 ms with one queue, and 0.15 to 0.3 ms with two (medians; one worker a node,
	// both nodes on two CPUs). The idea is that of fq_codel (RFC 8290 section 4.2), which as the device's queueing
	// discipline would find nothing to order: a TUN takes every packet at once, and they wait in its own queues.
	sparse class = iota
	bulk
	classes int = iota
)

const (
	// bulkFrame is the length in bytes of a frame that makes its flow a bulk flow. TCP sizes super-frames to what it
	// sends in a millisecond (tcp_tso_autosize): this is 130 Mbit/s. Where there are none all flows remain sparse.
	bulkFrame = 16 << 10
	// flowBuckets is how many flows are told apart, by hash; those that share a bucket share its class.
	flowBuckets = 4096
	// longestQueue is how many frames can wait in a TUN queue: what the device's owner sets, and more.
	longestQueue = 10_000
)

// flowClasses knows which flows are bulk flows, as seen by one worker, which has all packets of a flow in both
// directions. The kernel sends a flow to the TUN queue that the flow's last packet was written to (drivers/net/tun.c,
// tun_automq_select_queue): by writing to one of its two queues a worker chooses where it will read from.
//
// A flow becomes a bulk flow by a long frame and remains one until it has been silent for longer than packets wait in a
// queue, unless the underlay stands still. So it does not move back while packets of it are under way, and moves on in
// order: see catchUp.
type flowClasses struct {
	buckets [flowBuckets]bucket
	now     tick
	// catchUp is how many frames of the sparse queue come before the next of the bulk queue, unless the former is
	// empty before: those that a flow left there when it moved.
	catchUp int
}

type bucket struct {
	seen  tick // when a packet of a bulk flow was seen last; 0: never
	moved bool // its packets have been steered to the bulk queue
}

// tick counts time in units of a good second, 2^30 ns, from the worker's start on. The first two are left out: what was
// never seen was not seen a moment ago.
type tick uint32

func tickOf(sinceStart time.Duration) tick { return tick(sinceStart>>30) + 2 }

// alive reports whether a bulk flow was seen here a second or two ago, or later.
func (c *flowClasses) alive(b *bucket) bool { return c.now-b.seen <= 1 }

// leaves notes a frame of n bytes that was read from a queue.
func (c *flowClasses) leaves(hash uint32, n int) {
	b := &c.buckets[hash%flowBuckets]
	switch {
	case c.alive(b):
		b.seen = c.now
	case n >= bulkFrame:
		*b = bucket{seen: c.now}
	}
}

// arrives returns the queue to which a frame of the flow is to be written.
func (c *flowClasses) arrives(hash uint32) class {
	b := &c.buckets[hash%flowBuckets]
	if !c.alive(b) {
		return sparse
	}
	b.seen = c.now
	if !b.moved {
		b.moved = true
		c.catchUp = longestQueue
	}
	return bulk
}

// drained notes that n frames were read from a queue, all that there were if it is empty.
func (c *flowClasses) drained(from class, n int, empty bool) {
	switch {
	case from != sparse:
	case empty:
		c.catchUp = 0
	default:
		c.catchUp = max(0, c.catchUp-n)
	}
}

// caughtUp reports whether the bulk queue may be read.
func (c *flowClasses) caughtUp() bool { return c.catchUp == 0 }
