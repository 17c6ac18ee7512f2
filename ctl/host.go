package ctl

import (
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/ctl/link"
)

// hostCache is what an operation knows of the devices, addresses and routes of the host.
// It reads each of them when it is first asked for and remembers it, since the lock
// keeps other operations out. A step that changes what a later step asks for calls forget.
type hostCache struct {
	conn *link.Conn
	known
}

type known struct {
	entries map[int]link.Entry
	queues  map[int]bool
	members map[int]link.BridgePort
	devices map[int]link.Device
	ipv4    knownFamily
	ipv6    knownFamily
}

// knownFamily is what is known by address family.
type knownFamily struct {
	addrs  map[int][]netip.Prefix
	routes []link.Route
}

func (k *known) of(f link.Family) *knownFamily {
	if f == link.IPv6 {
		return &k.ipv6
	}
	return &k.ipv4
}

// forget makes the next question read the host again.
func (h *hostCache) forget() { h.known = known{} }

// listing is every device, by ifindex.
func (h *hostCache) listing() (map[int]link.Entry, error) {
	return remember(&h.entries, func() (map[int]link.Entry, error) {
		list, err := h.conn.List()
		if err != nil {
			return nil, err
		}
		entries := make(map[int]link.Entry, len(list))
		for _, e := range list {
			entries[e.Index] = e
		}
		return entries, nil
	})
}

// shaped is every device, by ifindex, and whether it has a queueing discipline or
// filters of its own. It is the shortest way to learn which devices there are.
func (h *hostCache) shaped() (map[int]bool, error) { return remember(&h.queues, h.conn.Queues) }

// bridgePorts are the ports of all bridges, by ifindex.
func (h *hostCache) bridgePorts() (map[int]link.BridgePort, error) {
	return remember(&h.members, h.conn.BridgePorts)
}

// device is one device. The error wraps link.ErrNotFound if there is none.
func (h *hostCache) device(index int) (link.Device, error) {
	if d, ok := h.devices[index]; ok {
		return d, nil
	}
	d, err := h.conn.ByIndex(index)
	if err != nil {
		return d, err
	}
	if h.devices == nil {
		h.devices = map[int]link.Device{}
	}
	h.devices[index] = d
	return d, nil
}

// addresses are the addresses of every device, by ifindex, the primary ones first.
func (h *hostCache) addresses(f link.Family) (map[int][]netip.Prefix, error) {
	return remember(&h.of(f).addrs, func() (map[int][]netip.Prefix, error) { return h.conn.Addrs(f) })
}

// addrsOf are the addresses of a device, the primary ones first.
func (h *hostCache) addrsOf(f link.Family, index int) ([]netip.Prefix, error) {
	all, err := h.addresses(f)
	return all[index], err
}

// allAddrsOf are the addresses of a device, IPv4's first.
func (h *hostCache) allAddrsOf(index int) ([]netip.Prefix, error) {
	v4, err := h.addrsOf(link.IPv4, index)
	if err != nil {
		return nil, err
	}
	v6, err := h.addrsOf(link.IPv6, index)
	return slices.Concat(v4, v6), err
}

// allAddrs are the addresses of every device.
func (h *hostCache) allAddrs(f link.Family) ([]netip.Addr, error) {
	all, err := h.addresses(f)
	var out []netip.Addr
	for _, addrs := range all {
		for _, a := range addrs {
			out = append(out, a.Addr())
		}
	}
	return out, err
}

// allRoutes are the routes of every table.
func (h *hostCache) allRoutes(f link.Family) ([]link.Route, error) {
	known := h.of(f)
	if known.routes != nil {
		return known.routes, nil
	}
	var err error
	known.routes, err = h.conn.Routes(f)
	return known.routes, err
}

// advertised are the names of the devices with routes that routers have advertised.
func (h *hostCache) advertised() (names []string, err error) {
	routes, err := h.allRoutes(link.IPv6)
	if err != nil {
		return nil, err
	}
	for _, index := range link.AdvertisedDevices(routes) {
		if d, err := h.device(index); err == nil { // else it has just gone
			names = append(names, d.Name)
		}
	}
	return names, nil
}

// remember reads a map into its place unless it is there.
func remember[V any](place *map[int]V, read func() (map[int]V, error)) (map[int]V, error) {
	if *place != nil {
		return *place, nil
	}
	m, err := read()
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = map[int]V{}
	}
	*place = m
	return m, nil
}
