package metrics

import (
	"context"
	"fmt"
	"time"

	"github.com/fastbr/fastbr/ctl"
)

// Source is where a scrape gets its figures. *ctl.Controller is one.
type Source interface {
	// Snapshot reads everything under one lock; it is zero when nothing is up.
	Snapshot(ctx context.Context) (ctl.Snapshot, error)
}

// Build names the running build in fastbr_build_info.
type Build struct {
	Version, Revision, GoVersion string
}

// scrapeTimeout bounds the wait for the instance lock: Prometheus gives up
// after 10 s by default, and a scrape that outlives its scraper helps nobody.
const scrapeTimeout = 9 * time.Second

// Collector shows one snapshot per scrape.
type Collector struct {
	source  Source
	build   Build
	reasons []string
}

// NewCollector returns a collector over source. reasons are those that a packet
// can be dropped for: each is shown also while it is 0, for rate() misses the
// first increments of a series that appears with them.
func NewCollector(source Source, build Build, reasons []string) *Collector {
	return &Collector{source: source, build: build, reasons: reasons}
}

// snapshot reads what a scrape shows. One that cannot be read makes the scrape
// fail, so that Prometheus marks the target down instead of storing an instance
// without ports.
func (c *Collector) snapshot(ctx context.Context) (ctl.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	snap, err := c.source.Snapshot(ctx)
	if err != nil {
		return snap, fmt.Errorf("reading the counters: %w", err)
	}
	return snap, nil
}

// show writes every family of the catalogue.
func (c *Collector) show(e *exposition, snap ctl.Snapshot) {
	ports := labelled(snap)
	for _, m := range Catalogue() {
		if !snap.Up && !m.WhenDown {
			continue
		}
		e.family(m)
		switch m.Name {
		case nameUp:
			e.sample(oneIf(snap.Up))
		case nameBuildInfo:
			e.sample(1, labelSet("version", c.build.Version, "revision", c.build.Revision, "goversion", c.build.GoVersion))
		case nameReceivePackets:
			byPath(e, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.RXFastPackets, p.RXSlowPackets })
		case nameReceiveBytes:
			byPath(e, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.RXFastBytes, p.RXSlowBytes })
		case nameSendPackets:
			byPath(e, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.TXFastPackets, p.TXSlowPackets })
		case nameSendBytes:
			byPath(e, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.TXFastBytes, p.TXSlowBytes })
		case nameDropped:
			c.byReason(e, ports)
		case nameNetworkPorts:
			for _, n := range snap.Networks {
				e.sample(uint64(len(n.Ports)), labelSet("network", n.Name))
			}
		default:
			nat(e, m.Name, snap.NAT)
		}
	}
}

// labelledPort is a port with the labels that it has in every family.
type labelledPort struct {
	*ctl.PortView
	labels string // "{" and the pairs, without "}"
}

func labelled(snap ctl.Snapshot) []labelledPort {
	count := len(snap.Uplinks)
	for _, n := range snap.Networks {
		count += len(n.Ports)
	}
	out := make([]labelledPort, 0, count)
	add := func(ports []ctl.PortView) {
		for i := range ports {
			p := &ports[i]
			out = append(out, labelledPort{p, "{" + labelPairs("network", p.Network, "port", p.Port, "name", p.Name)})
		}
	}
	for _, n := range snap.Networks {
		add(n.Ports)
	}
	add(snap.Uplinks)
	return out
}

func byPath(e *exposition, ports []labelledPort, of func(ctl.PortPaths) (fast, slow uint64)) {
	for _, p := range ports {
		fast, slow := of(p.Paths)
		e.sample(fast, p.labels, `,path="fast"}`)
		e.sample(slow, p.labels, `,path="slow"}`)
	}
}

func (c *Collector) byReason(e *exposition, ports []labelledPort) {
	ends := make([]string, len(c.reasons))
	for i, r := range c.reasons {
		ends[i] = "," + labelPairs("reason", r) + "}"
	}
	for _, p := range ports {
		for i, r := range c.reasons {
			e.sample(p.Drops[r], p.labels, ends[i])
		}
	}
}

// nat writes a family of the instance's NAT.
func nat(e *exposition, name string, n ctl.NATView) {
	switch name {
	case nameFlows:
		e.sample(uint64(n.Flows))
	case nameFlowsMax:
		e.sample(uint64(n.FlowsMax))
	case nameOverloads:
		e.sample(n.PortOverloads)
	case nameRemaps:
		e.sample(n.PortRemaps)
	case nameReclaimed:
		e.sample(n.PortsReclaimed)
	case namePortProbes:
		e.histogram(n.PortTries, n.PortsNotFound)
	case nameRefused:
		for _, reason := range refusals() {
			e.sample(n.Refused[reason], labelSet("reason", reason))
		}
	}
}

// refusals are the drop reasons that mean that a flow got no NAT mapping.
func refusals() []string { return []string{"nat_full", "quota"} }

func oneIf(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
