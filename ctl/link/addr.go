package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddr adds an IPv4 address to the device. It succeeds when the device
// already has it.
func (c *Conn) AddAddr(index int, p netip.Prefix) error {
	err := c.h.AddrAdd(ref(index), &netlink.Addr{IPNet: ipNet(p), Broadcast: broadcast(p)})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding address %s: %w", p, sentinel(err))
	}
	return nil
}

// Addrs returns the IPv4 addresses of all devices by ifindex. A device's
// primary addresses come first.
func (c *Conn) Addrs() (map[int][]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return c.h.AddrList(nil, unix.AF_INET) })
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
		if a.Flags&unix.IFA_F_SECONDARY != 0 {
			kind = secondary
		}
		kind[a.LinkIndex] = append(kind[a.LinkIndex], p)
	}
	for index, more := range secondary {
		addrs[index] = append(addrs[index], more...)
	}
	return addrs, nil
}

// WithAddr returns the devices that have the IPv4 address a.
func (c *Conn) WithAddr(a netip.Addr) (out []Device, err error) {
	list, err := dump(func() ([]netlink.Addr, error) { return c.h.AddrList(nil, unix.AF_INET) })
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
