package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// sent is the first packet of a network's containers to any remote, by a device.
func sent(n Network, by Device) packet {
	f := n.Family()
	p := f.anything()
	p.in, p.out, p.src, p.origSrc = n.Bridge, by, f.prefix(n.Subnet), f.prefix(n.Subnet)
	p.state, p.status = native(expr.CtStateBitNEW), translation(0)
	return p
}

// answered is the answer of any remote to such a packet.
func answered(n Network, by Device) packet {
	f := n.Family()
	p := f.anything()
	p.in, p.out, p.dst, p.origSrc = by, n.Bridge, f.prefix(n.Subnet), f.prefix(n.Subnet)
	p.state, p.status = native(expr.CtStateBitESTABLISHED), translation(0)
	return p
}

// asks is the first packet of a client to a published port, by a device. The kernel
// translates it behind connection tracking, unless it is for the container's own address.
func asks(pub Publication, by Device) packet {
	f := familyOf(pub.Container)
	first, how := f.anything(), uint32(statusDNAT)
	first.in, first.dst, first.dstType = by, f.address(pub.asked(by)), native(unix.RTN_LOCAL)
	if pub.HostIP == pub.Container {
		first.dstType, how = native(unix.RTN_UNICAST), 0
	}
	first.proto = known(protocols[pub.Proto])
	first.state, first.status = native(expr.CtStateBitNEW), translation(0)
	if pub.First == pub.Last {
		first.dport = port(pub.First)
	}
	first.origDst, first.origDstPort = first.dst, first.dport
	p := first
	p.first = &first
	p.out, p.dst, p.dstType, p.status = pub.Bridge, f.address(pub.Container), native(unix.RTN_UNICAST), translation(how)
	if pub.First == pub.Last {
		p.dport = port(pub.Port)
	}
	return p
}

// asked is the host's address that a client has used, who comes by a device. It is
// invalid if that is not known.
func (p Publication) asked(by Device) netip.Addr {
	if p.HostIP.IsValid() {
		return p.HostIP
	}
	return by.Addr
}

// hosts is the prefix of asked, invalid if that is.
func (p Publication) hosts(by Device) netip.Prefix {
	if a := p.asked(by); a.IsValid() {
		return single(a)
	}
	return netip.Prefix{}
}

// translation is conntrack's status of a packet whose translation is known: how is a
// combination of statusSNAT and statusDNAT.
func translation(how uint32) bits {
	return bits{native(how).val, native(statusSNAT | statusDNAT).val}
}

// over is p with a known protocol.
func over(p packet, proto byte) packet {
	p.proto = known(proto)
	return p
}

// question is a container's first packet of a question for a name to its gateway.
func question(n Network, proto byte) packet {
	f := n.Family()
	p := f.anything()
	p.in, p.src, p.origSrc = n.Bridge, f.prefix(n.Subnet), f.prefix(n.Subnet)
	p.dst, p.origDst, p.dstType = f.address(n.Resolver), f.address(n.Resolver), native(unix.RTN_LOCAL)
	p.proto, p.dport, p.origDstPort = known(proto), port(dnsPort), port(dnsPort)
	p.state, p.status = native(expr.CtStateBitNEW), translation(0)
	return p
}

// reply is the gateway's answer to a question.
func reply(n Network, proto byte) packet {
	p := question(n, proto)
	p.in, p.out, p.src, p.dst = Device{}, n.Bridge, p.dst, p.src
	p.sport, p.dport, p.dstType = p.dport, p.sport, native(unix.RTN_UNICAST)
	p.state = native(expr.CtStateBitESTABLISHED)
	return p
}

// Findings says what the host's filters do with containers' traffic in one family: whether
// they drop what no rule accepts, and what else the user may not want.
func Findings(h Host) ([]Finding, error) {
	rs, err := read(h.Family)
	if err != nil {
		return nil, err
	}
	suffix, of := "", ""
	if h.Family == IPv6 {
		suffix, of = "-ipv6", " by IPv6"
	}
	out := []Finding{rs.byDefault("forward-policy"+suffix, "what is forwarded"+of, forwarding),
		rs.byDefault("input-policy"+suffix, "what is sent to the host"+of, localIn)}
	out = append(out, rs.condemned(h)...)
	out = append(out, rs.translatedBefore(h)...)
	return out, rs.err
}

// byDefault says which chains of a hook drop what no rule accepts.
func (rs *ruleset) byDefault(name, what string, h hook) Finding {
	var ours, firewallds []string
	for _, c := range rs.base(h, false) {
		switch tail := rs.tail(c, jumpsDeep); {
		case tail == nil:
		case c.ofFirewalld():
			firewallds = append(firewallds, tail.chain.String())
		default:
			ours = append(ours, tail.String())
		}
	}
	f := Finding{Name: name, Detail: "nothing drops " + what + " by default"}
	var says []string
	if len(ours) > 0 {
		says = append(says, fmt.Sprintf("dropped by default in %s: 'fastbr up' adds tagged accept rules", strings.Join(ours, ", ")))
	}
	if len(firewallds) > 0 {
		says = append(says, fmt.Sprintf("dropped by default by firewalld in %s: 'fastbr up' gives its bridges a zone", strings.Join(firewallds, ", ")))
	}
	if len(says) > 0 {
		f.Detail = strings.Join(says, "; ")
	}
	return f
}

// condemned names the networks, published ports and questions for names that the host's
// filters cut off.
func (rs *ruleset) condemned(h Host) (out []Finding) {
	add := func(by *cut, n Network, p pass, kind, what string) bool {
		if by != nil {
			out = append(out, Finding{kind, true, fmt.Sprintf("%s drops %s: %s", by, what, rs.remedy(*by, n, p, h))})
		}
		return by != nil
	}
	for _, n := range h.Networks {
		for _, ask := range n.wanted(localIn) {
			proto := protocols[ask.proto]
			if add(rs.condemns(question(n, proto), prerouting, localIn), n, ask, "names",
				fmt.Sprintf("questions for names that network %s asks %s", n.Name, n.Resolver)) ||
				add(rs.condemns(reply(n, proto), localOut, postrouting), n, pass{out: n.Bridge.Name, src: single(n.Resolver)}, "names",
					fmt.Sprintf("answers about names from %s to network %s", n.Resolver, n.Name)) {
				break
			}
		}
		if n.Internal {
			continue
		}
		for _, u := range h.ways() {
			stopped := add(rs.condemns(over(sent(n, u), unix.IPPROTO_TCP), filters...), n, pass{in: n.Bridge.Name}, "forward",
				fmt.Sprintf("what network %s sends by %s", n.Name, u)) ||
				add(rs.condemns(over(answered(n, u), unix.IPPROTO_TCP), filters...), n, pass{out: n.Bridge.Name}, "forward",
					fmt.Sprintf("answers from %s to network %s", u, n.Name))
			if stopped {
				continue
			}
			pubs := map[cut][]Publication{}
			var order []cut
			for _, pub := range h.Published {
				if pub.Bridge != n.Bridge {
					continue
				}
				if by := rs.condemns(asks(pub, u), filters...); by != nil {
					if pubs[*by] == nil {
						order = append(order, *by)
					}
					pubs[*by] = append(pubs[*by], pub)
				}
			}
			for _, by := range order {
				pub, more := pubs[by][0], ""
				if others := len(pubs[by]) - 1; others > 0 {
					more = fmt.Sprintf(", and %d other published ports", others)
				}
				through := pass{out: n.Bridge.Name, dst: single(pub.Container), proto: pub.Proto, port: pub.Port}
				if by.base.early() {
					through = pass{in: u.Name, dst: pub.hosts(u), proto: pub.Proto, port: pub.First}
				}
				add(&by, n, through, "forward",
					fmt.Sprintf("what clients send by %s to the published port %s of %s%s", u, pub, pub.Name, more))
			}
		}
	}
	return out
}

// remedy says what to do about a rule that drops what p would let through.
func (rs *ruleset) remedy(by cut, n Network, p pass, h Host) string {
	c := by.chain
	if c.ofFirewalld() {
		return rs.firewalldRemedy(n, h.Networks)
	}
	if tail := rs.tail(by.base, jumpsDeep); tail != nil && slices.Contains(opened, by.base.hook) {
		if missing, _ := rs.ours(rs.room(*tail), n, by.base.hook); len(missing) > 0 {
			return mendsItself
		}
	}
	p = p.at(by.base.hook, n)
	var command string
	switch {
	case c.ofIPTables() && strings.HasPrefix(c.name, "ufw-user-") || strings.HasPrefix(c.name, "ufw6-user-"):
		command = p.ufw()
	case c.ofIPTables():
		command = fmt.Sprintf("%s -t %s -I %s %d %s -j ACCEPT", iptablesOf(c.table), c.table.name, c.name, by.at+1, strings.Join(p.iptables(), " "))
	case by.at < len(c.rules):
		command = fmt.Sprintf("nft insert rule %s %s %s handle %d %s", c.table.family, c.table.name, c.name, c.rules[by.at].handle, p.nft())
	default:
		command = fmt.Sprintf("nft add rule %s %s %s %s", c.table.family, c.table.name, c.name, p.nft())
	}
	return "unless that is meant: " + command
}
