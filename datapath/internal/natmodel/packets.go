package natmodel

func next(p Packet) Verdict { return Verdict{Action: Next, Packet: p} }

func drop(why Reason) Verdict { return Verdict{Action: Drop, Reason: why} }

// plain reports whether a packet may take the fast path in this direction.
func (p *Packet) plain(out bool) bool {
	if p.TTL <= 1 {
		return false
	}
	switch p.Kind {
	case Ports:
		if p.Proto == UDP && p.Body.NoSum && p.Src.Is6() { // not allowed by IPv6
			return false
		}
		return p.Proto != TCP || p.Flags&(SYN|FIN|RST|ACK) == ACK
	case EchoRequest:
		return out
	case EchoReply:
		return !out
	}
	return false
}

func (n *NAT) leased(e *entry) bool { return e.granted > n.RevokedAt && n.Now-e.granted < e.lease }

// grant lets a direction of a session use the fast path for a while, because
// the kernel has let a packet through to the last hook.
func (n *NAT) grant(e *entry, macs [12]byte) {
	if n.Lease == 0 {
		return
	}
	e.macs = macs
	base := n.Lease
	if n.Now-n.RevokedAt < n.HZ { // another revocation may have been left out
		base = min(base, n.HZ)
	}
	e.lease = base - base/4 + base/2*uint64(n.Random()&255)>>8
	e.seen, e.granted = n.Now, n.Now
	e.lease = min(e.lease, n.memory.end(e.s)-n.Now) // no lease outlives its session
}

// hit forwards a packet by its entry.
func (n *NAT) hit(e *entry, p Packet) Verdict {
	if n.Now-e.seen >= n.HZ {
		e.seen = n.Now
	}
	p.MACs = e.macs
	p.TTL--
	return Verdict{Action: Redirect, Packet: e.translate(p)}
}

// translate rewrites the source of an outbound packet, or the destination of an
// inbound one.
func (e *entry) translate(p Packet) Packet {
	if e.out {
		p.Src, p.SPort = e.s.ext, e.s.eport
	} else {
		p.Dst, p.DPort = e.s.fwd.Src, e.s.fwd.SPort
	}
	return p
}

// PortIn handles a packet that a container sends to its gateway.
func (n *NAT) PortIn(d *Device, p Packet) Verdict {
	if p.Src != d.IP {
		return drop("spoof_ip")
	}
	if p.plain(true) && !d.Slow {
		e := n.flows[p.Tuple()]
		if e != nil && e.out && e.s.dev == d && n.leased(e) && !n.expired(e.s) {
			return n.hit(e, p)
		}
	}
	if net := n.network(p.Dst); net != nil && net != d.Net {
		return drop("isolated")
	}
	return next(p)
}

// UplinkOut handles a packet that leaves by the uplink. from is the device by
// which it came in, or 0 if the host made it. fast: it carries the fast path's
// mark.
func (n *NAT) UplinkOut(from int, p Packet, fast bool) Verdict {
	var net *Network
	if p.Src != n.Uplink {
		net = n.network(p.Src)
	}
	switch {
	case net != nil:
		return n.containerOut(net, from, p)
	case fast:
		return next(p)
	}
	return n.hostOut(from, p)
}

func (n *NAT) containerOut(net *Network, from int, p Packet) Verdict {
	if from != 0 && from != net.Bridge {
		return drop("spoof_ip")
	}
	d := n.DeviceOf(p.Src)
	if d == nil {
		return drop("spoof_ip")
	}
	if p.Kind == Error {
		return n.errorOut(from, p)
	}
	v := n.snat(d, p, from != 0)
	if (v.Reason == "quota" || v.Reason == "nat_full") && n.Now-d.refusedAt >= n.HZ/10 {
		d.refusedAt = n.Now
		v.Action = Redirect
		quoted := p
		v.Packet = Packet{
			Kind: Error, Proto: ICMP, Src: net.Gateway, Dst: d.IP, TTL: 64, MACs: d.MACs, Type: 3, Code: 13,
			Quote: &quoted, Body: Body{TOS: 0xc0, Cut: 8},
		}
		if d.IP.Is6() {
			v.Packet.Type, v.Packet.Code, v.Packet.Body.TOS = 1, 1, 0
		}
	}
	return v
}

// DeviceOf returns the port with an address, or nil.
func (n *NAT) DeviceOf(a Addr) *Device {
	for _, d := range n.Devices {
		if d.IP == a {
			return d
		}
	}
	return nil
}

// live returns the outbound entry of a tuple if it is valid. It removes an
// entry that has expired, has another owner, or has an external address other
// than ext (none: any).
func (n *NAT) live(t Tuple, d *Device, ext Addr) *entry {
	e := n.flows[t]
	if e == nil || !e.out {
		return nil
	}
	if e.s.dev == d && !n.expired(e.s) && (!ext.IsValid() || e.s.ext == ext) {
		return e
	}
	n.memory.freeSession(e.s)
	return nil
}

// snat handles a container's packet at the uplink. forwarded: it came over the
// container's bridge.
func (n *NAT) snat(d *Device, p Packet, forwarded bool) Verdict {
	if p.Kind != Ports && p.Kind != EchoRequest {
		return drop("unsupported")
	}
	var ext Addr
	if forwarded {
		if ext = n.Route; !ext.IsValid() {
			return drop("no_uplink")
		}
	}
	rst := p.Flags&RST != 0
	lives := ext
	if ext.Is6() { // as long as it is the host's
		lives = Addr{}
	}
	e := n.live(p.Tuple(), d, lives)
	if e == nil {
		if !forwarded || rst || p.Proto == TCP && p.Flags&(SYN|ACK) == SYN|ACK {
			return drop("unsupported")
		}
		if why := n.create(&wish{fwd: p.Tuple(), ext: ext, dev: d, policy: d.Net.Policy, leaves: true}); why != "" {
			return drop(why)
		}
		e = n.flows[p.Tuple()]
	}
	n.track(e.s, &p, true)
	if !rst {
		e.seen = n.Now
	}
	if forwarded {
		if e.s.bits&OutOnly != 0 && !rst {
			n.external.portOf(p.Proto, n.external.offset(e.s.eport)).usedAt = n.Now
		}
		if !d.Slow && !e.s.bits.closed() && p.Flags&(SYN|FIN|RST) == 0 {
			n.grant(e, p.MACs)
		}
	}
	return next(e.translate(p))
}

// hostOut handles a packet of the host, or of another NAT on the host's
// address.
func (n *NAT) hostOut(from int, p Packet) Verdict {
	if p.Kind == Error {
		return n.errorOut(from, p)
	}
	if p.Kind != Ports && p.Kind != EchoRequest || !n.external.inRange(p.SPort) {
		return next(p)
	}
	if from != 0 && p.Src.Is6() && p.Src != n.Uplink && !n.external.portOf(p.Proto, n.external.offset(p.SPort)).had(n) {
		return next(p)
	}
	rst := p.Flags&RST != 0
	// A RST without ACK answers an unwanted segment.
	if rst && from == 0 && p.Flags&ACK == 0 && n.stackRefuses(p.Tuple().Reversed()) {
		return drop("foreign")
	}
	e := n.live(p.Tuple(), nil, Addr{})
	if e == nil {
		ours := n.flows[reverse(p.Tuple(), p.Src, p.SPort)]
		free := ours == nil || ours.out || n.expired(ours.s)
		if free || !rst && ours.s.movable() {
			if !rst {
				n.external.portOf(p.Proto, n.external.offset(p.SPort)).notedAt = n.Now
			}
			if !free {
				n.move(ours.s)
			}
			return next(p)
		}
		n.create(&wish{fwd: p.Tuple(), ext: p.Src, moved: true})
		if e = n.flows[p.Tuple()]; e == nil { // the host takes precedence
			if ours = n.flows[reverse(p.Tuple(), p.Src, p.SPort)]; ours != nil {
				n.memory.freeSession(ours.s)
			}
			return next(p)
		}
	}
	n.track(e.s, &p, true)
	e.seen = n.Now
	return next(e.translate(p))
}

// movable reports whether a session may continue on another port: not a host's,
// and not an established connection.
func (s *session) movable() bool {
	return s.dev != nil && (s.fwd.Proto != TCP || !s.bits.established() || s.bits.closed())
}

// move gives a session another external port. A closed session ends instead.
func (n *NAT) move(s *session) {
	over := s.bits.closed() || s.bits&Inbound != 0
	n.memory.freeSession(s)
	if !over && !n.gone(s) {
		n.create(&wish{fwd: s.fwd, ext: s.ext, dev: s.dev, policy: s.dev.Net.Policy, moved: true, leaves: true})
	}
}

// inbound returns the entry under which a packet from outside is let in.
func (n *NAT) inbound(t Tuple) *entry {
	e := n.flows[t]
	if e == nil || e.out || n.expired(e.s) || n.gone(e.s) {
		return nil
	}
	return e
}

// UplinkIn handles a packet from outside.
func (n *NAT) UplinkIn(p Packet) Verdict {
	answer := (p.Kind == Ports || p.Kind == EchoReply) && n.external.inRange(p.DPort)
	if e := n.flows[p.Tuple()]; answer && p.plain(false) && e != nil && !e.out && e.s.dev != nil && n.leased(e) && !n.expired(e.s) {
		if n.Devices[e.s.dev.Ifindex] == e.s.dev && !e.s.dev.Slow {
			return n.hit(e, p)
		}
	}
	if p.Kind == Error {
		if n.network(p.Src) != nil {
			return drop("martian")
		}
		if v, ours := n.errorIn(p); ours {
			return v
		}
	} else if answer {
		e := n.inbound(p.Tuple())
		if e == nil {
			if why := n.admit(p); why != "" {
				return drop(why)
			}
			e = n.inbound(p.Tuple())
		}
		if e != nil {
			n.track(e.s, &p, false)
			if p.Flags&RST == 0 {
				e.seen = n.Now
			}
			return next(e.translate(p))
		}
	}
	if n.network(p.Src) != nil {
		return drop("martian")
	}
	if n.network(p.Dst) != nil {
		return drop("direct")
	}
	return next(p)
}

// admit makes a session for the first packet from outside, if the mapping on
// its port lets the sender in. It returns the reason if there is no room for
// the session.
func (n *NAT) admit(p Packet) Reason {
	if p.Kind != Ports || p.Proto == TCP && p.Flags&(SYN|ACK|FIN|RST) != SYN || n.network(p.Src) != nil {
		return ""
	}
	off := n.external.offset(p.DPort)
	m := n.external.portOf(p.Proto, off)
	lives := n.UDPTwoway
	if p.Proto == TCP {
		lives = n.TCPEstablished
	}
	if !m.bound || m.dev == nil || n.Now-m.usedAt >= lives*n.HZ {
		return ""
	}
	net := n.network(m.owner.ip)
	if net == nil || !net.EIF && !(net.ADF && n.peers[peer{p.Proto.class(), off, p.Src}] > 0) || n.Route != p.Dst && !(m.stays && m.ext == p.Dst) {
		return ""
	}
	fwd := Tuple{m.owner.ip, p.Src, m.owner.port, p.SPort, p.Proto}
	return n.create(&wish{fwd: fwd, ext: p.Dst, dev: m.dev, policy: net.Policy, inbound: true})
}

// PortOut handles a packet from the uplink that the kernel delivers to a
// container. From now on the inbound direction may be fast.
func (n *NAT) PortOut(d *Device, p Packet) {
	if p.Kind != Ports && p.Kind != EchoReply {
		return
	}
	e := n.flows[p.Tuple().Reversed()]
	if e == nil || !e.out || e.s.dev != d {
		return
	}
	if !d.Slow && !e.s.bits.closed() && !n.expired(e.s) && p.Flags&(SYN|FIN|RST) == 0 {
		n.grant(&e.s.entry[inward], p.MACs)
	}
}
