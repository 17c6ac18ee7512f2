package firewall

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// protoSCTP is the protocol of the publications that the table leads to containers.
const protoSCTP = "sctp"

// addrRegister holds an address. Its first 4 bytes are also register 8, the next 4 register
// 9, and so on: behind the address comes a port.
const addrRegister = 1

func (f *Family) portRegister() uint32 { return 8 + uint32(f.addrLen)/4 }

func sctpOf(h Host) (out []Publication) {
	for _, p := range h.Published {
		if p.Proto == protoSCTP {
			out = append(out, p)
		}
	}
	return out
}

// publish adds what leads clients to published ports. The maps give container and port
// by the host's port (ports), or by its address and port (sockets). The host's own
// packets are always led, but for those to loopback, whose answers could not come back.
// A client on a bridge of ours is masqueraded, so that the answers come back this way.
func (l *leaving) publish(h Host, ps []Publication) {
	type is = []expr.Any
	var ports, sockets []nftables.SetElement
	for _, p := range ps {
		for i := range uint16(p.Last-p.First) + 1 {
			to := socketKey(p.Container, p.Port+i)
			if p.HostIP.IsValid() {
				sockets = append(sockets, nftables.SetElement{Key: socketKey(p.HostIP, p.First+i), Val: to})
			} else {
				ports = append(ports, nftables.SetElement{Key: big16(p.First + i), Val: to})
			}
		}
	}
	last := len(l.keys)
	l.keys[last-2], l.keys[last-1] = ports, sockets

	sctp := metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_SCTP})
	f := h.Family
	daddr := f.load(f.dst, addrRegister)
	dport := func(register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	}
	lead := func(set string, key ...expr.Any) is {
		return slices.Concat(sctp, key, is{
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: set},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: addrRegister, RegProtoMin: f.portRegister()}})
	}
	back := &expr.Verdict{Kind: expr.VerdictReturn}
	elsewhere := leavingRule{"not for the host", is{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(unix.RTN_LOCAL).val}, back}}
	published := leavingRule{"published SCTP ports", is{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "published"}}}
	by := func(key expr.MetaKey, set string, invert bool) is {
		return is{&expr.Meta{Key: key, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set, Invert: invert}}
	}

	in := []leavingRule{elsewhere}
	if !h.Others {
		in = append(in, leavingRule{"by no uplink", slices.Concat(by(expr.MetaKeyIIFNAME, "uplinks", true), by(expr.MetaKeyIIFNAME, "inside", true), is{back})})
	}
	for _, p := range ps {
		if p.Allow.IsValid() && p.Allow.Bits() > 0 {
			in = append(in, f.onlyAllowed(p))
		}
	}
	loopback := leavingRule{"by loopback", slices.Concat(f.in(f.dst, f.loopback), is{back})}
	l.chains = append(l.chains,
		leavingChain{name: "published", rules: []leavingRule{
			{"by one address of the host", lead("sockets", daddr, dport(f.portRegister()))},
			{"by every address of the host", lead("ports", dport(1))},
		}},
		leavingChain{name: "prerouting", hook: nftables.ChainHookPrerouting, priority: publishPriority, rules: append(in, published)},
		leavingChain{name: "output", hook: nftables.ChainHookOutput, priority: publishPriority, rules: []leavingRule{elsewhere, loopback, published}},
	)
	post := slices.IndexFunc(l.chains, func(c leavingChain) bool { return c.name == "postrouting" })
	l.chains[post].rules = slices.Insert(l.chains[post].rules, 0, leavingRule{"from one container to another's published port",
		slices.Concat(sctp, by(expr.MetaKeyIIFNAME, "inside", false), by(expr.MetaKeyOIFNAME, "inside", false), statusHas(statusDNAT), is{&expr.Masq{}})})
}

// socketKey is an address and a port as nftables joins them: each fills 4 bytes.
func socketKey(a netip.Addr, port uint16) []byte {
	return slices.Concat(a.AsSlice(), big16(port), []byte{0, 0})
}

// onlyAllowed leaves clients alone that the publication does not admit. The comment says
// all of the rule, since rules are compared by it.
func (f *Family) onlyAllowed(p Publication) leavingRule {
	exprs := metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_SCTP})
	if p.HostIP.IsValid() {
		exprs = append(exprs, payloadIs(expr.PayloadBaseNetworkHeader, uint32(f.dst), p.HostIP.AsSlice())...)
	}
	exprs = append(exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: big16(p.First), ToData: big16(p.Last)})
	exprs = append(exprs, f.compare(expr.CmpOpNeq, f.src, p.Allow)...)
	exprs = append(exprs, &expr.Verdict{Kind: expr.VerdictReturn})
	return leavingRule{fmt.Sprintf("%s is for %s", p, p.Allow), exprs}
}

// noLongerLed returns the containers' ports that a listing of the table leads to and
// another does not. Listings are sorted.
func (f *Family) noLongerLed(before, after map[string][]string) (out []netip.AddrPort) {
	for _, set := range []string{"set ports", "set sockets"} {
		for _, e := range before[set] {
			if _, still := slices.BinarySearch(after[set], e); still {
				continue
			}
			to, err := hex.DecodeString(e[strings.LastIndex(e, " ")+1:])
			if a, ok := netip.AddrFromSlice(to[:min(f.addrLen, len(to))]); err == nil && ok && len(to) >= f.addrLen+2 {
				out = append(out, netip.AddrPortFrom(a, binary.BigEndian.Uint16(to[f.addrLen:])))
			}
		}
	}
	return out
}
