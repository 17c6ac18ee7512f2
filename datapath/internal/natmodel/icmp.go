package natmodel

// errorIn handles an ICMP error from outside. It reports false if the error is
// about no session.
func (n *NAT) errorIn(p Packet) (Verdict, bool) {
	q := p.Quote
	if q.Kind != Ports && q.Kind != EchoRequest || q.Src != p.Dst {
		return Verdict{}, false
	}
	e := n.inbound(q.Tuple().Reversed())
	if e == nil {
		return Verdict{}, false
	}
	inside := *q
	inside.Src, inside.SPort = e.s.fwd.Src, e.s.fwd.SPort
	p.Quote, p.Dst = &inside, e.s.fwd.Src
	return next(p), true
}

// errorOut handles an ICMP error that a container or the host sends by the
// uplink.
func (n *NAT) errorOut(from int, p Packet) Verdict {
	q, outer := p.Quote, n.network(p.Src)
	if n.network(q.Dst) != nil {
		if outer != nil && p.Src != q.Dst {
			return drop("spoof_ip")
		}
		e := n.flows[q.Tuple().Reversed()]
		if e == nil || !e.out || e.s.dev == nil || n.expired(e.s) {
			return drop("unsupported")
		}
		outside := *q
		outside.Dst, outside.DPort = e.s.ext, e.s.eport
		p.Quote = &outside
		if outer != nil {
			p.Src = e.s.ext
		}
		return next(p)
	}
	if outer != nil || n.network(q.Src) != nil {
		return drop("unsupported")
	}
	if from == 0 && p.noPort() && q.Kind == Ports && n.external.inRange(q.DPort) && n.stackRefuses(q.Tuple()) {
		return drop("foreign")
	}
	return next(p)
}

// noPort reports whether an ICMP error says that nobody has the port.
func (p *Packet) noPort() bool {
	if p.Src.Is6() {
		return p.Type == 1 && p.Code == 4
	}
	return p.Type == 3 && p.Code == 3
}
