package etcd

import "fmt"

// maxMismatches is the number of consecutive mismatches after which the list counts as stale, even
// if the stream still delivers changes.
const maxMismatches = 3

// staleDetector compares fingerprints of the server with those of the watched keyspace.
type staleDetector struct {
	mismatches int
	revision   int64 // of the keyspace at the last mismatch
}

// check returns an error if the keyspace is stale. A mismatch alone may be a change that the stream
// has not delivered yet, so it must last from one check to the next with nothing received in
// between.
func (d *staleDetector) check(local, server fingerprint) error {
	switch {
	case server.cluster != local.cluster:
		return fmt.Errorf("etcd: cluster ID changed from %x to %x", local.cluster, server.cluster)
	case server.revision < local.revision:
		return fmt.Errorf("etcd: revision decreased from %d to %d: data wiped or restored",
			local.revision, server.revision)
	case server.count == local.count && server.newest == local.newest:
		*d = staleDetector{}
		return nil
	case server.revision == local.revision:
		return fmt.Errorf("etcd: %d keys in the list, %d on the server, both at revision %d",
			local.count, server.count, local.revision)
	}
	silent := d.mismatches > 0 && d.revision == local.revision
	d.mismatches++
	d.revision = local.revision
	if silent || d.mismatches >= maxMismatches {
		return fmt.Errorf("etcd: watch stopped at revision %d, server is at %d",
			local.revision, server.revision)
	}
	return nil
}
