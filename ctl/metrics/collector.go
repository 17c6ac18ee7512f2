package metrics

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/prometheus/client_golang/prometheus"
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

// Collector emits one snapshot per scrape as constant metrics.
type Collector struct {
	source  Source
	build   Build
	reasons []string
	descs   map[string]family
}

type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// NewCollector returns a collector over source. reasons are those that a packet
// can be dropped for: each is shown also while it is 0, for rate() misses the
// first increments of a series that appears with them.
func NewCollector(source Source, build Build, reasons []string) *Collector {
	c := &Collector{source: source, build: build, reasons: reasons, descs: map[string]family{}}
	for _, m := range Catalogue() {
		c.descs[m.Name] = family{prometheus.NewDesc(m.Name, m.Help, m.Labels, nil), m.Type}
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.descs {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector. A snapshot that cannot be read makes
// the scrape fail, so that Prometheus marks the target down instead of storing
// an instance without ports.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	snap, err := c.source.Snapshot(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.descs[nameUp].desc, fmt.Errorf("reading the counters: %w", err))
		return
	}
	e := emitter{c, ch}
	e.emit(nameUp, oneIf(snap.Up))
	e.emit(nameBuildInfo, 1, c.build.Version, c.build.Revision, c.build.GoVersion)
	if !snap.Up {
		return
	}
	for _, n := range snap.Networks {
		e.emit(nameNetworkPorts, float64(len(n.Ports)), n.Name)
		for _, p := range n.Ports {
			e.port(p)
		}
	}
	for _, p := range snap.Uplinks {
		e.port(p)
	}
	e.nat(snap.NAT)
}

// emitter is one scrape on its way out.
type emitter struct {
	c  *Collector
	ch chan<- prometheus.Metric
}

func (e emitter) emit(name string, value float64, labels ...string) {
	f := e.c.descs[name]
	m, err := prometheus.NewConstMetric(f.desc, f.kind, value, labels...)
	if err != nil { // a label that is no UTF-8: say so instead of panicking
		m = prometheus.NewInvalidMetric(f.desc, err)
	}
	e.ch <- m
}

func (e emitter) port(p ctl.PortView) {
	both := func(name string, fast, slow uint64) {
		e.emit(name, float64(fast), p.Network, p.Port, p.Name, "fast")
		e.emit(name, float64(slow), p.Network, p.Port, p.Name, "slow")
	}
	both(nameReceivePackets, p.Paths.RXFastPackets, p.Paths.RXSlowPackets)
	both(nameReceiveBytes, p.Paths.RXFastBytes, p.Paths.RXSlowBytes)
	both(nameSendPackets, p.Paths.TXFastPackets, p.Paths.TXSlowPackets)
	both(nameSendBytes, p.Paths.TXFastBytes, p.Paths.TXSlowBytes)
	for reason, n := range withZeros(p.Drops, e.c.reasons) {
		e.emit(nameDropped, float64(n), p.Network, p.Port, p.Name, reason)
	}
}

func (e emitter) nat(n ctl.NATView) {
	e.emit(nameFlows, float64(n.Flows))
	e.emit(nameFlowsMax, float64(n.FlowsMax))
	e.emit(nameOverloads, float64(n.PortOverloads))
	e.emit(nameRemaps, float64(n.PortRemaps))
	e.emit(nameReclaimed, float64(n.PortsReclaimed))
	e.probes(n)
	for reason, count := range withZeros(n.Refused, refusals()) {
		e.emit(nameRefused, float64(count), reason)
	}
}

// probes emits how hard it is to find a free external port.
func (e emitter) probes(n ctl.NATView) {
	buckets := map[float64]uint64{}
	var count, sum uint64
	for i, tries := range n.PortTries {
		looked := uint64(i + 1)
		count += tries
		sum += looked * tries
		buckets[float64(looked)] = count
	}
	count += n.PortsNotFound
	sum += uint64(len(n.PortTries)) * n.PortsNotFound
	e.ch <- prometheus.MustNewConstHistogram(e.c.descs[namePortProbes].desc, count, float64(sum), buckets)
}

// refusals are the drop reasons that mean that a flow got no NAT mapping.
func refusals() []string { return []string{"nat_full", "quota"} }

// withZeros returns counts with an entry for every key.
func withZeros(counts map[string]uint64, keys []string) map[string]uint64 {
	all := make(map[string]uint64, len(keys))
	for _, k := range keys {
		all[k] = 0
	}
	maps.Copy(all, counts)
	return all
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
