package dataplane

import "time"

// class is a class of flows. Each worker has a TUN queue per class for the flows that leave this
// node.
type class int

const (
	// sparse flows have their own queue, so that they do not wait behind the long frames of bulk
	// flows: a request beside a TCP stream at full speed took 1.2 to 1.8 ms with one queue and 0.15
	// to 0.3 ms with two (medians; one worker per node, both nodes on two CPUs). The idea is that
	// of fq_codel (RFC 8290 section 4.2). As the device's queueing discipline, fq_codel would have
	// no effect: a TUN accepts every packet at once, and the packets wait in its own queues.
	//
	// The queue is not also read between received trains: after each of more than 16 KiB, that
	// made no difference (rtt-bulk, one worker, 10 interleaved rounds, ratios of the p50: wire
	// 0.97, 0.87 to 1.68; off 1.16, 0.76 to 1.63). With two workers, the p50 was worse in 13 of 20.
	sparse class = iota
	bulk
	numClasses int = iota
)

const (
	// bulkFrame is the frame length in bytes that makes a flow a bulk flow. A TCP GSO frame holds
	// the data of one millisecond (tcp_tso_autosize), so this is 130 Mbit/s. Without GSO frames all
	// flows stay sparse.
	bulkFrame = 16 << 10
	// flowBuckets is the number of hash buckets. Flows in one bucket share a class.
	flowBuckets = 4096
	// maxQueueLen is the most frames that can wait in a TUN queue: higher than the device's
	// txqueuelen.
	maxQueueLen = 10_000
)

// flowClasses classifies the flows of one worker, which has all packets of a flow in both
// directions. The kernel puts a flow into the TUN queue that the flow's last packet was written to
// (drivers/net/tun.c, tun_automq_select_queue): by choosing the queue to write to, a worker chooses
// the queue to read from.
//
// A long frame makes a flow a bulk flow. It stays one until it has been silent for longer than
// packets wait in a queue, unless the underlay stands still. So it does not move back while its
// packets are queued, and it moves to the bulk queue in order: see sparseBacklog.
type flowClasses struct {
	buckets [flowBuckets]bucket
	now     tick
	// sparseBacklog is how many frames must be read from the sparse queue, unless that is empty
	// earlier, before the next one from the bulk queue. A flow may have left frames there when it
	// moved.
	sparseBacklog int
}

type bucket struct {
	lastSeen tick // last packet of a bulk flow; 0 if none
	steered  bool // to the bulk queue
}

// tick is a time in units of 2^30 ns (about 1.07 s) since the worker started, plus 2, so that the
// zero value of a bucket never counts as recent.
type tick uint32

func tickOf(sinceStart time.Duration) tick { return tick(sinceStart>>30) + 2 }

// isBulk reports whether the bucket has had a packet of a bulk flow within the last one or two
// ticks.
func (c *flowClasses) isBulk(b *bucket) bool { return c.now-b.lastSeen <= 1 }

// onTx records a frame of n bytes that was read from a TUN queue.
func (c *flowClasses) onTx(hash uint32, n int) {
	b := &c.buckets[hash%flowBuckets]
	switch {
	case c.isBulk(b):
		b.lastSeen = c.now
	case n >= bulkFrame:
		*b = bucket{lastSeen: c.now}
	}
}

// queueFor returns the TUN queue to write a frame of the flow to.
func (c *flowClasses) queueFor(hash uint32) class {
	b := &c.buckets[hash%flowBuckets]
	if !c.isBulk(b) {
		return sparse
	}
	b.lastSeen = c.now
	if !b.steered {
		b.steered = true
		c.sparseBacklog = maxQueueLen
	}
	return bulk
}

// onDrain records that n frames were read from a TUN queue, and whether it is empty now.
func (c *flowClasses) onDrain(from class, n int, empty bool) {
	switch {
	case from != sparse:
	case empty:
		c.sparseBacklog = 0
	default:
		c.sparseBacklog = max(0, c.sparseBacklog-n)
	}
}

// mayReadBulk reports whether reading the bulk queue keeps the order of all flows.
func (c *flowClasses) mayReadBulk() bool { return c.sparseBacklog == 0 }
