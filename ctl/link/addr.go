package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Family is an address family.
type Family int

const (
	IPv4 Family = unix.AF_INET
	IPv6 Family = unix.AF_INET6
)

var families = []Family{IPv4, IPv6}

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// any is the default route's destination.
func (f Family) any() netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// AddAddr adds an address to the device. It succeeds when the device already has it.
// The device may use an IPv6 address at once: nobody is asked whether it is a duplicate.
func (c *Conn) AddAddr(index int, p netip.Prefix) error {
	return addAddr(c, index, p, unix.IFA_F_NODAD)
}

// Tentative gives a device IPv6 addresses of which the kernel first asks whether another
// host has them (RFC 4862 section 5.4), if the device's accept_dad says so.
type Tentative struct {
	Conn  *Conn
	Index int
}

// AddAddr is Conn's, but the address cannot be used at once.
func (t Tentative) AddAddr(p netip.Prefix) error { return addAddr(t.Conn, t.Index, p, 0) }

func addAddr(c *Conn, index int, p netip.Prefix, flags int) error {
	a := &netlink.Addr{IPNet: ipNet(p), Flags: flags}
	if p.Addr().Is4() {
		a.Flags, a.Broadcast = 0, broadcast(p)
	}
	err := c.h.AddrAdd(ref(index), a)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding address %s: %w", p, sentinel(err))
	}
	return nil
}

// Wait waits until the device may use all of its IPv6 addresses, but no longer than limit.
// The error says of which address another host is the owner, or that time is up.
func (t Tentative) Wait(limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		list, err := dump(func() ([]netlink.Addr, error) { return t.Conn.h.AddrList(ref(t.Index), int(IPv6)) })
		if err != nil {
			return fmt.Errorf("listing addresses: %w", sentinel(err))
		}
		var waiting *netlink.Addr
		for _, a := range list {
			switch {
			case a.Flags&unix.IFA_F_DADFAILED != 0:
				return fmt.Errorf("address %s: another host has it", a.IPNet)
			case a.Flags&unix.IFA_F_TENTATIVE != 0:
				waiting = &a
			}
		}
		if waiting == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("address %s: the kernel still looks whether another host has it", waiting.IPNet)
		}
	}
}

// Addrs returns the addresses of all devices by ifindex. A device's primary addresses
// come first.
func (c *Conn) Addrs(of Family) (map[int][]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return c.h.AddrList(nil, int(of)) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", sentinel(err))
	}
	addrs, secondary := map[int][]netip.Prefix{}, map[int][]netip.Prefix{}
	for _, a := range list {
		p, ok := prefix(a.IPNet)
		if !ok {
			continue
		}
		kind := addrs
		if of == IPv4 && a.Flags&unix.IFA_F_SECONDARY != 0 { // with IPv6 it means temporary
			kind = secondary
		}
		kind[a.LinkIndex] = append(kind[a.LinkIndex], p)
	}
	for index, more := range secondary {
		addrs[index] = append(addrs[index], more...)
	}
	return addrs, nil
}

// WithAddr returns the devices that have the address a.
func (c *Conn) WithAddr(a netip.Addr) (out []Device, err error) {
	list, err := dump(func() ([]netlink.Addr, error) { return c.h.AddrList(nil, int(FamilyOf(a))) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", sentinel(err))
	}
	for _, has := range list {
		if p, ok := prefix(has.IPNet); !ok || p.Addr() != a {
			continue
		}
		d, err := c.ByIndex(has.LinkIndex)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		} else if err == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// broadcast returns the subnet's last address, as other tools set it.
func broadcast(p netip.Prefix) net.IP {
	b := p.Masked().Addr().As4()
	for i := range b {
		b[i] |= ^net.CIDRMask(p.Bits(), 32)[i]
	}
	return net.IPv4(b[0], b[1], b[2], b[3]).To4()
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}
