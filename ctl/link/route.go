package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is a route of any table.
type Route struct {
	Dst     netip.Prefix
	Index   int // of the device; 0 for a route without one (blackhole, several next hops)
	Gateway netip.Addr
	Table   int
	Metric  int
	MTU     int        // bytes, 0: the device's
	AdvMSS  int        // bytes, 0: the kernel's choice
	Scope   int        // RT_SCOPE_UNIVERSE is 0
	Source  netip.Addr // the address that the host prefers on it; invalid: the kernel's choice
	Local   bool       // the host's own addresses and broadcasts
	Leads   bool       // packets to elsewhere may leave by it
	// Connected: the kernel made the route for the subnet of a device's address.
	Connected bool
	// Advertised: the kernel has the route from a router advertisement (IPv6).
	Advertised bool
	hops       []int
}

// Same reports whether two routes lead to the same destination by the same next hop with
// the same metric.
func (r Route) Same(o Route) bool {
	return r.Dst == o.Dst && r.Index == o.Index && r.Gateway == o.Gateway && r.Metric == o.Metric
}

// Routes returns the routes of every table, including those for the host's own
// addresses.
func (c *Conn) Routes(of Family) ([]Route, error) {
	list, err := routesOfAll(c, of)
	if err != nil {
		return nil, err
	}
	out := make([]Route, 0, len(list))
	for _, r := range list {
		out = append(out, fromRoute(r, of))
	}
	return out, nil
}

func fromRoute(r netlink.Route, of Family) Route {
	dst, ok := prefix(r.Dst)
	if !ok {
		dst = of.any()
	}
	gw, _ := netip.AddrFromSlice(r.Gw)
	src, _ := netip.AddrFromSlice(r.Src)
	out := Route{Dst: dst, Index: r.LinkIndex, Gateway: gw.Unmap(), Table: r.Table, Metric: r.Priority, Source: src.Unmap(),
		Local:      r.Table == unix.RT_TABLE_LOCAL,
		Leads:      r.Type == unix.RTN_UNICAST && r.Table != unix.RT_TABLE_LOCAL && !dst.Addr().IsMulticast(),
		Advertised: r.Protocol == unix.RTPROT_RA,
		Connected:  r.Table == unix.RT_TABLE_MAIN && subnetRoute(r, of)}
	for _, hop := range r.MultiPath {
		out.hops = append(out.hops, hop.LinkIndex)
	}
	return out
}

// subnetRoute reports whether a route of the main table is for the subnet of a device. IPv6
// routes have no scope. One of a router advertisement's has no next hop (RFC 4861
// section 6.3.4), whoever has read the advertisement.
func subnetRoute(r netlink.Route, of Family) bool {
	if of == IPv4 {
		return r.Protocol == unix.RTPROT_KERNEL && r.Scope == netlink.SCOPE_LINK
	}
	return (r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA) && r.Type == unix.RTN_UNICAST && r.Gw == nil && len(r.MultiPath) == 0
}

// DefaultDevices returns the devices of those default routes of the main table
// that have the lowest metric, each once. A multipath route has several.
func DefaultDevices(routes []Route) []int {
	var out []int
	best := -1
	for _, r := range routes {
		if r.Dst.Bits() != 0 || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		hops := r.devices()
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

// AdvertisedDevices returns the devices with routes that routers have advertised.
func AdvertisedDevices(routes []Route) (out []int) {
	for _, r := range routes {
		if r.Advertised {
			out = append(out, r.devices()...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Leading returns the devices by which routes lead elsewhere, each with the first such
// route.
func Leading(routes []Route) map[int]Route {
	out := map[int]Route{}
	for _, r := range routes {
		if !r.Leads {
			continue
		}
		for _, index := range r.devices() {
			if _, known := out[index]; !known {
				out[index] = r
			}
		}
	}
	return out
}

// devices are those of the route's next hops.
func (r Route) devices() []int {
	if r.Index != 0 {
		return []int{r.Index}
	}
	return r.hops
}

// anywhere stands for the destinations of a default route: an address for documentation,
// which nobody has (RFC 5737).
var anywhere = netip.AddrFrom4([4]byte{192, 0, 2, 1})

// anywhere6 is the same for IPv6 (RFC 3849).
var anywhere6 = netip.MustParseAddr("2001:db8::1")

// Source returns the source address that the host takes by a device along a route of
// Leading. A device without an address takes another's. It is invalid if there is none.
func (c *Conn) Source(index int, r Route) (netip.Addr, error) {
	if r.Source.IsValid() {
		return r.Source, nil
	}
	to := r.Dst.Addr()
	if to.IsUnspecified() {
		if to = anywhere; r.Dst.Addr().Is6() {
			to = anywhere6
		}
	}
	found, err := c.h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{OifIndex: index})
	// No route by the device, or one of those that lead nowhere: unreachable, prohibit, blackhole.
	nowhere := []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL}
	if err = sentinel(err); err != nil && !slices.ContainsFunc(nowhere, func(e error) bool { return errors.Is(err, e) }) {
		return netip.Addr{}, fmt.Errorf("asking for the source address of a route to %s: %w", to, err)
	}
	for _, f := range found {
		if a, ok := netip.AddrFromSlice(f.Src); ok && !a.Unmap().IsUnspecified() {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, nil
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

// Delete removes a route of the main table, known by its destination, metric, device
// and gateway. It succeeds when there is none.
func (r Route) Delete(c *Conn) error {
	err := c.h.RouteDel(&netlink.Route{LinkIndex: r.Index, Dst: ipNet(r.Dst), Priority: r.Metric, Gw: r.Gateway.AsSlice()})
	if err == nil || errors.Is(err, unix.ESRCH) || errors.Is(sentinel(err), ErrNotFound) {
		return nil
	}
	return fmt.Errorf("deleting the route to %s via %s: %w", r.Dst, r.Gateway, err)
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
