package datapath

import (
	"net"
	"net/netip"
	"time"
)

// MaxDevices is the number of device slots. A device (port or uplink) occupies
// the slot ifindex modulo MaxDevices, so a program finds its entry with one
// array access.
const MaxDevices = int(tcFbrLayoutFBR_DEVS_MAX)

// moreDevices is the number of additional slots, for uplinks and bridges whose
// slot another device occupies.
const moreDevices = int(tcFbrLayoutFBR_DEVS_MORE)

// Limits of the lease. conntrack's shortest UDP timeout is 30 s.
const (
	MaxLease     = 15 * time.Second
	DefaultLease = 10 * time.Second
)

// Config is fixed for the life of a datapath.
type Config struct {
	// FlowsMax is the maximum number of NAT sessions. Each has two flow entries.
	// 0 means DefaultFlowsMax.
	FlowsMax uint32
	// NATFirst and NATLast are the first and last external port and ICMP id. 0
	// means DefaultNATFirst and DefaultNATLast.
	NATFirst, NATLast uint16
}

// Network is one bridge with its subnet.
type Network struct {
	// Subnet is the IPv4 prefix of the network, masked.
	Subnet netip.Prefix
	// Allowed are prefixes outside Subnet that ports may use. To everybody else they
	// are part of the network.
	Allowed []netip.Prefix
	// Gateway is the bridge's own address inside Subnet.
	Gateway netip.Addr
	// Subnet6 is the IPv6 prefix of the network, masked, and Gateway6 the bridge's own
	// address in it. Invalid: the network has no global IPv6 addresses, the bridge none.
	Subnet6  netip.Prefix
	Gateway6 netip.Addr
	// LinkLocal6: containers have IPv6 among each other, also without Subnet6.
	LinkLocal6 bool
	// Routed6 is the opposite of Masquerade for IPv6. NDProxy: uplinks answer
	// solicitations for the addresses of its containers.
	Routed6 bool
	NDProxy bool
	// Bridge is the ifindex of the bridge device; it identifies the network.
	Bridge int
	// Masquerade: outbound packets are translated. If false they leave
	// unchanged, and containers can be reached from outside by their own
	// address.
	Masquerade bool
	// SNAT and SNAT6 are the source addresses of what is translated; they must be the
	// host's, else nothing leaves. Invalid: the one of the route.
	SNAT, SNAT6 netip.Addr
	// Plain are destinations, of either family, to which nothing is translated although
	// the family is: they see containers' own addresses, and may reach them.
	Plain []netip.Prefix
	// PublishedOnly: in a family that is not translated, only answers, ICMP and what is for
	// published ports come in from outside. A publication has the container's own address
	// and port then.
	PublishedOnly bool
	// OneWay: nothing passes between the network and any device outside but Via, by its
	// ifindex; 0: by none, the device is gone.
	OneWay bool
	Via    int
	// Internal: nothing passes between the network and any uplink.
	Internal bool
	// NAT is the policy for the translation of outbound packets.
	NAT NATPolicy
}

// HasIP6 reports whether the network carries IPv6.
func (n Network) HasIP6() bool { return n.LinkLocal6 || n.Subnet6.IsValid() }

// Port is the host end of one container's veth pair.
type Port struct {
	Ifindex   int              // of the host end, in the namespace of the bridge
	Bridge    int              // ifindex of the network's bridge
	BridgeMAC net.HardwareAddr // destination of routed frames from the container
	MAC       net.HardwareAddr // of the container end
	IP        netip.Addr       // of the container
	IP6       netip.Addr       // of the container; invalid: no IPv6, or only link-local
	MTU       int              // bytes, L3
	// AllowedAddrs and AllowedMACs are let in as sources besides MAC and IP. Of the
	// ports that have an address in common, the one that has sent with it last has it.
	AllowedAddrs []netip.Prefix
	AllowedMACs  []net.HardwareAddr
	// Slow: packets always take the kernel path (the device has a qdisc or a
	// filter, or the user asked for it).
	Slow bool
	// XDP: the container end accepts frames that an uplink's XDP program
	// redirects to it.
	XDP bool
}

// Uplink is a device that leads outside.
type Uplink struct {
	Ifindex int
	Addr    netip.Addr // primary address: the SNAT source where the kernel cannot choose per flow
	MTU     int        // bytes, L3
	RawIP   bool       // the device has no L2 header: packets begin with the IP header
	// Closed: only fastbr's setting makes the host forward what comes in by the
	// device. Until the host's ip_forward is 1, such packets may leave only by
	// fastbr's bridges.
	Closed bool
	// Addr6 is the host's IPv6 address on the device; invalid: nothing leaves by IPv6.
	// Closed6 is Closed for IPv6.
	Addr6   netip.Addr
	Closed6 bool
	// Side: the device is opened with all that are no uplinks (SetOpened), if at all.
	Side bool
}

// Feature is a kernel feature that the datapath uses.
type Feature struct {
	Name     string // "tcx", "netfilter-link", …
	Required bool
	Minimum  string // first kernel version with the feature: "6.6"
	Err      error  // nil: available; otherwise it wraps ErrNotSupported or says what hindered the probe
}

// Reason says why a packet was dropped. The string is the metric label. Reasons
// are only ever added.
type Reason string

// PathCounters counts one direction of one device.
type PathCounters struct {
	FastPackets, FastBytes uint64 // forwarded by the programs alone
	SlowPackets, SlowBytes uint64 // handed to or received from the kernel's stack
}

// Counters are the counters of one port or uplink. RX is what the host received
// from it.
type Counters struct {
	RX, TX PathCounters
	Drops  map[Reason]uint64 // only reasons that occurred
}

// Flow is one live NAT session, seen from the container.
type Flow struct {
	Proto   string         // protocol: "tcp", "udp", "icmp", "icmpv6"
	Src     netip.AddrPort // container's; an ICMP query has its id as the port
	Dst     netip.AddrPort // remote
	NAT     netip.AddrPort // external
	State   string         // "new", "established", "closing", "closed", "replied", "unreplied"
	Host    bool           // session of the host or a neighbour NAT, not of a container
	Expires time.Duration  // time left
	Lease   time.Duration  // time left, outbound direction; 0: the next packet takes the kernel path
}

// NATStats holds the instance-wide NAT figures.
type NATStats struct {
	Flows          uint32            // of both families together
	FlowsOf        map[string]uint32 // those of "ipv4", and of "ipv6" while a network has it
	FlowsMax       uint32            // of each family
	PortOverloads  uint64            // external ports shared because none was free
	PortRemaps     uint64            // flows that got another port because the host or a neighbour NAT uses theirs
	PortsReclaimed uint64            // closed mappings removed early because ports or slots ran short
	EarlyDrops     uint64            // flows begun outside that were removed before they were assured
	// PortTries[i] is the number of allocations that looked at i+1 external
	// ports. PortsNotFound is the number that looked at more, or found none.
	PortTries     []uint64
	PortsNotFound uint64
	Refused       map[Reason]uint64 // new flows refused, by reason (nat_full, quota)
}
