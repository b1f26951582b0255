package offload

// find returns the flow with key k, or nil if it was not seen since the last drain. The pointer is
// valid until the next findOrAdd.
func (m *Merger) find(k *flowKey) *flow {
	if m.recent < len(m.flows) && m.flows[m.recent].key.equal(k) {
		return &m.flows[m.recent]
	}
	if len(m.flows) == 0 {
		return nil
	}
	i := m.table[m.slot(k)]
	if i < 0 {
		return nil
	}
	m.recent = int(i)
	return &m.flows[i]
}

// findOrAdd returns the flow with key k and adds it if it is missing. If there is no room for a new
// flow, it drains the Merger first.
func (m *Merger) findOrAdd(k *flowKey) *flow {
	if f := m.find(k); f != nil {
		return f
	}
	if len(m.flows) == cap(m.flows) {
		m.drain()
	}
	slot := m.slot(k)
	m.recent = len(m.flows)
	m.table[slot] = int16(m.recent)
	m.flows = append(m.flows, flow{key: *k, slot: int32(slot)})
	return &m.flows[m.recent]
}

// slot returns the table index where k is or would be stored. The table is at least twice as large
// as the maximum number of flows, so a free slot always exists.
func (m *Merger) slot(k *flowKey) int {
	mask := len(m.table) - 1
	for slot := int(k.hash()) & mask; ; slot = (slot + 1) & mask {
		if i := m.table[slot]; i < 0 || m.flows[i].key.equal(k) {
			return slot
		}
	}
}

// flushHosts emits the open frames of all flows from the source to the destination of k. An IPv6
// pair may equal an IPv4 one (if all bytes after the first 8 are zero); then both are flushed,
// which is harmless.
func (m *Merger) flushHosts(k *flowKey) {
	for i := range m.flows {
		if m.flows[i].key.addr == k.addr {
			m.flushFlow(&m.flows[i])
		}
	}
}
