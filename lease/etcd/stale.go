package etcd

import "fmt"

// maxMismatches is after how many checks in a row that do not match the list counts as wrong, whatever the stream
// still tells.
const maxMismatches = 3

// guard judges fingerprints of the server against the view that the watch keeps.
type guard struct {
	mismatches int
	revision   int64 // of the view at the last mismatch
}

// judge returns an error if the view cannot be trusted any more. A difference alone may be a change that is still
// on its way in the stream, so it must last from one check to the next without any word from the stream.
func (g *guard) judge(held, server fingerprint) error {
	switch {
	case server.cluster != held.cluster:
		return fmt.Errorf("etcd: cluster %x has become cluster %x", held.cluster, server.cluster)
	case server.revision < held.revision:
		return fmt.Errorf("etcd: revision went back from %d to %d: the data was wiped or restored", held.revision, server.revision)
	case server.count == held.count && server.newest == held.newest:
		*g = guard{}
		return nil
	case server.revision == held.revision:
		return fmt.Errorf("etcd: %d leases listed, %d there, at the same revision %d", held.count, server.count, held.revision)
	}
	silent := g.mismatches > 0 && g.revision == held.revision
	g.mismatches++
	g.revision = held.revision
	if silent || g.mismatches >= maxMismatches {
		return fmt.Errorf("etcd: the watch stopped at revision %d, the server is at %d", held.revision, server.revision)
	}
	return nil
}
