package natmodel

// wish is a session to be created.
type wish struct {
	fwd     Tuple
	ext     Addr
	dev     *Device // nil: the host
	policy  Policy
	inbound bool // from outside: only on a live mapping
	moved   bool // the host or a neighbour NAT uses the port that it would have got
	leaves  bool // begun by a packet that leaves by the uplink
	eport   uint16
	owns    bool
	slot    int
}

// create makes the session. It returns "" if there is a session now, otherwise
// why not. The session may be an older one with another external address. For
// an outsider that comes to the new address, that one is in the way until its
// container sends again.
func (n *NAT) create(w *wish) Reason {
	if why := n.room(w); why != "" {
		return n.refuse(why)
	}
	slot, ok := n.memory.takeSlot()
	if !ok {
		return n.refuse("nat_full")
	}
	w.slot = slot
	made := !w.policy.EDM && !(w.moved && w.dev != nil) && n.reuse(w) && n.insertOwned(w)
	if !made && !w.inbound {
		if w.dev != nil && w.dev.Ports >= n.PortsQuota && !n.memory.makeRoom(w.dev, true, true) {
			n.free.push(slot)
			return n.refuse("quota")
		}
		if free := len(n.unused[w.fwd.Proto.class()].free); free <= n.Count/8 {
			n.memory.makeRoom(nil, false, free == 0)
		}
		made = n.bindNew(w) && n.insertOwned(w)
		if !made && !w.policy.Strict {
			made = n.share(w)
		}
	}
	if !made {
		n.free.push(slot)
		if n.flows[w.fwd] != nil {
			return ""
		}
		return n.refuse("nat_full")
	}
	n.born(w)
	return ""
}

// room checks that there is room for a session. It must fit its container's
// quota. If it began outside, it must also fit the limit of waiting sessions,
// and leave the last eighth of the quota and of the slots free.
func (n *NAT) room(w *wish) Reason {
	switch {
	case w.dev == nil:
	case w.inbound:
		if n.Waiting >= n.WaitingMax && !n.memory.dropEarly() {
			return "nat_full"
		}
		if w.dev.Sessions >= n.FlowsQuota-n.FlowsQuota/8 && !n.memory.makeRoom(w.dev, false, true) {
			return "quota"
		}
		if n.Live >= n.FlowsMax-n.FlowsMax/8 && !n.memory.makeRoom(nil, false, false) && !n.memory.dropEarly() {
			return "nat_full"
		}
	default:
		if w.dev.Sessions >= n.FlowsQuota && !n.memory.makeRoom(w.dev, false, true) {
			return "quota"
		}
		if w.fwd.Proto == TCP && w.dev.Half >= n.HalfQuota {
			return "quota"
		}
	}
	return ""
}

func (n *NAT) refuse(why Reason) Reason {
	if why == "quota" {
		n.RefusedQuota++
	} else {
		n.RefusedFull++
	}
	return why
}

// reuse takes the port that the source already has, if nobody else uses that
// port towards this remote.
func (n *NAT) reuse(w *wish) bool {
	off, ok := n.binds[bind{w.fwd.Proto, w.fwd.Src, w.fwd.SPort}]
	if !ok {
		return false
	}
	p := n.external.portOf(w.fwd.Proto, off)
	if p.stays && w.leaves {
		w.ext = p.ext
	}
	if !n.external.clear(w.fwd, w.ext, off) {
		w.moved = true
		return false
	}
	w.eport = n.First + uint16(off)
	p.refs++
	p.stay(w)
	return true
}

// stay records the address of the port's owner. With IPv6 the kernel may choose another one
// for each destination, but a mapping has one address. Both addresses of the uplink remain
// the host's here.
func (p *port) stay(w *wish) {
	if !w.inbound {
		p.ext, p.stays = w.ext, w.leaves && w.ext.Is6()
	}
}

// bindNew takes a new port. It becomes the source's port unless the source has
// one.
func (n *NAT) bindNew(w *wish) bool {
	off, ok := n.external.takePort(w)
	if !ok {
		return false
	}
	w.eport = n.First + uint16(off)
	p := n.external.portOf(w.fwd.Proto, off)
	p.owner = bind{w.fwd.Proto, w.fwd.Src, w.fwd.SPort}
	p.dev = w.dev
	p.usedAt, p.notedAt = 0, 0
	p.refs = 1
	p.bound = false
	p.stay(w)
	if _, has := n.binds[p.owner]; !has && !w.policy.EDM {
		n.binds[p.owner] = off
		p.bound = true
	}
	if w.dev != nil {
		w.dev.Ports++
	}
	return true
}

// insertOwned claims the external tuple on a counted port, or gives the port
// back. It removes a dead session that holds the tuple.
func (n *NAT) insertOwned(w *wish) bool {
	e := n.flows[reverse(w.fwd, w.ext, w.eport)]
	if e != nil && !n.memory.reap(e.s.slot, 0, false) || n.flows[w.fwd] != nil {
		n.external.putPort(w.fwd.Proto, n.external.offset(w.eport))
		return false
	}
	w.owns = true
	return true
}

// share takes a port whose tuple towards this remote is unique.
func (n *NAT) share(w *wish) bool {
	for range shareTries {
		off := int(uint64(n.Random()) * uint64(n.Count) >> 32)
		w.eport = n.First + uint16(off)
		if n.external.clear(w.fwd, w.ext, off) && n.flows[reverse(w.fwd, w.ext, w.eport)] == nil {
			n.Overloads++
			return true
		}
	}
	return false
}

// born puts the session of w into the table.
func (n *NAT) born(w *wish) {
	s := &session{slot: w.slot, fwd: w.fwd, ext: w.ext, eport: w.eport, dev: w.dev}
	s.entry = [2]entry{{s: s, out: true, seen: n.Now}, {s: s, seen: n.Now}}
	if w.inbound {
		s.bits |= Inbound | Waiting
	}
	switch {
	case w.dev == nil:
		s.bits |= OfHost
	case w.fwd.Proto == TCP && !w.inbound:
		s.bits |= HalfOpen
	}
	switch {
	case !w.owns:
		s.bits |= Shared
	case w.policy.ADF || w.policy.EIF:
		s.bits |= OutOnly
	}
	if w.owns && w.policy.ADF {
		s.bits |= Contacted
		n.peers[peer{w.fwd.Proto.class(), n.external.offset(w.eport), w.fwd.Dst}]++
	}
	n.flows[w.fwd] = &s.entry[outbound]
	n.flows[reverse(w.fwd, w.ext, w.eport)] = &s.entry[inward]
	n.slots[w.slot].s = s
	n.Live++
	if w.moved {
		n.Remaps++
	}
	if w.inbound {
		n.Waiting++
		n.memory.wait(s)
	} else if w.dev != nil {
		w.dev.Sessions++
	}
	if s.bits&HalfOpen != 0 {
		w.dev.Half++
	}
}
