package natmodel

// Bits describe a session: enum fbr_sess_bits.
type Bits uint32

// The bits.
const (
	Replied   Bits = 2
	Assured   Bits = 4 // the initiator has sent again after an answer
	FinOut    Bits = 8
	FinIn     Bits = 16
	Reset     Bits = 32
	Shared    Bits = 128 // on a port that the source does not own
	OfHost    Bits = 256
	Inbound   Bits = 512   // made by a packet from outside
	OutOnly   Bits = 1024  // only outbound packets keep it alive
	Contacted Bits = 2048  // counted in peers
	HalfOpen  Bits = 4096  // counted in its container's quota of half-open connections
	Waiting   Bits = 16384 // begun outside and not assured, in no quota
	ResetIn   Bits = 32768 // established, then ended only by the remote's RST
)

// memory gives sessions their slots, and takes them back.
type memory struct{ n *NAT }

func (b Bits) established() bool { return b&(Replied|Assured) == Replied|Assured }

func (b Bits) bothFins() bool { return b&(FinOut|FinIn) == FinOut|FinIn }

func (b Bits) closed() bool { return b&(Reset|ResetIn) != 0 || b.bothFins() }

// doubted reports whether only a RST from outside says that the connection is
// over.
func (b Bits) doubted() bool { return b&ResetIn != 0 && b&Reset == 0 && !b.bothFins() }

const (
	grace      = 2   // seconds between expiry and reclaim by the sweep
	sweepSlots = 256 // slots per pass
	probes     = 64  // slots looked at when none is free
	roomTries  = 64  // queued sessions looked at to make room for one
	waitTrim   = 2   // queued sessions removed per session queued

	firstWindow = 65536 // bytes that a container sends before the client's first ACK
)

// entry is one direction of a session.
type entry struct {
	s              *session
	out            bool
	seen           uint64
	granted, lease uint64
	macs           [12]byte
}

type session struct {
	slot  int
	fwd   Tuple
	ext   Addr
	eport uint16
	bits  Bits
	isn   uint32  // begun outside: sequence number of the SYN-ACK
	dev   *Device // nil: the host's
	entry [2]entry
}

const (
	outbound = iota
	inward
)

// slot is a place in the table. Its entries in the queues of closed sessions
// outlive the session.
type slot struct {
	s      *session
	queued [2]bool
}

func reverse(fwd Tuple, ext Addr, eport uint16) Tuple {
	return Tuple{fwd.Dst, ext, fwd.DPort, eport, fwd.Proto}
}

func (n *NAT) timeout(s *session) uint64 {
	switch s.fwd.Proto {
	case TCP:
		switch {
		case s.bits.closed():
			return n.TCPClosing
		case !s.bits.established() && s.bits&Inbound != 0:
			return n.TCPWaiting
		case !s.bits.established():
			return n.TCPOpen
		case s.bits&(FinOut|FinIn) != 0:
			return n.TCPHalf
		}
		return n.TCPEstablished
	case UDP:
		switch {
		case s.bits&Assured != 0:
			return n.UDPTwoway
		case s.bits&(Replied|Inbound) == Inbound:
			return n.UDPWaiting
		case s.bits&(Replied|Inbound) != Replied:
			return n.UDPOneway
		case s.fwd.DPort == 53:
			return n.UDPDNS
		}
		return n.UDPTwoway
	}
	return n.ICMPQuery
}

// end returns when the session ends unless a packet comes.
func (sl memory) end(s *session) uint64 {
	seen := s.entry[outbound].seen
	if s.bits&OutOnly == 0 {
		seen = max(seen, s.entry[inward].seen)
	}
	return seen + sl.n.timeout(s)*sl.n.HZ
}

func (n *NAT) expired(s *session) bool { return n.memory.end(s) <= n.Now }

// gone reports whether the session's container has left.
func (n *NAT) gone(s *session) bool { return s.dev != nil && n.Devices[s.dev.Ifindex] != s.dev }

func (sl memory) freeSession(s *session) {
	delete(sl.n.flows, reverse(s.fwd, s.ext, s.eport))
	delete(sl.n.flows, s.fwd)
	off := sl.n.external.offset(s.eport)
	if s.bits&Contacted != 0 {
		k := peer{s.fwd.Proto.class(), off, s.fwd.Dst}
		if sl.n.peers[k]--; sl.n.peers[k] == 0 {
			delete(sl.n.peers, k)
		}
	}
	if s.bits&Shared == 0 {
		sl.n.external.putPort(s.fwd.Proto, off)
	}
	if s.dev != nil {
		if s.bits&Waiting != 0 {
			sl.n.Waiting--
		} else {
			s.dev.Sessions--
		}
		if s.bits&HalfOpen != 0 {
			s.dev.Half--
		}
	}
	sl.n.Live--
	sl.n.slots[s.slot].s = nil
	sl.n.free.push(s.slot)
}

// reap frees a slot's session if it has been dead for the grace time. With
// pressed, an established connection counts as dead when it has been idle for
// the timeout of a half-closed one.
func (sl memory) reap(i int, grace uint64, pressed bool) bool {
	s := sl.n.slots[i].s
	if s == nil {
		return false
	}
	end := sl.end(s)
	if pressed && s.fwd.Proto == TCP && sl.n.timeout(s) == sl.n.TCPEstablished {
		end -= (sl.n.TCPEstablished - sl.n.TCPHalf) * sl.n.HZ
	}
	if !sl.n.gone(s) && end+grace > sl.n.Now {
		return false
	}
	sl.freeSession(s)
	return true
}

// acknowledged reports whether p, from a client outside, acknowledges what the
// container has answered. It reports true for other packets. It notes the
// container's SYN-ACK.
func (s *session) acknowledged(p *Packet, out bool) bool {
	switch {
	case p.Proto != TCP || s.bits&Inbound == 0:
	case !out:
		return p.Flags&ACK != 0 && p.Body.Ack-s.isn <= firstWindow
	case p.Flags&(SYN|ACK) == SYN|ACK:
		s.isn = p.Body.Seq()
	}
	return true
}

// track updates a session from a packet.
//
// A session that closes lives for the closing time from then on, however long
// it was idle, but no longer than it would have lived.
func (n *NAT) track(s *session, p *Packet, out bool) {
	var set Bits
	answers := out == (s.bits&Inbound != 0)
	switch {
	case answers:
		set = Replied
	case p.Proto == TCP && p.Flags&(SYN|RST) != 0:
	case s.bits&Replied != 0, p.Proto == TCP && s.bits&Inbound == 0:
		set = Assured
	}
	if s.bits&Assured == 0 && !s.acknowledged(p, out) {
		set &^= Assured
	}
	if p.Proto == TCP {
		switch {
		case p.Flags&RST != 0 && !out && s.bits.established() && s.bits&(FinOut|FinIn) == 0:
			set = ResetIn
		case p.Flags&RST != 0:
			set = Reset
		case p.Flags&SYN != 0:
			if !answers && p.Flags&ACK == 0 && s.bits.closed() { // the tuple is reused
				s.bits &^= Reset | ResetIn | FinOut | FinIn | Replied | Assured
			}
		default:
			if p.Flags&FIN != 0 && out {
				set |= FinOut
			} else if p.Flags&FIN != 0 {
				set |= FinIn
			}
			if out || s.bits&OutOnly == 0 {
				s.bits &^= Reset | ResetIn // the RST may have been forged
			}
		}
	}
	if !s.bits.closed() && (s.bits | set).closed() {
		e, closing := &s.entry[outbound], n.TCPClosing*n.HZ
		e.seen = max(e.seen, min(n.memory.end(s), n.Now+closing)-closing)
	}
	brief := p.Proto == UDP && s.fwd.DPort == 53 && s.bits&(Inbound|Assured) == 0
	if set&Replied != 0 && s.bits&Replied == 0 && (s.bits&Waiting != 0 || brief) { // the initiator's next packet must be seen
		if out {
			s.entry[inward].granted = 0
		} else {
			s.entry[outbound].granted = 0
		}
	}
	s.bits |= set
	if s.bits&(Assured|Waiting) == Assured|Waiting && s.fwd.Proto == TCP &&
		s.dev.Sessions < n.FlowsQuota-n.FlowsQuota/8 && n.Live-n.Waiting < n.FlowsMax-n.FlowsMax/8 {
		s.bits &^= Waiting
		n.Waiting--
		s.dev.Sessions++
	}
	if s.bits&HalfOpen != 0 && (s.bits.established() || s.bits.closed()) {
		s.bits &^= HalfOpen
		s.dev.Half--
	}
	closed := p.Proto == TCP && s.bits.closed()
	if closed || set&(FinOut|FinIn) != 0 { // a FIN shortens the timeout, and no lease outlives its session
		s.entry[outbound].granted, s.entry[inward].granted = 0, 0
	}
	if closed {
		n.memory.pushClosed(s.slot)
	}
}

// The queues of closed sessions.
const (
	certain = iota
	doubted
)

func (sl memory) pushClosed(i int) {
	which := certain
	if sl.n.slots[i].s.bits.doubted() {
		which = doubted
	}
	if !sl.n.slots[i].queued[which] {
		sl.n.slots[i].queued[which] = true
		sl.n.closed[which].push(i)
	}
}

// makeRoom removes closed sessions of a device (nil: of any) until one more
// session, or one more port, fits. With last, it also removes doubted ones,
// which may be alive.
func (sl memory) makeRoom(dev *Device, wantPort, last bool) bool {
	return sl.giveUp(dev, wantPort, certain) || last && sl.giveUp(dev, wantPort, doubted)
}

// giveUp is makeRoom for one queue. It leaves alone sessions that closed less
// than 20 ms ago.
func (sl memory) giveUp(dev *Device, wantPort bool, which int) bool {
	made := false
	for range roomTries {
		i, ok := sl.n.closed[which].pop()
		if !ok {
			break
		}
		sl.n.slots[i].queued[which] = false
		s := sl.n.slots[i].s
		if s == nil || !s.bits.closed() {
			continue
		}
		last := sl.end(s) - sl.n.TCPClosing*sl.n.HZ
		if dev != nil && s.dev != dev || sl.n.Now-last < sl.n.HZ/50 || which == certain && s.bits.doubted() {
			sl.pushClosed(i)
			continue
		}
		sl.freeSession(s)
		sl.n.Reclaimed++
		if made = !wantPort || dev == nil || dev.Ports < sl.n.PortsQuota; made {
			break
		}
	}
	return made
}

// dropEarly removes the oldest waiting session.
func (sl memory) dropEarly() bool {
	for range roomTries {
		s, ok := sl.n.waits.pop()
		if !ok {
			break
		}
		if sl.stillWaits(s) {
			sl.freeSession(s)
			sl.n.DroppedEarly++
			return true
		}
	}
	return false
}

func (sl memory) stillWaits(s *session) bool { return sl.n.slots[s.slot].s == s && s.bits&Waiting != 0 }

// wait queues a session that began outside.
func (sl memory) wait(s *session) {
	for range waitTrim {
		if head, ok := sl.n.waits.peek(); !ok || sl.stillWaits(head) {
			break
		}
		sl.n.waits.pop()
	}
	if sl.n.waits.len() == sl.n.FlowsMax {
		sl.n.waits.pop()
	}
	sl.n.waits.push(s)
}

// sweep looks at so many slots from the hand on. It reports whether one became
// free.
func (n *NAT) sweep(slots int, pressed bool) bool {
	found := false
	for range min(slots, n.fresh) {
		if n.hand >= n.fresh {
			n.hand = 0
		}
		if n.memory.reap(n.hand, grace*n.HZ, pressed) {
			found = true
		}
		n.hand++
	}
	return found
}

// Sweep is one tick of the sweep timer.
func (n *NAT) Sweep() {
	n.sweep(sweepSlots, false)
	for which := range n.closed {
		for range sweepSlots {
			i, ok := n.closed[which].peek()
			if !ok || n.slots[i].s != nil && n.slots[i].s.bits.closed() {
				break
			}
			n.closed[which].pop()
			n.slots[i].queued[which] = false
		}
	}
}

// takeSlot returns a free slot. It reports false if there is none.
func (sl memory) takeSlot() (int, bool) {
	for range 2 {
		if i, ok := sl.n.free.pop(); ok {
			return i, true
		}
		if sl.n.fresh < sl.n.FlowsMax {
			sl.n.fresh++
			return sl.n.fresh - 1, true
		}
		if !sl.makeRoom(nil, false, false) && !sl.dropEarly() && !sl.n.sweep(probes, true) && !sl.makeRoom(nil, false, true) {
			break
		}
	}
	return sl.n.free.pop()
}

// Flush ends the sessions of a device, or all sessions (nil).
func (n *NAT) Flush(dev *Device) {
	for i := range n.slots {
		if s := n.slots[i].s; s != nil && (dev == nil || s.dev == dev) {
			n.memory.freeSession(s)
		}
	}
}
