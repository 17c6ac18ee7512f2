package ctl

import (
	"github.com/fastbr/fastbr/datapath"
)

// The JSON of the command line (docs: README "Output"). Field names are promises.

// PortView is one port with its counters: `port ls`, `stats`, metrics.
type PortView struct {
	Name    string `json:"name"`    // container's name; default: the value of Port; an uplink's is its device
	Port    string `json:"port"`    // host-side interface
	Network string `json:"network"` // "" for an uplink
	IP      string `json:"ip"`      // CIDR
	IP6     string `json:"ip6"`     // CIDR; "": no IPv6 but that of its link, if any
	MAC     string `json:"mac"`
	// What the port may send with besides; never nil.
	AllowedAddresses []string          `json:"allowed_addresses"` // CIDR
	AllowedMACs      []string          `json:"allowed_macs"`
	RXPackets        uint64            `json:"rx_packets"` // what the host received from the port
	RXBytes          uint64            `json:"rx_bytes"`
	TXPackets        uint64            `json:"tx_packets"`
	TXBytes          uint64            `json:"tx_bytes"`
	FastPackets      uint64            `json:"fast_packets"` // fast + slow = rx + tx
	SlowPackets      uint64            `json:"slow_packets"`
	Drops            map[string]uint64 `json:"drops"` // never nil
	// Slow is why the port takes the kernel's path always: "asked", "bandwidth", "no
	// carrier", "filter", or the kind of a queueing discipline. Ports fills it in, never nil; nil elsewhere.
	Slow []string `json:"slow,omitzero"`
	// Per direction and path, for the metrics; not part of the JSON.
	Paths PortPaths `json:"-"`
}

// PortPaths splits the counters of a port by path.
type PortPaths struct {
	RXFastPackets, RXFastBytes, RXSlowPackets, RXSlowBytes uint64
	TXFastPackets, TXFastBytes, TXSlowPackets, TXSlowBytes uint64
}

// AttachResult is what `attach -o json` prints.
type AttachResult struct {
	Name    string `json:"name"`
	Port    string `json:"port"`
	Network string `json:"network"`
	Ifname  string `json:"ifname"`
	IP      string `json:"ip"`
	IP6     string `json:"ip6"` // CIDR, or ""
	MAC     string `json:"mac"`
	Gateway string `json:"gateway"`
	// Gateway6 is the network's for IPv6, or "".
	Gateway6 string `json:"gateway6"`
	MTU      int    `json:"mtu"`
	DNS      string `json:"dns"` // who answers for names; "" if nobody does
	// What the port may send with besides; never nil.
	AllowedAddresses []string `json:"allowed_addresses"` // CIDR
	AllowedMACs      []string `json:"allowed_macs"`
	// For engines and run; not part of the JSON.
	PortMAC   string `json:"-"` // of the host end
	Bridge    string `json:"-"`
	BridgeMAC string `json:"-"`
	Internal  bool   `json:"-"` // the network leads nowhere: no default route
}

// FlowView is one live NAT flow: `flows ls`.
type FlowView struct {
	Proto    string `json:"proto"`
	Src      string `json:"src"`
	Dst      string `json:"dst"`
	NAT      string `json:"nat"`
	State    string `json:"state"`
	ExpiresS int    `json:"expires_s"`
	LeaseS   int    `json:"lease_s"`
}

// NetworkView is one network: `network inspect`, metrics.
type NetworkView struct {
	ID         string `json:"id"` // 64 hex digits, stable for the definition
	Name       string `json:"name"`
	Driver     string `json:"driver"` // "fastbr", or "host", "null" for the two built-in modes
	Scope      string `json:"scope"`  // "local"
	Bridge     string `json:"bridge"`
	Subnet     string `json:"subnet"`
	Gateway    string `json:"gateway"`
	IPv6       string `json:"ipv6"`    // IPv6Off, IPv6On or IPv6LinkLocal
	Subnet6    string `json:"subnet6"` // "" without IPv6On
	Gateway6   string `json:"gateway6"`
	MTU        int    `json:"mtu"`
	Masquerade bool   `json:"masquerade"`
	// Masquerade6: IPv6 is translated. NDProxy: the host answers on its uplinks for
	// containers' IPv6 addresses.
	Masquerade6 bool `json:"masquerade6"`
	NDProxy     bool `json:"nd_proxy"`
	Internal    bool `json:"internal"`
	DNS         bool `json:"dns"` // its gateway answers for names
	// SNATAddress and SNATAddress6 are the source addresses of what is translated; "": the
	// route's.
	SNATAddress  string `json:"snat_address"`
	SNATAddress6 string `json:"snat_address6"`
	// Via is the only device that leads outside; "": every uplink does.
	Via string `json:"via"`
	// PublishedOnly: in a family that is not translated, only published ports and answers
	// come in.
	PublishedOnly bool `json:"published_only"`
	// NoMasquerade are destinations to which nothing is translated, CIDRs; never nil.
	NoMasquerade []string   `json:"no_masquerade"`
	NAT          NATPolicy  `json:"nat"` // how containers are translated; empty for the built-in modes
	Up           bool       `json:"up"`
	Totals       PortTotals `json:"totals"`
	Ports        []PortView `json:"ports"`

	// Options are what an engine asked for in its own words; never nil.
	Options map[string]string `json:"options"`
}

// NATPolicy is how a network's containers are translated.
type NATPolicy struct {
	Mapping      string `json:"mapping"`       // "endpoint-independent", "endpoint-dependent"
	Filtering    string `json:"filtering"`     // "apdf", "adf", "eif"
	OnExhaustion string `json:"on_exhaustion"` // "overload", "refuse"
}

// PortTotals are the sums over a network's ports.
type PortTotals struct {
	RXPackets uint64 `json:"rx_packets"`
	RXBytes   uint64 `json:"rx_bytes"`
	TXPackets uint64 `json:"tx_packets"`
	TXBytes   uint64 `json:"tx_bytes"`
}

// Snapshot is everything a scrape needs, read under one lock. Zero when nothing is up.
type Snapshot struct {
	Up       bool
	Networks []NetworkView // with Ports
	Uplinks  []PortView
	NAT      NATView
}

// NATView is the instance-wide part of a Snapshot.
type NATView struct {
	Flows                                                 uint32            // of both address families
	FlowsOf                                               map[string]uint32 // by family: "ipv4", and "ipv6" while a network has it
	FlowsMax                                              uint32            // of each family
	PortOverloads, PortRemaps, PortsReclaimed, EarlyDrops uint64
	// PortTries[i] allocations looked at i+1 external ports; PortsNotFound at more,
	// or found none.
	PortTries     []uint64
	PortsNotFound uint64
	Refused       map[string]uint64
}

// StatusView is `status`: what is up and how.
type StatusView struct {
	Up       bool   `json:"up"`
	Instance string `json:"instance"`
	Lease    string `json:"lease"` // "10s"; "0s": routed fast path off
	NATRange string `json:"nat_range"`
	Flows    uint32 `json:"flows"`     // of both address families
	FlowsMax uint32 `json:"flows_max"` // of each family
	// FlowsOf is Flows by family: "ipv4", and "ipv6" while a network has it.
	FlowsOf   map[string]uint32 `json:"flows_by_family"`
	Uplinks   []UplinkView      `json:"uplinks"`
	Networks  []NetworkView     `json:"networks"`
	Accept    []AcceptRule      `json:"accept_rules"`
	Notes     []string          `json:"notes"`
	Features  []FeatureView     `json:"features"`
	Mechanism string            `json:"mechanism"` // how programs are attached: "tcx"
	XDP       string            `json:"xdp"`       // as asked: "off", "auto", "native"
	BigTCP    BigTCPView        `json:"big_tcp"`
}

// BigTCPView is whether containers' TCP builds larger super-packets than usual.
type BigTCPView struct {
	Mode string `json:"mode"` // as asked: "off", "auto", "on"
	Size int    `json:"size"` // bytes of a super-packet at most, but for internal networks
	Why  string `json:"why"`
}

// UplinkView is a device that leads outside.
type UplinkView struct {
	Device string `json:"device"`
	Addr   string `json:"addr"`
	Addr6  string `json:"addr6"` // "": none, or no network leads outside by IPv6
	Kind   string `json:"kind"`  // what its packets begin with: "ethernet", "raw ip"
	XDP    string `json:"xdp"`   // what runs on it: "off", "native"
	XDPWhy string `json:"xdp_why"`
}

// FeatureView is one line of `check`: a property of the kernel or the host.
type FeatureView struct {
	Name     string `json:"name"`
	State    string `json:"state"` // "ok", "missing" (required), "absent" (optional), "warning"
	Required bool   `json:"required"`
	Minimum  string `json:"minimum"` // kernel that brought it, "" for a property of the host
	Detail   string `json:"detail"`
}

// BridgeView is one bridge of the namespace, ours or not: `show`.
type BridgeView struct {
	Name       string   `json:"name"`
	ID         string   `json:"id"` // "8000.024200000001"
	STP        bool     `json:"stp"`
	Interfaces []string `json:"interfaces"`
}

// DropReasons are all values that a key of PortView.Drops can have, whether or
// not such a packet was ever seen.
func DropReasons() []string {
	var out []string
	for _, r := range datapath.Reasons() {
		out = append(out, string(r))
	}
	return out
}
