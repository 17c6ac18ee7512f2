package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// NextHop returns the MAC address to which n sends packets for the address to.
// It pings to first, so every hop has resolved its neighbours.
func (n *Namespace) NextHop(ctx context.Context, to netip.Addr) (net.HardwareAddr, error) {
	if _, err := n.Ping(ctx, to, PingOptions{Count: 1}); err != nil {
		return nil, err
	}
	routes, err := n.nl.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return nil, fmt.Errorf("asking %s for the route to %v: %w", n.Name, to, err)
	}
	hop := to
	if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		hop = gw.Unmap()
	}
	link, err := n.nl.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("finding the device of %s for %v: %w", n.Name, to, err)
	}
	out, err := n.Run(ctx, "ip", "neigh", "get", hop.String(), "dev", link.Attrs().Name)
	if err != nil {
		return nil, fmt.Errorf("asking %s for neighbour %v: %w", n.Name, hop, err)
	}
	_, mac, _ := strings.Cut(out, " lladdr ")
	mac, _, _ = strings.Cut(mac, " ")
	return net.ParseMAC(mac)
}
