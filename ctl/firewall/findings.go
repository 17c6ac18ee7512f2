package firewall

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// sent is what a network's containers send to anybody by a device, at first.
func sent(n Network, by Device) packet {
	p := anything()
	p.in, p.out, p.src, p.origSrc = n.Bridge, by, prefix(n.Subnet), prefix(n.Subnet)
	p.state, p.status = native(expr.CtStateBitNEW), translation(0)
	return p
}

// answered is what anybody sends back to them.
func answered(n Network, by Device) packet {
	p := anything()
	p.in, p.out, p.dst, p.origSrc = by, n.Bridge, prefix(n.Subnet), prefix(n.Subnet)
	p.state, p.status = native(expr.CtStateBitESTABLISHED), translation(0)
	return p
}

// asks is what a client sends first to a published port, by a device, when it has
// been translated.
func asks(pub Publication, by Device) packet {
	p := anything()
	p.in, p.out, p.dst, p.origDst = by, pub.Bridge, address(pub.Container), address(pub.Container)
	p.proto = known(map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[pub.Proto])
	if pub.First == pub.Last {
		p.dport, p.origDstPort = port(pub.Port), port(pub.Port)
	}
	p.state, p.status = native(expr.CtStateBitNEW), translation(0)
	return p
}

// translation is conntrack's status of a packet of which it is known how conntrack
// has translated it.
func translation(how uint32) bits {
	return bits{native(how).val, native(statusSNAT | statusDNAT).val}
}

// over is p, of a protocol.
func over(p packet, proto byte) packet {
	p.proto = known(proto)
	return p
}

// Findings says what the host's filters do to containers' traffic that the user
// may not want.
func Findings(h Host) ([]Finding, error) {
	rs, err := read()
	if err != nil {
		return nil, err
	}
	out := append(rs.condemned(h), rs.translatedBefore(h)...)
	out = append(out, rs.unmet(h)...)
	return out, rs.err
}

// Defaults names the chains that drop forwarded packets unless a rule accepts them,
// and that Ensure adds rules to.
func Defaults() (out []string, err error) {
	rs, err := read()
	if err != nil {
		return nil, err
	}
	for _, c := range rs.base(forwarding, false) {
		if c.ofFirewalld() {
			continue
		}
		if tail := rs.tail(c, jumpsDeep); tail != nil {
			out = append(out, tail.String())
		}
	}
	return out, rs.err
}

// condemned are networks and published ports that the host's filters cut off.
func (rs *ruleset) condemned(h Host) (out []Finding) {
	add := func(by *place, what string) bool {
		if by == nil {
			return false
		}
		out = append(out, Finding{"forward", fmt.Sprintf("%s drops %s%s", by, what, remedy(*by, h))})
		return true
	}
	for _, n := range h.Networks {
		if n.Internal {
			continue
		}
		for _, u := range h.ways() {
			cut := add(rs.condemns(over(sent(n, u), unix.IPPROTO_TCP), filters...), fmt.Sprintf("what network %s sends by %s", n.Name, u)) ||
				add(rs.condemns(over(answered(n, u), unix.IPPROTO_TCP), filters...), fmt.Sprintf("answers from %s to network %s", u, n.Name))
			if cut {
				continue
			}
			cutOff := map[place][]Publication{}
			var order []place
			for _, pub := range h.Published {
				if pub.Bridge != n.Bridge {
					continue
				}
				if by := rs.condemns(asks(pub, u), filters...); by != nil {
					if cutOff[*by] == nil {
						order = append(order, *by)
					}
					cutOff[*by] = append(cutOff[*by], pub)
				}
			}
			for _, by := range order {
				pubs := cutOff[by]
				more := ""
				if len(pubs) > 1 {
					more = fmt.Sprintf(", and %d other published ports", len(pubs)-1)
				}
				add(&by, fmt.Sprintf("what clients send by %s to the published port %s of %s%s", u, pubs[0], pubs[0].Name, more))
			}
		}
	}
	return out
}
