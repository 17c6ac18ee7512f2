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

// Addresses of what Options.Router adds.
var (
	routerAddr    = netip.MustParsePrefix("198.51.100.3/24")
	lanAddr       = netip.MustParsePrefix("198.51.100.66/24")
	routerFarAddr = netip.MustParsePrefix("192.0.2.129/25")
	farAddr       = netip.MustParsePrefix("192.0.2.130/25")
)

// buildSwitch makes the switch's namespace.
func (l *Lab) buildSwitch() error {
	var err error
	if l.sw, err = l.Add("sw"); err != nil {
		return err
	}
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
		addr netip.Prefix
	}{{&l.Router, "r", routerAddr}, {&l.LAN, "l", lanAddr}} {
		n, err := l.Add(m.name)
		if err != nil {
			return err
		}
		if _, err := l.toSwitch(n, "eth0", m.name); err != nil {
			return err
		}
		if err := n.AddAddr("eth0", m.addr); err != nil {
			return err
		}
		n.Addr = m.addr.Addr()
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
	if err := l.Router.AddAddr("eth1", routerFarAddr); err != nil {
		return err
	}
	if err := l.Far.AddAddr("eth0", farAddr); err != nil {
		return err
	}
	l.Far.Addr = farAddr.Addr()
	if err := l.Far.AddRoute(netip.Prefix{}, routerFarAddr.Addr()); err != nil {
		return err
	}
	if err := l.Router.SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	return l.Host.AddRoute(farAddr.Masked(), routerAddr.Addr())
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
