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

// proxyProtocol says that an entry is fastbr's: its "protocol", as of a route. Nobody else
// has this number in iproute2's list.
const proxyProtocol = 0xfb

// ndaProtocol is the attribute with it (NDA_PROTOCOL, Linux 5.2).
const ndaProtocol = 12

// AddProxies adds entries where there are none, whoever has made them. A device that is gone
// gets none.
func AddProxies(c *Conn, want []Proxy) error {
	have, err := Proxies(c)
	for _, p := range want {
		if _, there := have[p]; there || err != nil {
			continue
		}
		if err = p.request(c, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE); errors.Is(err, ErrNotFound) {
			err = nil
		} else if err != nil {
			err = fmt.Errorf("standing for neighbour %s: %w", p.Addr, err)
		}
	}
	return err
}

// DeleteProxies removes entries that AddProxies has made.
func DeleteProxies(c *Conn, gone []Proxy) error {
	if len(gone) == 0 {
		return nil
	}
	have, err := Proxies(c)
	errs := []error{err}
	for _, p := range gone {
		if !have[p] {
			continue
		}
		if err := p.request(c, unix.RTM_DELNEIGH, 0); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, ErrNotFound) {
			errs = append(errs, fmt.Errorf("standing for neighbour %s no more: %w", p.Addr, err))
		}
	}
	return errors.Join(errs...)
}

// request asks the kernel to change the entry.
func (p Proxy) request(c *Conn, kind, flags int) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.Sockets = c.raw
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET6, Index: uint32(p.Index), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_PROXY})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, p.Addr.AsSlice()))
	req.AddData(nl.NewRtAttr(ndaProtocol, []byte{proxyProtocol}))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return sentinel(err)
}

// Proxies returns the entries for IPv6 addresses, and whether they are fastbr's.
func Proxies(c *Conn) (map[Proxy]bool, error) {
	all, err := neighbourMessages(c, netlink.Ndmsg{Family: unix.AF_INET6, Flags: netlink.NTF_PROXY})
	if err != nil {
		return nil, err
	}
	out := map[Proxy]bool{}
	for _, m := range all {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return nil, fmt.Errorf("reading a neighbour: %w", err)
		}
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofNdMsg:])
		if err != nil {
			return nil, fmt.Errorf("reading a neighbour: %w", err)
		}
		ours := false
		for _, a := range attrs {
			ours = ours || a.Attr.Type == ndaProtocol && len(a.Value) == 1 && a.Value[0] == proxyProtocol
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.Flags&netlink.NTF_PROXY != 0 {
			out[Proxy{n.LinkIndex, a}] = ours
		}
	}
	return out, nil
}
