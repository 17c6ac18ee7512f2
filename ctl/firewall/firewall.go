package firewall

import (
	"fmt"
	"net/netip"
)

// Device is a network device. Index 0 means that it does not exist yet. Addr is the
// address of an uplink.
type Device struct {
	Name  string
	Index int
	Addr  netip.Addr
}

// Network is what a filter must know about a network in one family, that of Subnet. A
// network with two families is two of them, with the same bridge and mark.
type Network struct {
	Name       string
	Mark       string // how the comment of our rules for it begins
	Bridge     Device
	Subnet     netip.Prefix
	Allowed    []netip.Prefix // others that its containers send with
	Internal   bool           // nothing leads outside
	Masquerade bool
	Plain      []netip.Prefix // destinations without translation
	SNAT       netip.Addr     // what the source becomes; invalid: the route's address
	Via        string         // the only device that leads outside; "": every one does
	Resolver   netip.Addr     // where its containers ask for names; invalid: nowhere
}

// Family is the family of the network's addresses.
func (n Network) Family() *Family { return familyOf(n.Subnet.Addr()) }

// sources are the prefixes that a network's containers send with.
func (n Network) sources() []netip.Prefix { return append([]netip.Prefix{n.Subnet}, n.Allowed...) }

// Publication is a range of host ports that lead to ports of a container.
type Publication struct {
	Bridge      Device
	HostIP      netip.Addr // invalid: every address of the host
	First, Last uint16
	Port        uint16       // where First leads; the others follow
	Proto       string       // "tcp", "udp" or "sctp"
	Allow       netip.Prefix // clients; invalid: all
	Container   netip.Addr
	Name        string
}

// Host is everything on the host that containers' traffic of one family passes through.
type Host struct {
	Family    *Family
	Networks  []Network
	Uplinks   []Device
	Others    bool // other devices may lead outside, too
	Published []Publication
}

// Rule is where something of ours lets a network's packets through.
type Rule struct {
	Where   string
	Bridge  string
	Network string
	What    string // what it lets through, as part of a sentence
}

// Finding is something that the user should know.
type Finding struct {
	Name    string
	Warning bool // somebody may have to do something
	Detail  string
}

// ways are the uplinks, or one unknown device if there are none.
func (h Host) ways() []Device {
	if len(h.Uplinks) == 0 {
		return []Device{{}}
	}
	return h.Uplinks
}

// String names the device, for a sentence.
func (d Device) String() string {
	if d.Name == "" {
		return "any device"
	}
	return d.Name
}

// String names the host ports, for a sentence.
func (p Publication) String() string {
	s := fmt.Sprint(p.First)
	if p.Last > p.First {
		s += fmt.Sprintf("-%d", p.Last)
	}
	if p.HostIP.IsValid() {
		s = p.HostIP.String() + ":" + s
	}
	return s + "/" + p.Proto
}
