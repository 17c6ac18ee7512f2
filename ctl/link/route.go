package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is an IPv4 route of any table.
type Route struct {
	Dst     netip.Prefix
	Index   int // of the device; 0 for a route without one (blackhole, several next hops)
	Gateway netip.Addr
	Table   int
	Metric  int
	MTU     int  // bytes, 0: the device's
	AdvMSS  int  // bytes, 0: the kernel's choice
	Scope   int  // RT_SCOPE_UNIVERSE is 0
	Local   bool // the host's own addresses and broadcasts
	// Connected: the kernel made the route for the subnet of a device's address.
	Connected bool
	hops      []int
}

// Routes returns the IPv4 routes of every table, including those for the host's
// own addresses.
func (c *Conn) Routes() ([]Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	list, err := dump(func() ([]netlink.Route, error) {
		return c.h.RouteListFiltered(unix.AF_INET, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	out := make([]Route, 0, len(list))
	for _, r := range list {
		out = append(out, fromRoute(r))
	}
	return out, nil
}

func fromRoute(r netlink.Route) Route {
	dst, ok := prefix(r.Dst)
	if !ok {
		dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	gw, _ := netip.AddrFromSlice(r.Gw)
	out := Route{Dst: dst, Index: r.LinkIndex, Gateway: gw.Unmap(), Table: r.Table, Metric: r.Priority,
		Local:     r.Table == unix.RT_TABLE_LOCAL,
		Connected: r.Table == unix.RT_TABLE_MAIN && r.Protocol == unix.RTPROT_KERNEL && r.Scope == netlink.SCOPE_LINK}
	for _, hop := range r.MultiPath {
		out.hops = append(out.hops, hop.LinkIndex)
	}
	return out
}

// DefaultDevices returns the devices of those default routes of the main table
// that have the lowest metric, each once. A multipath route has several.
func (c *Conn) DefaultDevices() ([]int, error) {
	routes, err := c.Routes()
	if err != nil {
		return nil, err
	}
	return defaultDevices(routes), nil
}

func defaultDevices(routes []Route) []int {
	var out []int
	best := -1
	for _, r := range routes {
		if r.Dst.Bits() != 0 || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		hops := r.hops
		if r.Index != 0 {
			hops = []int{r.Index}
		}
		if len(hops) == 0 || best >= 0 && r.Metric > best {
			continue
		}
		if best < 0 || r.Metric < best {
			best, out = r.Metric, nil
		}
		out = append(out, hops...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// AddDefault adds a default route via gw. It succeeds when the route exists.
func (c *Conn) AddDefault(index int, gw netip.Addr) error {
	err := c.h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gw.AsSlice()})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding the default route via %s: %w", gw, err)
	}
	return nil
}

// AddOnlinkDefault adds a default route via gw, which need not be in a subnet
// of the device.
func (c *Conn) AddOnlinkDefault(index int, gw netip.Addr) error {
	err := c.h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
	if err != nil {
		return fmt.Errorf("adding the default route via %s: %w", gw, err)
	}
	return nil
}

// AddRoute adds a route through its device and gateway. It succeeds, and
// changes nothing, when there is a route to the same destination.
func (c *Conn) AddRoute(r Route) error {
	route := &netlink.Route{LinkIndex: r.Index, Dst: ipNet(r.Dst), Priority: r.Metric, Table: r.Table,
		MTU: r.MTU, AdvMSS: r.AdvMSS, Scope: netlink.Scope(r.Scope)}
	if r.Gateway.IsValid() {
		route.Gw = r.Gateway.AsSlice()
	}
	if err := c.h.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding the route to %s via %s: %w", r.Dst, r.Gateway, err)
	}
	return nil
}
