package natmodel

// HostIn handles a packet that every rule of INPUT lets through to the host.
func (n *NAT) HostIn(p Packet) {
	if p.Kind == Ports && n.external.inRange(p.DPort) && !n.ofHost(p.Proto, p.DPort) {
		n.passed[n.Place(p.Tuple())] = p.Tuple()
	}
}

// stackRefuses reports whether a refusal of the inbound tuple is the stack's
// own, for a port for which nobody on the host answers. A rule's refusal is
// not: INPUT has not let the packet through. A note serves one answer.
func (n *NAT) stackRefuses(in Tuple) bool {
	place := n.Place(in)
	if n.passed[place] != in {
		return false
	}
	delete(n.passed, place)
	return !n.ofHost(in.Proto, in.DPort) && !n.Busy(in)
}

// ofHost reports whether the host answers for a port of the range: it was the
// last to use it, or has recently used it beside a mapping.
func (n *NAT) ofHost(proto Proto, number uint16) bool {
	p := n.external.portOf(proto, n.external.offset(number))
	return p.notedAt != 0 && (p.refs == 0 || n.external.noted(p))
}
