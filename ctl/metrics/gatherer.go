package metrics

import (
	"context"
	"fmt"
	"sync"
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
	shelves sync.Pool // holds shelf values
}

// NewGatherer returns a gatherer over source. reasons are all drop reasons.
// Each is exported also while it is 0: rate() misses the first increments of a
// series that appears with them.
func NewGatherer(source Source, build Build, reasons []string) *Gatherer {
	return &Gatherer{source: source, build: build, reasons: reasons}
}

// Gather implements prometheus.TransactionalGatherer: the families are the
// caller's until it calls done. A snapshot that cannot be read makes the scrape
// fail: Prometheus then marks the target down instead of storing an instance
// without ports.
func (g *Gatherer) Gather() (families []*dto.MetricFamily, done func(), err error) {
	memory, _ := g.shelves.Get().(shelf)
	if memory == nil {
		memory = shelf{}
	}
	err = g.each(memory.family, func(f *dto.MetricFamily) error {
		families = append(families, f)
		return nil
	})
	return families, func() { g.shelves.Put(memory) }, err
}

// room returns an empty family of m with room for so many samples.
type room func(m Metric, samples int) *family

// each reads a snapshot and calls show with each family. Families use the
// memory that in gives out, one after the other.
func (g *Gatherer) each(in room, show func(*dto.MetricFamily) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	snap, err := g.source.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("reading the counters: %w", err)
	}
	ports := labelled(snap)
	for _, m := range Catalogue() {
		if !snap.Up && !m.WhenDown {
			continue
		}
		if err := show(g.family(m, snap, ports, in)); err != nil {
			return err
		}
	}
	return nil
}

// family returns m with its samples.
func (g *Gatherer) family(m Metric, snap ctl.Snapshot, ports []labelledPort, in room) *dto.MetricFamily {
	switch m.Name {
	case nameUp:
		return single(m, oneIf(snap.Up))
	case nameBuildInfo:
		f := in(m, 1)
		f.add(1, pair("goversion", g.build.GoVersion), pair("revision", g.build.Revision), pair("version", g.build.Version))
		return f.done()
	case nameReceivePackets:
		return byPath(m, in, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.RXFastPackets, p.RXSlowPackets })
	case nameReceiveBytes:
		return byPath(m, in, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.RXFastBytes, p.RXSlowBytes })
	case nameSendPackets:
		return byPath(m, in, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.TXFastPackets, p.TXSlowPackets })
	case nameSendBytes:
		return byPath(m, in, ports, func(p ctl.PortPaths) (fast, slow uint64) { return p.TXFastBytes, p.TXSlowBytes })
	case nameDropped:
		return g.byReason(m, in, ports)
	case nameNetworkPorts:
		f := in(m, len(snap.Networks))
		for _, n := range snap.Networks {
			f.add(uint64(len(n.Ports)), pair("network", n.Name))
		}
		return f.done()
	default:
		return nat(m, in, snap.NAT)
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

func byPath(m Metric, in room, ports []labelledPort, of func(ctl.PortPaths) (fast, slow uint64)) *dto.MetricFamily {
	f := in(m, 2*len(ports))
	fastPath, slowPath := pair("path", "fast"), pair("path", "slow")
	for _, p := range ports {
		fast, slow := of(p.Paths)
		f.add(fast, p.name, p.network, fastPath, p.port)
		f.add(slow, p.name, p.network, slowPath, p.port)
	}
	return f.done()
}

func (g *Gatherer) byReason(m Metric, in room, ports []labelledPort) *dto.MetricFamily {
	f := in(m, len(g.reasons)*len(ports))
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
func nat(m Metric, in room, n ctl.NATView) *dto.MetricFamily {
	switch m.Name {
	case nameFlows:
		return single(m, uint64(n.Flows))
	case nameFlowsMax:
		return single(m, uint64(n.FlowsMax))
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
	f := in(m, len(refusals()))
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
