package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// FarMTU is the MTU, in bytes, of the router's device towards Far. Far itself
// assumes 1500, so only path MTU discovery finds the bottleneck.
const FarMTU = 1280

const switchDev = "sw0"

// buildSwitch makes the switch's namespace.
func (l *Lab) buildSwitch() error {
	var err error
	if l.sw, err = NewNamespace(l.name("sw")); err != nil { // no IPv6 of its own
		return err
	}
	l.keep(l.sw)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = switchDev
	if err := l.sw.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("adding the switch: %w", err)
	}
	return l.sw.SetUp(switchDev)
}

// toSwitch connects a device of n to a port of the switch. It returns the
// port's name.
func (l *Lab) toSwitch(n *Namespace, dev, port string) (string, error) {
	if err := Veth(n, dev, l.sw, port, l.opts.MTU); err != nil {
		return "", err
	}
	return port, enslave(l.sw, switchDev, port)
}

// buildRouter adds to the switch, beside host and outside, a neighbour and a
// router with a server behind it.
func (l *Lab) buildRouter() error {
	for _, m := range []struct {
		to   **Namespace
		name string
		addr func(*plan) netip.Prefix
	}{
		{&l.Router, "r", func(p *plan) netip.Prefix { return p.router }},
		{&l.LAN, "l", func(p *plan) netip.Prefix { return p.lan }},
	} {
		n, err := l.Add(m.name)
		if err != nil {
			return err
		}
		if _, err := l.toSwitch(n, "eth0", m.name); err != nil {
			return err
		}
		for _, p := range l.opts.plans() {
			if err := n.AddAddr("eth0", m.addr(p)); err != nil {
				return err
			}
			n.SetAddr(m.addr(p).Addr())
		}
		*m.to = n
	}
	var err error
	if l.Far, err = l.Add("s2"); err != nil {
		return err
	}
	if err := Veth(l.Router, "eth1", l.Far, "eth0", 1500); err != nil {
		return err
	}
	err = withLink(l.Router, "eth1", fmt.Sprintf("setting the MTU of %%s in %%s to %d", FarMTU), func(link netlink.Link) error {
		return l.Router.nl.LinkSetMTU(link, FarMTU)
	})
	if err != nil {
		return err
	}
	for _, p := range l.opts.plans() {
		if err := l.Router.AddAddr("eth1", p.routerFar); err != nil {
			return err
		}
		if err := join(l.Far, p.far, p.routerFar.Addr()); err != nil {
			return err
		}
		if err := l.Router.SetSysctl(p.forwarding, "1"); err != nil {
			return err
		}
		if err := l.Host.AddRoute(p.far.Masked(), p.router.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// enslave makes port a port of bridge.
func enslave(n *Namespace, bridge, port string) error {
	br, err := n.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding %s: %w", bridge, err)
	}
	return withLink(n, port, "plugging %s into "+bridge+" in %s", func(link netlink.Link) error {
		return n.nl.LinkSetMaster(link, br)
	})
}
