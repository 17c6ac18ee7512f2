package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
	err := c.h.NeighSet(&netlink.Neigh{LinkIndex: p.Index, Family: int(FamilyOf(p.Addr)), Flags: netlink.NTF_PROXY, IP: p.Addr.AsSlice()})
	if err != nil {
		return fmt.Errorf("standing for neighbour %s: %w", p.Addr, sentinel(err))
	}
	return nil
}

// Delete removes the entry. It succeeds when there is none.
func (p Proxy) Delete(c *Conn) error {
	err := c.h.NeighDel(&netlink.Neigh{LinkIndex: p.Index, Family: int(FamilyOf(p.Addr)), Flags: netlink.NTF_PROXY, IP: p.Addr.AsSlice()})
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(sentinel(err), ErrNotFound) {
		return nil
	}
	return fmt.Errorf("standing for neighbour %s no more: %w", p.Addr, err)
}

// Proxies returns the entries for IPv6 addresses.
func Proxies(c *Conn) (map[Proxy]bool, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.Sockets = c.raw // without strict checking, as neighbours
		req.AddData(&netlink.Ndmsg{Family: unix.AF_INET6, Flags: netlink.NTF_PROXY})
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	})
	if err != nil {
		return nil, fmt.Errorf("listing proxied neighbours: %w", sentinel(err))
	}
	out := map[Proxy]bool{}
	for _, m := range msgs {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return nil, fmt.Errorf("reading a proxied neighbour: %w", err)
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.Flags&netlink.NTF_PROXY != 0 {
			out[Proxy{n.LinkIndex, a}] = true
		}
	}
	return out, nil
}
