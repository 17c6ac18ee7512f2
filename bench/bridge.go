package bench

import (
	"context"
	"net/netip"
	"strconv"

	"github.com/fastbr/fastbr/ctl/lab"
)

// Bridge is the kernel's own bridge with masquerade: docker0 without Docker,
// and without the filter rules that Docker adds, which would slow it down.
// bridge-nf-call-iptables is 0, as Docker leaves it today.
type Bridge struct {
	// IPTables masquerades with iptables, as Docker does; off: with nftables.
	// A connection's first packet alone meets the rule, so bulk throughput is
	// the same.
	IPTables bool
}

// Name implements Contestant.
func (b Bridge) Name() string {
	if b.IPTables {
		return "bridge-iptables"
	}
	return "bridge-nft"
}

// Describe implements Contestant.
func (b Bridge) Describe() string {
	if b.IPTables {
		return "kernel bridge, iptables MASQUERADE, bridge-nf-call-iptables=0"
	}
	return "kernel bridge, nftables masquerade, bridge-nf-call-iptables=0"
}

// Options implements Contestant.
func (b Bridge) Options() lab.Options {
	return lab.Options{Plain: true, Private: []netip.Prefix{}}
}

// Setup implements Contestant. The lab has built the bridge already.
func (b Bridge) Setup(ctx context.Context, l *lab.Lab) error {
	if !b.IPTables {
		return nil
	}
	if _, err := l.Host.Run(ctx, "nft", "delete", "table", "ip", "lab-br0"); err != nil {
		return err
	}
	return l.Host.IPTables(ctx, "-t", "nat", "-A", "POSTROUTING", "-s", "172.30.0.0/16", "!", "-o", "br0", "-j", "MASQUERADE")
}

// Flows implements Contestant.
func (b Bridge) Flows() int { return conntrackMax() }

// conntrackMax is how many connections conntrack takes, of all namespaces together.
func conntrackMax() int {
	n, _ := strconv.Atoi(line("/proc/sys/net/netfilter/nf_conntrack_max"))
	return n
}

// Paths implements Contestant.
func (b Bridge) Paths(context.Context, *lab.Lab) (Paths, bool, error) { return Paths{}, false, nil }

// Teardown implements Contestant: everything is inside the lab.
func (b Bridge) Teardown(context.Context, *lab.Lab) error { return nil }
