package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Proxy is a neighbour that the host may stand for on a device: `ip neigh add proxy`. The
// device joins the multicast group in which others ask for the address (RFC 4291 section
// 2.7.1), and so a network card and a switch that filters let their questions through.
type Proxy struct {
	Index int // of the device
	Addr  netip.Addr
}

// Add adds the entry. It succeeds when there is one.
func (p Proxy) Add(c *Conn) error {
	err := c.h.NeighSet(p.neighbour())
	if err != nil {
		return fmt.Errorf("standing for neighbour %s: %w", p.Addr, sentinel(err))
	}
	return nil
}

// Delete removes the entry. It succeeds when there is none.
func (p Proxy) Delete(c *Conn) error {
	err := c.h.NeighDel(p.neighbour())
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(sentinel(err), ErrNotFound) {
		return nil
	}
	return fmt.Errorf("standing for neighbour %s no more: %w", p.Addr, err)
}

func (p Proxy) neighbour() *netlink.Neigh {
	n := neighbour(p.Index, p.Addr)
	n.Flags = netlink.NTF_PROXY
	return n
}

// Proxies returns the entries for IPv6 addresses.
func Proxies(c *Conn) (map[Proxy]bool, error) {
	all, err := c.neighbours(netlink.Ndmsg{Family: unix.AF_INET6, Flags: netlink.NTF_PROXY})
	if err != nil {
		return nil, err
	}
	out := map[Proxy]bool{}
	for _, n := range all {
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.Flags&netlink.NTF_PROXY != 0 {
			out[Proxy{n.LinkIndex, a}] = true
		}
	}
	return out, nil
}
