package firewall

import (
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Family is what a filter has to know of IPv4 or of IPv6.
type Family struct {
	name     string // as in a sentence
	word     string // nft's
	table    nftables.TableFamily
	nfproto  byte
	ethtype  uint16
	iptables string // the command; its two variants have a suffix
	legacy   string // the family of legacy tables, which is the command's name
	file     string // below /proc/net: the names of the legacy tables that there are

	addrLen, headerLen int // bytes
	proto, src, dst    int // offsets in the header
	ctSrc, ctDst       uint32
	addr               nftables.SetDatatype // of sets
	loopback           netip.Prefix
	icmp, echo         byte // the protocol, and the type of its echo request
}

// IPv4 and IPv6 are the two families.
var (
	IPv4 = &Family{name: "IPv4", word: "ip", table: nftables.TableFamilyIPv4, nfproto: unix.NFPROTO_IPV4, ethtype: unix.ETH_P_IP,
		iptables: "iptables", legacy: "iptables-legacy", file: "ip_tables_names",
		addrLen: 4, headerLen: 20, proto: 9, src: 12, dst: 16, ctSrc: 19, ctDst: 20, // NFT_CT_SRC_IP, NFT_CT_DST_IP
		addr: nftables.TypeIPAddr, loopback: netip.MustParsePrefix("127.0.0.0/8"), icmp: unix.IPPROTO_ICMP, echo: 8}
	IPv6 = &Family{name: "IPv6", word: "ip6", table: nftables.TableFamilyIPv6, nfproto: unix.NFPROTO_IPV6, ethtype: unix.ETH_P_IPV6,
		iptables: "ip6tables", legacy: "ip6tables-legacy", file: "ip6_tables_names",
		addrLen: 16, headerLen: 40, proto: 6, src: 8, dst: 24, ctSrc: 21, ctDst: 22, // NFT_CT_SRC_IP6, NFT_CT_DST_IP6
		addr: nftables.TypeIP6Addr, loopback: netip.MustParsePrefix("::1/128"), icmp: unix.IPPROTO_ICMPV6, echo: 128}
)

// Table is the name of our table of the family, with nft's word for the family.
func (f *Family) Table() string { return f.word + " " + masqueradeTable }

// familyOf is the family of an address.
func familyOf(a netip.Addr) *Family {
	if a.Is6() {
		return IPv6
	}
	return IPv4
}

// ofTable is the family of a table that only one family has, or nil.
func ofTable(t table) *Family {
	for _, f := range []*Family{IPv4, IPv6} {
		if t.family == f.word || t.family == f.legacy {
			return f
		}
	}
	return nil
}

// prefix is an address in p, or any address if p is invalid.
func (f *Family) prefix(p netip.Prefix) bits {
	b := unknown(f.addrLen)
	if !p.IsValid() {
		return b
	}
	for i := range p.Bits() {
		b.mask[i/8] |= 0x80 >> (i % 8)
	}
	copy(b.val, p.Masked().Addr().AsSlice())
	return b
}

// address is a, or any address if a is invalid.
func (f *Family) address(a netip.Addr) bits {
	if !a.IsValid() {
		return unknown(f.addrLen)
	}
	return f.prefix(single(a))
}

// anything is a packet of the family of which nothing else is known.
func (f *Family) anything() packet {
	return packet{family: f, src: unknown(f.addrLen), dst: unknown(f.addrLen), dstType: unknown(4), proto: unknown(1),
		sport: unknown(2), dport: unknown(2), state: unknown(4), status: unknown(4),
		origSrc: unknown(f.addrLen), origDst: unknown(f.addrLen), origSrcPort: unknown(2), origDstPort: unknown(2)}
}
