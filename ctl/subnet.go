package ctl

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/ctl/ipam"
)

// usedAddrs are the addresses that a new network may collide with. A subnet that
// fastbr chooses overlaps none of them. One that somebody has fixed (a user, an
// engine's IPAM, a definition) is their word: a route that covers it, or lies in
// it, is how they lead others there (an aggregate, a blackhole, an overlay of the
// cluster's), and the bridge's own route is the more specific one or is meant to
// be the less. It collides only with what would be cut off by it, or cut it off.
type usedAddrs struct {
	networks map[string]netip.Prefix // of the other networks, up or only defined, by name
	routes   []netip.Prefix          // every route of the host, whatever its table
	devices  map[netip.Prefix]string // subnets that devices of the host are in, and their names
	gateways []netip.Addr            // next hops of default routes
}

// all is everything.
func (u usedAddrs) all() []netip.Prefix {
	return slices.AppendSeq(slices.Clone(u.routes), maps.Values(u.networks))
}

// conflict says why a subnet that was fixed cannot be a network's. The error
// wraps ipam.ErrOverlap.
func (u usedAddrs) conflict(subnet netip.Prefix) error {
	for name, p := range u.networks {
		if p.Overlaps(subnet) {
			return fmt.Errorf("%w %s of network %s: choose another", ipam.ErrOverlap, p, name)
		}
	}
	for p, device := range u.devices {
		if p.Overlaps(subnet) {
			return fmt.Errorf("%w %s, which this host's device %s is in: choose another", ipam.ErrOverlap, p, device)
		}
	}
	for _, gw := range u.gateways {
		if subnet.Contains(gw) {
			return fmt.Errorf("%w %s, which this host's default route leads to: choose another", ipam.ErrOverlap, gw)
		}
	}
	return nil
}

// choose finds a subnet for a network that names none. The note, if any, is for
// the user.
func (u usedAddrs) choose(network string) (_ netip.Prefix, note string, err error) {
	var wish []netip.Prefix
	if network == DefaultNetwork {
		wish = []netip.Prefix{ipam.Default()}
	}
	p, err := ipam.Next(u.all(), wish...)
	if err != nil {
		return p, "", fmt.Errorf("%w: choose one with --subnet", err)
	}
	if len(wish) > 0 && p != wish[0] {
		other, _ := ipam.Overlap(wish[0], u.all())
		note = fmt.Sprintf("%s overlaps %s, which this host uses already: taking %s", wish[0], other, p)
	}
	return p, note, nil
}

// usedAddrs looks at the host and at every network but one.
func (nets networks) usedAddrs(except string) (u usedAddrs, err error) {
	routes, err := nets.op.conn.Routes()
	if err != nil {
		return u, err
	}
	u.networks, u.devices = map[string]netip.Prefix{}, map[netip.Prefix]string{}
	for _, r := range routes {
		u.routes = append(u.routes, r.Dst)
		switch {
		case r.Connected:
			d, err := nets.op.conn.ByIndex(r.Index)
			if err != nil {
				continue // it has just gone
			}
			u.devices[r.Dst] = d.Name
		case r.Dst.Bits() == 0 && !r.Local && r.Gateway.IsValid():
			u.gateways = append(u.gateways, r.Gateway)
		}
	}
	defs, err := nets.op.defs.all()
	if err != nil {
		return u, err
	}
	for _, d := range defs {
		u.networks[d.Name] = d.Subnet
	}
	for _, n := range nets.op.st.Networks {
		u.networks[n.Name] = n.Subnet
		delete(u.devices, n.Subnet) // its bridge's
	}
	delete(u.networks, except)
	return u, nil
}
