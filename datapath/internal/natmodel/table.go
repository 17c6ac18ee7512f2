package natmodel

// Session is a live session as seen from outside the package.
type Session struct {
	Fwd     Tuple
	Ext     Addr
	EPort   uint16
	Bits    Bits
	Ifindex int       // of its port; 0: of the host
	ISN     uint32    // begun outside: sequence number of the SYN-ACK
	Seen    [2]uint64 // outbound, inbound
	Granted [2]uint64 // 0: no lease
	Lease   [2]uint64 // duration of a granted lease
}

// Port is an external port as seen from outside the package. The owner is set
// only if the port is taken.
type Port struct {
	Taken, Free, Bound bool
	Refs               int
	Addr               Addr
	Port               uint16
	Ifindex            int
	NotedAt, UsedAt    uint64
}

// Table is everything a NAT remembers.
type Table struct {
	Sessions map[int]Session // by slot
	Ports    [3][]Port
	Free     [3][]int      // in queue order
	Ripe     [3]int        // number of ripe ports at the head
	Binds    map[Tuple]int // key: Src, SPort, Proto; value: offset in the range
	Peers    map[Tuple]int // key: DPort is the offset, Proto the class, Src the address; value: sessions
	Usage    map[int]Usage
	Counters Counters
}

// Table returns a copy of all state.
func (n *NAT) Table() Table {
	t := Table{
		Sessions: map[int]Session{}, Binds: map[Tuple]int{}, Peers: map[Tuple]int{}, Usage: map[int]Usage{},
		Counters: n.Counters,
	}
	for i := range n.slots {
		if s := n.slots[i].s; s != nil {
			t.Sessions[i] = s.view()
		}
	}
	for class := range n.ports {
		for i := range n.ports[class] {
			t.Ports[class] = append(t.Ports[class], n.ports[class][i].view())
		}
		t.Free[class], t.Ripe[class] = append([]int(nil), n.unused[class].free...), n.unused[class].ripe
	}
	for b, off := range n.binds {
		t.Binds[Tuple{Src: b.ip, SPort: b.port, Proto: b.proto}] = off
	}
	for p, refs := range n.peers {
		t.Peers[Tuple{Src: p.addr, DPort: uint16(p.off), Proto: Proto(p.class)}] = refs
	}
	for i, d := range n.Devices {
		t.Usage[i] = d.Usage
		u := t.Usage[i]
		u.refusedAt = 0
		t.Usage[i] = u
	}
	return t
}

func (s *session) view() Session {
	v := Session{Fwd: s.fwd, Ext: s.ext, EPort: s.eport, Bits: s.bits, ISN: s.isn}
	if s.dev != nil {
		v.Ifindex = s.dev.Ifindex
	}
	for i, e := range s.entry {
		v.Seen[i], v.Granted[i] = e.seen, e.granted
		if e.granted != 0 {
			v.Lease[i] = e.lease
		}
	}
	return v
}

func (p *port) view() Port {
	v := Port{Taken: p.taken, Free: p.free, Bound: p.bound, Refs: p.refs, NotedAt: p.notedAt, UsedAt: p.usedAt}
	if p.taken {
		v.Addr, v.Port = p.owner.ip, p.owner.port
		if p.dev != nil {
			v.Ifindex = p.dev.Ifindex
		}
	}
	return v
}

// Slot returns the session in a slot, modulo the slots used so far. It reports
// false if the slot is free.
func (n *NAT) Slot(i int) (Session, bool) {
	if n.fresh == 0 {
		return Session{}, false
	}
	s := n.slots[i%n.fresh].s
	if s == nil {
		return Session{}, false
	}
	return s.view(), true
}

// IsOutside reports whether an address belongs to none of the networks.
func (n *NAT) IsOutside(a Addr) bool { return n.network(a) == nil }
