package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
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
	var table []byte
	err = n.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/arp")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the neighbours of %s: %w", n.Name, err)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == hop.String() {
			return net.ParseMAC(f[3])
		}
	}
	return nil, fmt.Errorf("%s does not know neighbour %v", n.Name, hop)
}
