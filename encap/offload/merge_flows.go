package offload

// find returns the flow with the key k, nil if none was seen since the last drain. The pointer is good until the
// next findOrAdd.
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

// findOrAdd is find, with a new flow where there was none. If there is no room for one, everything is written
// out first and all flows are forgotten.
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

// slot is where in the table k is, or would be. The table is at least twice as large as there are flows.
func (m *Merger) slot(k *flowKey) int {
	mask := len(m.table) - 1
	for slot := int(k.hash()) & mask; ; slot = (slot + 1) & mask {
		if i := m.table[slot]; i < 0 || m.flows[i].key.equal(k) {
			return slot
		}
	}
}

// sealPair writes the open frames of all flows between the two addresses of k. An IPv6 pair that looks like an
// IPv4 one (all zero behind the first 8 bytes) would seal that too, which does no harm.
func (m *Merger) sealPair(k *flowKey) {
	for i := range m.flows {
		if m.flows[i].key.addr == k.addr {
			m.seal(&m.flows[i])
		}
	}
}
