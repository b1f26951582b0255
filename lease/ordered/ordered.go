// Package ordered holds ordered sets that share their unchanged parts.
//
// Thousands of leases change a few at a time. A [Set] is immutable: an edit makes a new set that
// shares almost everything with the old one, and [Diff] finds the differences of two such sets
// without looking at the parts that they share. Users can therefore exchange complete states and
// still do work in proportion to the change.
//
// A set is a list of chunks, each a short ordered slice. An edit copies the list and the chunks
// that it changes.
package ordered

import (
	"iter"
	"slices"
	"sort"
)

// Element is the type of the elements of a set: usually a pointer to an immutable value. Order
// compares by the element's key only; two elements with the same key cannot be in one set.
type Element[E any] interface {
	comparable
	Order(E) int
}

const (
	// maxChunk is the greatest length of a chunk. With 10,000 elements, an edit copies 1 kB for the
	// chunk and 2 kB for the list, and a comparison looks at about 100 chunks.
	maxChunk = 128
	// minChunk is the length below which a chunk is joined with the next one.
	minChunk = maxChunk / 4
)

// Set is an immutable ordered set. The zero value is empty. It is safe for concurrent use.
type Set[E Element[E]] struct {
	chunks [][]E // none is empty
	length int
}

// New returns the set of the elements, in any order. Of elements with the same key, the last one
// counts.
func New[E Element[E]](elements []E) Set[E] {
	sorted := slices.Clone(elements)
	slices.SortStableFunc(sorted, E.Order)
	unique := sorted[:0]
	for _, e := range sorted {
		if n := len(unique); n > 0 && unique[n-1].Order(e) == 0 {
			unique[n-1] = e
			continue
		}
		unique = append(unique, e)
	}
	s := Set[E]{length: len(unique)}
	for c := range slices.Chunk(unique, maxChunk/2) {
		s.chunks = append(s.chunks, slices.Clone(c))
	}
	return s
}

// Len returns the number of elements.
func (s Set[E]) Len() int { return s.length }

// All iterates over the elements in their order.
func (s Set[E]) All() iter.Seq[E] {
	return func(yield func(E) bool) {
		for _, c := range s.chunks {
			for _, e := range c {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// From iterates over the elements that are not below probe.
func (s Set[E]) From(probe E) iter.Seq[E] {
	return func(yield func(E) bool) {
		i := s.chunkOf(probe)
		if i == len(s.chunks) {
			return
		}
		at, _ := slices.BinarySearchFunc(s.chunks[i], probe, E.Order)
		for ; i < len(s.chunks); i++ {
			for _, e := range s.chunks[i][at:] {
				if !yield(e) {
					return
				}
			}
			at = 0
		}
	}
}

// Get returns the element with the key of probe.
func (s Set[E]) Get(probe E) (E, bool) {
	for e := range s.From(probe) {
		if e.Order(probe) == 0 {
			return e, true
		}
		break
	}
	var none E
	return none, false
}

// chunkOf returns the index of the first chunk whose last element is not below e.
func (s Set[E]) chunkOf(e E) int {
	return sort.Search(len(s.chunks), func(i int) bool {
		c := s.chunks[i]
		return c[len(c)-1].Order(e) >= 0
	})
}

// With returns the set without the elements of remove and then with those of put. Elements to
// remove are found by their keys; missing ones are ignored.
func (s Set[E]) With(remove, put []E) Set[E] {
	if len(remove)+len(put) == 0 {
		return s
	}
	s.chunks = slices.Clone(s.chunks)
	for _, e := range remove {
		s.remove(e)
	}
	for _, e := range put {
		s.put(e)
	}
	return s
}

// remove removes one element. The list of chunks belongs to the caller.
func (s *Set[E]) remove(e E) {
	i := s.chunkOf(e)
	if i == len(s.chunks) {
		return
	}
	at, found := slices.BinarySearchFunc(s.chunks[i], e, E.Order)
	if !found {
		return
	}
	s.length--
	c := slices.Concat(s.chunks[i][:at], s.chunks[i][at+1:])
	switch {
	case len(c) == 0:
		s.chunks = slices.Delete(s.chunks, i, i+1)
	case len(c) < minChunk && i+1 < len(s.chunks) && len(c)+len(s.chunks[i+1]) <= maxChunk/2:
		s.chunks[i] = append(c, s.chunks[i+1]...)
		s.chunks = slices.Delete(s.chunks, i+1, i+2)
	default:
		s.chunks[i] = c
	}
}

// put adds or replaces one element. The list of chunks belongs to the caller.
func (s *Set[E]) put(e E) {
	if len(s.chunks) == 0 {
		s.chunks, s.length = [][]E{{e}}, 1
		return
	}
	i := min(s.chunkOf(e), len(s.chunks)-1)
	at, found := slices.BinarySearchFunc(s.chunks[i], e, E.Order)
	rest := s.chunks[i][at:]
	if found {
		rest = rest[1:]
	} else {
		s.length++
	}
	c := slices.Concat(s.chunks[i][:at], []E{e}, rest)
	if len(c) <= maxChunk {
		s.chunks[i] = c
		return
	}
	half := len(c) / 2
	s.chunks[i] = slices.Clone(c[:half])
	s.chunks = slices.Insert(s.chunks, i+1, slices.Clone(c[half:]))
}

// Diff iterates over the differences of two sets in the order of the keys: pairs of elements with
// the same key that are not identical, and with a zero element in the place of a missing one.
// Chunks that the sets share cost one comparison.
func Diff[E Element[E]](before, after Set[E]) iter.Seq2[E, E] {
	return func(yield func(before, after E) bool) {
		a, b := cursor[E]{chunks: before.chunks}, cursor[E]{chunks: after.chunks}
		for a.valid() || b.valid() {
			if a.sameChunk(b) {
				a.nextChunk()
				b.nextChunk()
				continue
			}
			var x, y E
			order := a.order(b)
			if order <= 0 {
				x = a.take()
			}
			if order >= 0 {
				y = b.take()
			}
			if x != y && !yield(x, y) {
				return
			}
		}
	}
}

// cursor is a position in the chunks of a set. Both cursors of a comparison arrive at the beginning
// of a shared chunk together: all elements below it have been taken, on both sides.
type cursor[E Element[E]] struct {
	chunks [][]E
	at     int // in the first chunk
}

func (c *cursor[E]) valid() bool { return len(c.chunks) > 0 }

func (c *cursor[E]) nextChunk() { c.chunks, c.at = c.chunks[1:], 0 }

// sameChunk reports whether both cursors are at the beginning of one chunk.
func (c *cursor[E]) sameChunk(o cursor[E]) bool {
	return c.valid() && o.valid() && c.at == 0 && o.at == 0 &&
		len(c.chunks[0]) == len(o.chunks[0]) && &c.chunks[0][0] == &o.chunks[0][0]
}

// order compares the elements at two cursors, of which one is valid. The end comes last.
func (c *cursor[E]) order(o cursor[E]) int {
	switch {
	case !c.valid():
		return 1
	case !o.valid():
		return -1
	}
	return c.chunks[0][c.at].Order(o.chunks[0][o.at])
}

// take returns the element at the cursor and advances it.
func (c *cursor[E]) take() E {
	e := c.chunks[0][c.at]
	if c.at++; c.at == len(c.chunks[0]) {
		c.nextChunk()
	}
	return e
}
