package dataplane

import "testing"

func TestLastDrops(t *testing.T) {
	// Their packets have no readable header, or none is at hand where they are counted.
	without := map[Drop]bool{DropTooShort: true, DropBadVersion: true, DropBadLength: true,
		DropTruncated: true, DropUnknownOuterSource: true}
	for d, provoke := range provokeDrop() {
		h := newHarness(t)
		provoke(h)
		all := map[Drop]LastDrop{}
		h.worker.last.addTo(all)
		last, ok := all[d]
		if ok == without[d] || len(all) > 1 {
			t.Errorf("%v: recorded %v", d, all)
		}
		if ok && (!last.Src.IsValid() || !last.Dst.IsValid() || !last.Time.Equal(h.worker.now())) {
			t.Errorf("%v: recorded %+v", d, last)
		}
	}
}

func TestLastDropsAllocations(t *testing.T) {
	h := newHarness(t)
	pkt := tcp4("10.5.1.2", "10.5.9.9", 0, 100)
	if n := testing.AllocsPerRun(100, func() { h.worker.drop(DropNoNode, pkt) }); n != 0 {
		t.Errorf("%v allocations per drop", n)
	}
}
