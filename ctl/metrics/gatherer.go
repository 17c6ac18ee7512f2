package metrics

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fastbr/fastbr/ctl"
	dto "github.com/prometheus/client_model/go"
)

// Source provides the figures of a scrape. *ctl.Controller implements it.
type Source interface {
	// Snapshot reads everything under one lock. It is zero when nothing is up.
	Snapshot(ctx context.Context) (ctl.Snapshot, error)
}

// Build identifies the running build in fastbr_build_info.
type Build struct {
	Version, Revision, GoVersion string
}

// scrapeTimeout bounds the wait for the instance lock. Prometheus gives up
// after 10 s by default, and a scrape that outlives its scraper is wasted.
const scrapeTimeout = 9 * time.Second

// Gatherer exports one snapshot per scrape. It is a prometheus.Gatherer and not
// a Collector: a registry would check, hash and sort every sample, and the
// samples are in order already.
type Gatherer struct {
	source  Source
	build   Build
	reasons []string
}

// NewGatherer returns a gatherer over source. reasons are all drop reasons.
// Each is exported also while it is 0: rate() misses the first increments of a
// series that appears with them.
func NewGatherer(source Source, build Build, reasons []string) *Gatherer {
	return &Gatherer{source: source, build: build, reasons: reasons}
}

// Gather implements prometheus.Gatherer. A snapshot that cannot be read makes
// the scrape fail: Prometheus then marks the target down instead of storing an
// instance without ports.
func (g *Gatherer) Gather() ([]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	snap, err := g.source.Snapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the counters: %w", err)
	}
	var families []*dto.MetricFamily
	ports := labelled(snap)
	for _, m := range Catalogue() {
		if snap.Up || m.WhenDown {
			families = append(families, g.family(m, snap, ports))
		}
	}
	return families, nil
}

// family returns m with its samples.
func (g *Gatherer) family(m Metric, snap ctl.Snapshot, ports []labelledPort) *dto.MetricFamily {
	switch m.Name {
	case nameUp:
		return single(m, oneIf(snap.Up))
	case nameBuildInfo:
		f := family{metric: m}
		f.add(1, pair("goversion", g.build.GoVersion), pair("revision", g.build.Revision), pair("version", g.build.Version))
		return f.done()
	case nameReceivePackets:
		return byPath(m, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.RXFastPackets, p.RXSlowPackets })
	case nameReceiveBytes:
		return byPath(m, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.RXFastBytes, p.RXSlowBytes })
	case nameSendPackets:
		return byPath(m, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.TXFastPackets, p.TXSlowPackets })
	case nameSendBytes:
		return byPath(m, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.TXFastBytes, p.TXSlowBytes })
	case nameDropped:
		return g.byReason(m, ports)
	case nameNetworkPorts:
		f := family{metric: m}
		for _, n := range snap.Networks {
			f.add(uint64(len(n.Ports)), pair("network", n.Name))
		}
		return f.done()
	default:
		return nat(m, snap.NAT)
	}
}

// labelledPort is a port with the labels that it has in every family.
type labelledPort struct {
	*ctl.PortView
	name, network, port *dto.LabelPair
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
			out = append(out, labelledPort{p, pair("name", p.Name), pair("network", p.Network), pair("port", p.Port)})
		}
	}
	for _, n := range snap.Networks {
		add(n.Ports)
	}
	add(snap.Uplinks)
	return out
}

func byPath(m Metric, ports []labelledPort, of func(ctl.PortPaths) (fast, slow uint64)) *dto.MetricFamily {
	f := family{metric: m}
	fastPath, slowPath := pair("path", "fast"), pair("path", "slow")
	for _, p := range ports {
		fast, slow := of(p.Paths)
		f.add(fast, p.name, p.network, fastPath, p.port)
		f.add(slow, p.name, p.network, slowPath, p.port)
	}
	return f.done()
}

func (g *Gatherer) byReason(m Metric, ports []labelledPort) *dto.MetricFamily {
	f := family{metric: m}
	reasons := make([]*dto.LabelPair, len(g.reasons))
	for i, r := range g.reasons {
		reasons[i] = pair("reason", r)
	}
	for _, p := range ports {
		for i, r := range g.reasons {
			f.add(p.Drops[r], p.name, p.network, p.port, reasons[i])
		}
	}
	return f.done()
}

// nat returns a family of NAT figures.
func nat(m Metric, n ctl.NATView) *dto.MetricFamily {
	switch m.Name {
	case nameFlows:
		return single(m, uint64(n.Flows))
	case nameFlowsMax:
		return single(m, uint64(n.FlowsMax))
	case nameFamilyFlows:
		f := family{metric: m}
		for _, name := range slices.Sorted(maps.Keys(n.FlowsOf)) {
			f.add(uint64(n.FlowsOf[name]), pair("family", name))
		}
		return f.done()
	case nameOverloads:
		return single(m, n.PortOverloads)
	case nameRemaps:
		return single(m, n.PortRemaps)
	case nameReclaimed:
		return single(m, n.PortsReclaimed)
	case nameEarlyDrops:
		return single(m, n.EarlyDrops)
	case namePortProbes:
		return probes(m, n)
	}
	f := family{metric: m}
	for _, reason := range refusals() {
		f.add(n.Refused[reason], pair("reason", reason))
	}
	return f.done()
}

// refusals returns the drop reasons that mean that a flow got no NAT mapping.
func refusals() []string { return []string{"nat_full", "quota"} }

func oneIf(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
