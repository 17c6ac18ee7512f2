package datapath

import (
	"net"
	"net/netip"
	"time"
)

// MaxDevices is the number of device slots: a device (port or uplink) occupies
// the slot ifindex modulo MaxDevices, so that a program finds its own entry
// with one array access.
const MaxDevices = 16384

// moreDevices is the number of slots beyond those, for uplinks and bridges whose
// slot another device has.
const moreDevices = 1024

// Limits of the lease (design: conntrack's shortest UDP timeout is 30 s).
const (
	MaxLease     = 15 * time.Second
	DefaultLease = 10 * time.Second
)

// Config is fixed for the life of a datapath.
type Config struct {
	// FlowsMax is the number of NAT sessions (a pair of flow entries each).
	// 0 means DefaultFlowsMax.
	FlowsMax uint32
	// NATFirst and NATLast bound the external ports and ICMP ids, inclusive.
	// 0 means DefaultNATFirst and DefaultNATLast.
	NATFirst, NATLast uint16
}

// Network is one bridge with its subnet.
type Network struct {
	// Subnet is the IPv4 prefix of the network, masked.
	Subnet netip.Prefix
	// Gateway is the bridge's own address inside Subnet.
	Gateway netip.Addr
	// Bridge is the ifindex of the bridge device; it identifies the network.
	Bridge int
	// Masquerade: outbound packets are translated. If false they leave untouched
	// and containers may be reached from outside by their own address.
	Masquerade bool
	// Internal: nothing passes between the network and any uplink.
	Internal bool
	// NAT is how outbound packets are translated.
	NAT NATPolicy
}

// Port is the host end of one container's veth pair.
type Port struct {
	Ifindex   int              // of the host end, in the namespace of the bridge
	Bridge    int              // ifindex of the network's bridge
	BridgeMAC net.HardwareAddr // what containers send routed frames to
	MAC       net.HardwareAddr // of the container end; the only source MAC let in
	IP        netip.Addr       // of the container; the only IPv4 source let in
	MTU       int              // bytes, L3
	// Slow: always take the kernel path (the device has a qdisc, a filter, or the user asked).
	Slow bool
	// XDP: the container's end takes frames that an uplink's XDP program sends it.
	XDP bool
}

// Uplink is a device that leads outside.
type Uplink struct {
	Ifindex int
	Addr    netip.Addr // primary address: the SNAT source where the kernel cannot choose per flow
	MTU     int        // bytes, L3
	RawIP   bool       // the device has no L2 header: packets begin with the IP header
	// Closed: but for us nothing that comes in by the device would be forwarded, so
	// it leaves by our bridges only, until the host's ip_forward is 1.
	Closed bool
}

// Feature is one thing of the kernel that the datapath uses.
type Feature struct {
	Name     string // "tcx", "netfilter-link", …
	Required bool
	Minimum  string // kernel that brought it: "6.6"
	Err      error  // nil: available; else wraps ErrNotSupported or says what hindered the probe
}

// Reason says why a packet was dropped. Append-only; the string is the metric label.
type Reason string

// PathCounters count one direction of one device.
type PathCounters struct {
	FastPackets, FastBytes uint64 // forwarded by the programs alone
	SlowPackets, SlowBytes uint64 // handed to or received from the kernel's stack
}

// Counters of one port or uplink. RX = what the host received from it.
type Counters struct {
	RX, TX PathCounters
	Drops  map[Reason]uint64 // only reasons that occurred
}

// Flow is one live NAT session, seen from the container.
type Flow struct {
	Proto   string         // "tcp", "udp", "icmp"
	Src     netip.AddrPort // container's; an ICMP id stands for the port
	Dst     netip.AddrPort // remote
	NAT     netip.AddrPort // external
	State   string         // "new", "established", "closing", "closed", "replied", "unreplied"
	Host    bool           // session of the host or a neighbour NAT, not of a container
	Expires time.Duration  // left
	Lease   time.Duration  // left, outbound direction; 0: next packet takes the kernel path
}

// NATStats are the instance-wide NAT figures.
type NATStats struct {
	Flows, FlowsMax uint32
	PortOverloads   uint64 // external ports shared because none was free
	PortRemaps      uint64 // flows that got another port because the host or a neighbour has theirs
	PortsReclaimed  uint64 // closed mappings given up early because ports or slots ran short
	EarlyDrops      uint64 // flows begun outside that were given up before they were assured
	// PortTries[i] allocations looked at i+1 external ports until one would do;
	// PortsNotFound looked at more, or found none.
	PortTries     []uint64
	PortsNotFound uint64
	Refused       map[Reason]uint64 // new flows refused, by reason (nat_full, quota)
}
