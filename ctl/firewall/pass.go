package firewall

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
)

// dnsPort is where a network's gateway answers questions for names.
const dnsPort = 53

// pass is a kind of packet that a rule lets through. A zero field means any.
type pass struct {
	hook     hook
	in, out  string // names of devices
	src, dst netip.Prefix
	proto    string // "tcp" or "udp"
	port     uint16 // the destination's
}

// wanted is what our rules in a hook let through for a network: its forwarded packets,
// and its containers' questions for names to the gateway.
func (n Network) wanted(h hook) []pass {
	switch {
	case h == forwarding:
		return []pass{{hook: h, in: n.Bridge.Name}, {hook: h, out: n.Bridge.Name}}
	case h == localIn && n.Resolver.IsValid():
		ask := pass{hook: h, in: n.Bridge.Name, dst: single(n.Resolver), proto: "udp", port: dnsPort}
		tcp := ask
		tcp.proto = "tcp"
		return []pass{ask, tcp}
	}
	return nil
}

// comment marks our rules for a network in a hook. A chain may belong to both families,
// and begin to drop at another place in each.
func (n Network) comment(h hook) string {
	c := n.Mark
	if h == localIn {
		c += ":dns"
	}
	if n.Family() == IPv6 {
		c += ":ip6"
	}
	return c
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// packet is a packet of which only what p says is known.
func (p pass) packet(f *Family) packet {
	k := f.anything()
	k.in, k.out = Device{Name: p.in}, Device{Name: p.out}
	k.src, k.dst, k.dport = f.prefix(p.src), f.prefix(p.dst), port(p.port)
	if p.proto != "" {
		k.proto = known(protocols[p.proto])
	}
	return k
}

// at is p as a rule of another hook can recognise it. In PREROUTING the kernel has not
// routed yet, and in POSTROUTING the incoming device is no longer known. There the
// network's addresses take the place of the device.
func (p pass) at(h hook, n Network) pass {
	p.hook = h
	if h == prerouting && p.out != "" {
		p.out = ""
		if !p.dst.IsValid() {
			p.dst = n.Subnet
		}
	}
	if h == postrouting && p.in != "" {
		p.in, p.src = "", n.Subnet
	}
	return p
}

// iptables are the arguments of an iptables rule that matches p.
func (p pass) iptables() (args []string) {
	add := func(set bool, w ...string) {
		if set {
			args = append(args, w...)
		}
	}
	add(p.in != "", "-i", p.in)
	add(p.out != "", "-o", p.out)
	add(p.src.IsValid(), "-s", p.src.String())
	add(p.dst.IsValid(), "-d", p.dst.String())
	add(p.proto != "", "-p", p.proto)
	add(p.port != 0, "--dport", strconv.Itoa(int(p.port)))
	return args
}

// nft is a rule that matches p, as the nft command takes it.
func (p pass) nft() string {
	var w []string
	add := func(set bool, format string, args ...any) {
		if set {
			w = append(w, fmt.Sprintf(format, args...))
		}
	}
	add(p.in != "", "iifname %s", p.in)
	add(p.out != "", "oifname %s", p.out)
	add(p.src.IsValid(), "%s saddr %s", familyOf(p.src.Addr()).word, p.src)
	add(p.dst.IsValid(), "%s daddr %s", familyOf(p.dst.Addr()).word, p.dst)
	add(p.port != 0, "%s dport %d", p.proto, p.port)
	return strings.Join(append(w, "accept"), " ")
}

// metaIs is the condition that something known of the packet has a value.
func metaIs(key expr.MetaKey, want []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want}}
}

// payloadIs is the condition that some bytes of a header have a value.
func payloadIs(base expr.PayloadBase, offset uint32, want []byte) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(want))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want}}
}

// statusHas is the condition that conntrack's status has a bit.
func statusHas(bit uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bit).val, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

// exprs are the conditions of p in nftables' instructions, for a table of a family.
// They cover devices, a single destination, protocol and port: wanted needs no more.
func (p pass) exprs(family string) (out []expr.Any) {
	meta := func(key expr.MetaKey, want []byte) { out = append(out, metaIs(key, want)...) }
	payload := func(base expr.PayloadBase, offset uint32, want []byte) {
		out = append(out, payloadIs(base, offset, want)...)
	}
	if p.in != "" {
		meta(expr.MetaKeyIIFNAME, name(p.in).val)
	}
	if p.out != "" {
		meta(expr.MetaKeyOIFNAME, name(p.out).val)
	}
	if p.dst.IsValid() {
		f := familyOf(p.dst.Addr())
		if family != f.word {
			meta(expr.MetaKeyNFPROTO, []byte{f.nfproto})
		}
		payload(expr.PayloadBaseNetworkHeader, uint32(f.dst), p.dst.Addr().AsSlice())
	}
	if p.proto != "" {
		meta(expr.MetaKeyL4PROTO, []byte{protocols[p.proto]})
		payload(expr.PayloadBaseTransportHeader, 2, big16(p.port))
	}
	return out
}

// ufw are the commands that put a rule before all rules that were given to ufw. `ufw
// prepend` leaves a rule with another action where it is. The second command then
// changes its action.
func (p pass) ufw() string {
	command, w := "ufw", []string{"allow"}
	if p.hook == forwarding {
		command = "ufw route"
	}
	if p.in != "" {
		w = append(w, "in on", p.in)
	}
	if p.out != "" {
		w = append(w, "out on", p.out)
	}
	if p.dst.IsValid() {
		to := p.dst.String()
		if p.dst.IsSingleIP() {
			to = p.dst.Addr().String()
		}
		w = append(w, "to", to)
	}
	if p.port != 0 {
		w = append(w, "port", strconv.Itoa(int(p.port)))
	}
	if p.proto != "" && p.hook != localIn { // a question for a name: without a protocol ufw takes both
		w = append(w, "proto", p.proto)
	}
	rule := strings.Join(w, " ")
	return fmt.Sprintf("%s prepend %s && %s %s", command, rule, command, rule)
}
