// Package ipam chooses subnets and addresses. It is pure: its results depend on
// the arguments alone.
package ipam

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
)

// Sentinels of this package.
var (
	// ErrOverlap: the subnet overlaps one in use.
	ErrOverlap = errors.New("overlaps")
	// ErrNoPool: every pool overlaps a subnet in use.
	ErrNoPool = errors.New("no free subnet")
	// ErrFull: the subnet has no free address.
	ErrFull = errors.New("subnet is full")
	// ErrOutside: the address is not in the subnet.
	ErrOutside = errors.New("not in the subnet")
	// ErrReserved: the address is the network's, the broadcast or the gateway's
	// address. The first address of an IPv6 subnet is the anycast address of its
	// routers (RFC 4291 section 2.6.1).
	ErrReserved = errors.New("reserved")
	// ErrTaken: a port has the address.
	ErrTaken = errors.New("taken")
	// ErrSubnet: the prefix is no usable subnet.
	ErrSubnet = errors.New("not a usable subnet")
)

// Default returns the subnet of the network named "default".
func Default() netip.Prefix { return netip.MustParsePrefix("172.30.0.0/16") }

// Pools yields the subnets for networks that name none: the /20s of
// 192.168.0.0/16, then those of 172.16.0.0/12.
func Pools() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, base := range []string{"192.168.0.0/16", "172.16.0.0/12"} {
			p := netip.MustParsePrefix(base)
			first := toInt(p.Addr())
			for i := range uint32(1) << (20 - p.Bits()) {
				if !yield(netip.PrefixFrom(fromInt(first+i<<12), 20)) {
					return
				}
			}
		}
	}
}

// Next returns the first prefix of candidates, then of Pools, that overlaps
// nothing in use. The error is ErrNoPool if there is none.
func Next(used []netip.Prefix, candidates ...netip.Prefix) (netip.Prefix, error) {
	for _, p := range candidates {
		if _, bad := Overlap(p, used); !bad {
			return p, nil
		}
	}
	for p := range Pools() {
		if _, bad := Overlap(p, used); !bad {
			return p, nil
		}
	}
	return netip.Prefix{}, ErrNoPool
}

// Overlap returns a prefix in used that shares addresses with p. It ignores the
// default route and its two halves: VPN clients use the halves to cover the
// default route without replacing it.
func Overlap(p netip.Prefix, used []netip.Prefix) (netip.Prefix, bool) {
	for _, u := range used {
		if u.Bits() > 1 && u.Overlaps(p) {
			return u, true
		}
	}
	return netip.Prefix{}, false
}

// CheckSubnet checks that p suits a network: unicast, with room for a gateway and one
// container. IPv4 subnets are /8 to /30, IPv6 subnets /24 to /126: a /64 is usual, but
// nothing in a network depends on it, since addresses are given out and not made up
// from prefixes. A /24 is what CRI-O's own configuration has. The error wraps ErrSubnet.
func CheckSubnet(p netip.Prefix) error {
	shortest, longest := 8, 30
	if !p.Addr().Is4() {
		shortest, longest = 24, 126
	}
	switch {
	case !unicast(p.Addr()):
		return fmt.Errorf("%s: %w: not unicast", p, ErrSubnet)
	case p != p.Masked():
		return fmt.Errorf("%s: %w: host bits are set, did you mean %s", p, ErrSubnet, p.Masked())
	case p.Bits() < shortest || p.Bits() > longest:
		return fmt.Errorf("%s: %w: /%d to /%d", p, ErrSubnet, shortest, longest)
	}
	return nil
}

// unicast reports whether hosts of other networks may have the address. IPv4 addresses
// written as IPv6 addresses, and what was once site-local (RFC 3879), are not.
func unicast(a netip.Addr) bool {
	if !a.IsGlobalUnicast() {
		return false
	}
	if a.Is4() {
		return a.As4()[0] != 0 && a.As4()[0] < 240
	}
	return !a.Is4In6() && !netip.MustParsePrefix("fec0::/10").Contains(a)
}

// CheckAllowed checks that a container may be allowed the addresses of p: IPv4,
// unicast, and not half of the world. The error wraps ErrSubnet.
func CheckAllowed(p netip.Prefix) error {
	switch a := p.Addr(); {
	case !a.Is4():
		return fmt.Errorf("%s: %w: IPv4 only", p, ErrSubnet)
	case p != p.Masked():
		return fmt.Errorf("%s: %w: host bits are set, did you mean %s", p, ErrSubnet, p.Masked())
	case p.Bits() < 8:
		return fmt.Errorf("%s: %w: /8 to /32: name the prefixes that are behind the container", p, ErrSubnet)
	case !unicast(a):
		return fmt.Errorf("%s: %w: not unicast", p, ErrSubnet)
	}
	return nil
}

// Minimal returns prefixes that cover the same addresses and do not overlap.
func Minimal(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	out := sorted[:0]
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// Offset returns how far an address is from the subnet's first.
func Offset(p netip.Prefix, a netip.Addr) int { return int(toInt(a) - toInt(p.Masked().Addr())) }

// Gateway returns the subnet's first address after the network address.
func Gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// Broadcast returns the last address of an IPv4 subnet.
func Broadcast(p netip.Prefix) netip.Addr {
	return fromInt(toInt(p.Masked().Addr()) | (1<<(32-p.Bits()) - 1))
}

// CheckGateway checks that gw can be the gateway of the subnet. The error wraps
// ErrOutside or ErrReserved.
func CheckGateway(p netip.Prefix, gw netip.Addr) error {
	switch {
	case !p.Contains(gw):
		return fmt.Errorf("%s: %w %s", gw, ErrOutside, p)
	case gw == p.Masked().Addr(), gw.Is4() && gw == Broadcast(p):
		return fmt.Errorf("%s: %w in %s", gw, ErrReserved, p)
	}
	return nil
}

// Check checks that a container may have the address. The error wraps
// ErrOutside, ErrReserved or ErrTaken.
func Check(p netip.Prefix, gw, ip netip.Addr, taken func(netip.Addr) bool) error {
	if err := CheckGateway(p, ip); err != nil {
		return err
	}
	if ip == gw {
		return fmt.Errorf("%s: %w for the gateway", ip, ErrReserved)
	}
	if taken(ip) {
		return fmt.Errorf("%s: %w", ip, ErrTaken)
	}
	return nil
}

// Allocate returns the lowest free address. The error wraps ErrFull if there is
// none.
func Allocate(p netip.Prefix, gw netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	for a := p.Masked().Addr().Next(); CheckGateway(p, a) == nil; a = a.Next() {
		if a != gw && !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", p, ErrFull)
}

// MAC returns the MAC address derived from an IPv4 address: 02:42, then its
// four bytes in network byte order.
func MAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

func toInt(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// NewULA returns the prefix of a site that has the 40 random bits as its global ID: a
// /48 of fd00::/8 (RFC 4193 section 3.1).
func NewULA(global [5]byte) netip.Prefix {
	a := [16]byte{0xfd}
	copy(a[1:], global[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// NextOf returns the first /64 of a /48 that overlaps nothing in use. It looks from the
// subnet with the number from on, and then from number 0. The error is ErrNoPool if there
// is none.
func NextOf(site netip.Prefix, from uint16, used []netip.Prefix) (netip.Prefix, error) {
	b := site.Masked().Addr().As16()
	for i := range 1 << 16 {
		binary.BigEndian.PutUint16(b[6:], from+uint16(i))
		p := netip.PrefixFrom(netip.AddrFrom16(b), 64)
		if _, bad := Overlap(p, used); !bad {
			return p, nil
		}
	}
	return netip.Prefix{}, ErrNoPool
}

// LinkLocal returns the link-local address that belongs to a MAC address (RFC 4291
// appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

func fromInt(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
