package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
)

// Advertisement is a router advertisement (RFC 4861 §4.2).
type Advertisement struct {
	// Lifetime of the default route by this router; 0: it is no default router.
	Lifetime time.Duration
	// Prefixes of which hosts make addresses.
	Prefixes []AdvertisedPrefix
	// MTU of the link in bytes; 0: none is given.
	MTU uint32
}

// AdvertisedPrefix is a prefix that is on the link. A host keeps an address of it for
// Valid, and begins nothing new with it after Preferred. It does not believe a Valid
// below two hours that shortens the rest (RFC 4862 §5.5.3 e).
type AdvertisedPrefix struct {
	Prefix           netip.Prefix
	Valid, Preferred time.Duration
}

// Advertise sends one router advertisement to all nodes at a device of n.
func Advertise(ctx context.Context, n *Namespace, dev string, a Advertisement) error {
	m := &ndp.RouterAdvertisement{CurrentHopLimit: 64, RouterLifetime: a.Lifetime}
	mac, err := n.MAC(dev)
	if err != nil {
		return err
	}
	m.Options = append(m.Options, &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac})
	if a.MTU != 0 {
		m.Options = append(m.Options, ndp.NewMTU(a.MTU))
	}
	for _, p := range a.Prefixes {
		m.Options = append(m.Options, &ndp.PrefixInformation{
			PrefixLength: uint8(p.Prefix.Bits()), Prefix: p.Prefix.Masked().Addr(),
			OnLink: true, AutonomousAddressConfiguration: true,
			ValidLifetime: p.Valid, PreferredLifetime: p.Preferred,
		})
	}
	// The link-local address comes soon after the device is up.
	var last error
	err = Poll(ctx, func() (bool, error) {
		last = n.Do(func() error {
			ifi, err := net.InterfaceByName(dev)
			if err != nil {
				return err
			}
			c, _, err := ndp.Listen(ifi, ndp.LinkLocal)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			return c.WriteTo(m, nil, netip.IPv6LinkLocalAllNodes())
		})
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("sending a router advertisement on %s in %s: %w: %w", dev, n.Name, err, last)
	}
	return nil
}

// FirstAdvertisement is what the outside of uplink i advertises when a lab with
// automatic addresses is built: the prefix of the link, and with eth0 the default
// route, for a day.
func FirstAdvertisement(i int) Advertisement {
	const day = 24 * time.Hour
	a := Advertisement{Prefixes: []AdvertisedPrefix{{Prefix: plan6.outside[i].Masked(), Valid: day, Preferred: day}}}
	if i == 0 {
		a.Lifetime = 9000 * time.Second // the longest there is (RFC 4861 §6.2.1)
	}
	return a
}

// SLAAC returns the address that a device of n makes of an advertised prefix of
// 64 bits and its MAC address (RFC 4291, appendix A).
func SLAAC(n *Namespace, dev string, prefix netip.Prefix) (netip.Addr, error) {
	mac, err := n.MAC(dev)
	if err != nil {
		return netip.Addr{}, err
	}
	a := prefix.Masked().Addr().As16()
	copy(a[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(a), nil
}

// autoconfigure makes the outside of uplink i advertise itself until the host has an
// address and a route. It returns the address.
func (l *Lab) autoconfigure(ctx context.Context, i int, dev string) (netip.Addr, error) {
	addr, err := SLAAC(l.Host, dev, plan6.outside[i])
	if err != nil {
		return addr, err
	}
	// A router says in answers to neighbours that it is one. Who does not loses the hosts that
	// had taken it for a router (RFC 4861 section 7.2.5).
	if err := l.Outsides[i].SetSysctl("net.ipv6.conf.eth0.forwarding", "1"); err != nil {
		return addr, err
	}
	to := plan6.outside[i].Addr()
	if i == 0 {
		to = plan6.servers[i][0].Addr()
	}
	err = Poll(ctx, func() (bool, error) {
		routes, err := l.Host.nl.RouteGet(to.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Src.Equal(addr.AsSlice()) {
			return true, nil
		}
		return false, Advertise(ctx, l.Outsides[i], "eth0", FirstAdvertisement(i))
	})
	if err != nil {
		return addr, fmt.Errorf("waiting for %v on %s of the host: %w", addr, dev, err)
	}
	return addr, nil
}
