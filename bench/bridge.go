package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/fastbr/fastbr/internal/lab"
)

// Bridge is the kernel's bridge: docker0 without Docker, and without Docker's
// filter rules, which would slow it down.
type Bridge struct {
	// NAT is the translation of outbound packets.
	NAT NAT
	// NFCall passes bridged frames to iptables (bridge-nf-call-iptables=1), as
	// Docker did until 27.2. If false they bypass it, as with Docker today.
	NFCall bool
	// Flowtable offloads connections that nft has accepted to the kernel's
	// software flowtable, at the ports and at the uplink.
	Flowtable bool
	// IPv6 gives the lab IPv6, too, translated by nftables in the same way.
	IPv6 bool
	// Big gives bridge, ports and containers super-packets as large as fastbr's.
	Big bool
}

// NAT is how the containers of a kernel bridge reach the outside.
type NAT int

// The kinds of NAT. Only a connection's first packet meets the masquerading
// rule, so nftables and iptables hardly differ.
const (
	NFTables NAT = iota
	IPTables     // as Docker does
	Routed       // no NAT: the outside has a route to the containers' addresses
)

// Name implements Contestant.
func (b Bridge) Name() string {
	name := [...]string{"bridge-nft", "bridge-iptables", "routed"}[b.NAT]
	if b.NFCall {
		name += "-nfcall"
	}
	if b.Flowtable {
		name += "-flowtable"
	}
	if b.Big {
		name += "-big"
	}
	return ipv6Text(name, b.IPv6, ipv6)
}

// Describe implements Contestant.
func (b Bridge) Describe() string {
	nat := [...]string{"nftables masquerade", "iptables MASQUERADE", "routing without NAT"}[b.NAT]
	call := 0
	if b.NFCall {
		call = 1
	}
	text := fmt.Sprintf("kernel bridge, %s, bridge-nf-call-iptables=%d", nat, call)
	if b.Flowtable {
		text += ", software flowtable on ports and uplink"
	}
	if b.Big {
		text += fmt.Sprintf(", gso_ipv4_max_size %d on everything", lab.CableGSO)
	}
	return ipv6Text(text, b.IPv6, ", with IPv6")
}

// Options implements Contestant.
func (b Bridge) Options() lab.Options {
	return lab.Options{Plain: true, NFCall: b.NFCall, Private: []netip.Prefix{}, IPv6: addressing(b.IPv6)}
}

// addressing returns how a lab has IPv6.
func addressing(ipv6 bool) lab.Addressing {
	if ipv6 {
		return lab.Static
	}
	return lab.NoIPv6
}

// containers are the containers' subnets in a lab with a plain bridge.
var (
	containers  = netip.MustParsePrefix("172.30.0.0/16")
	containers6 = netip.MustParsePrefix("fd00:172:30::/64")
)

// leadBack tells the outside the way to the containers, whose addresses it sees.
func leadBack(l *lab.Lab, ipv6 bool) error {
	err := l.Outside.AddRoute(containers, l.HostAddr(0))
	if err == nil && ipv6 {
		err = l.Outside.AddRoute(containers6, l.HostAddr6(0))
	}
	return err
}

// Setup implements Contestant. The lab has built the bridge already.
func (b Bridge) Setup(ctx context.Context, l *lab.Lab) error {
	if b.Big {
		if err := l.BigTCP(); err != nil {
			return err
		}
	}
	if b.Flowtable {
		if err := l.Host.NFT(ctx, flowtable); err != nil {
			return err
		}
	}
	if b.NAT == NFTables {
		return nil
	}
	if _, err := l.Host.Run(ctx, "nft", "delete", "table", "ip", "lab-br0"); err != nil {
		return err
	}
	if b.NAT == Routed {
		if b.IPv6 {
			if _, err := l.Host.Run(ctx, "nft", "delete", "table", "ip6", "lab-br0"); err != nil {
				return err
			}
		}
		return leadBack(l, b.IPv6)
	}
	return l.Host.IPTables(ctx, "-t", "nat", "-A", "POSTROUTING", "-s", containers.String(), "!", "-o", "br0", "-j", "MASQUERADE")
}

// flowtable is the ruleset for a lab with two containers.
const flowtable = `
table inet lab-flowtable {
	flowtable fast {
		hook ingress priority filter
		devices = { eth0, br0-1, br0-2 }
	}
	chain forward {
		type filter hook forward priority filter
		meta l4proto { tcp, udp } flow add @fast
	}
}
`

// Flows implements Contestant.
func (b Bridge) Flows() int { return conntrackMax() }

// conntrackMax returns the maximum number of connections that conntrack tracks,
// in all namespaces together.
func conntrackMax() int {
	n, _ := strconv.Atoi(line("/proc/sys/net/netfilter/nf_conntrack_max"))
	return n
}

// Paths implements Contestant.
func (b Bridge) Paths(context.Context, *lab.Lab) (Paths, bool, error) { return Paths{}, false, nil }

// Teardown implements Contestant: everything is inside the lab.
func (b Bridge) Teardown(context.Context, *lab.Lab) error { return nil }
