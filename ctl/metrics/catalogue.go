package metrics

import dto "github.com/prometheus/client_model/go"

// Metric describes one metric family, for the gatherer and for docs/metrics.md.
type Metric struct {
	Name string
	Help string // one line, part of the exposition
	Type dto.MetricType
	// Labels are in the order of the exposition: alphabetical.
	Labels []string
	// WhenDown: the family is emitted even when nothing is up.
	WhenDown bool
}

// The names are stable: dashboards and alerts of users depend on them.
const (
	nameUp             = "fastbr_up"
	nameBuildInfo      = "fastbr_build_info"
	nameReceivePackets = "fastbr_port_receive_packets_total"
	nameReceiveBytes   = "fastbr_port_receive_bytes_total"
	nameSendPackets    = "fastbr_port_transmit_packets_total"
	nameSendBytes      = "fastbr_port_transmit_bytes_total"
	nameDropped        = "fastbr_port_dropped_packets_total"
	nameNetworkPorts   = "fastbr_network_ports"
	nameFlows          = "fastbr_nat_flows"
	nameFlowsMax       = "fastbr_nat_flows_max"
	nameFamilyFlows    = "fastbr_nat_family_flows"
	nameOverloads      = "fastbr_nat_port_overloads_total"
	nameRemaps         = "fastbr_nat_port_remaps_total"
	nameReclaimed      = "fastbr_nat_ports_reclaimed_total"
	nameEarlyDrops     = "fastbr_nat_early_drops_total"
	namePortProbes     = "fastbr_nat_port_probes"
	nameRefused        = "fastbr_nat_refused_total"
)

// Catalogue returns every metric family of the Gatherer, in the order of
// docs/metrics.md.
func Catalogue() []Metric {
	path := []string{"name", "network", "path", "port"}
	reason := []string{"name", "network", "port", "reason"}
	const (
		counter   = dto.MetricType_COUNTER
		gauge     = dto.MetricType_GAUGE
		histogram = dto.MetricType_HISTOGRAM
	)
	return []Metric{
		{Name: nameUp, Type: gauge, WhenDown: true,
			Help: "Whether a fastbr instance is up in this host network namespace (1) or not (0)."},
		{Name: nameBuildInfo, Type: gauge, WhenDown: true, Labels: []string{"goversion", "revision", "version"},
			Help: "The build of the fastbr that answers; always 1."},
		{Name: nameReceivePackets, Type: counter, Labels: path,
			Help: "Packets that the bridge received from the port, by path (fast or slow); one per wire packet, also for GSO."},
		{Name: nameReceiveBytes, Type: counter, Labels: path,
			Help: "Bytes that the bridge received from the port, Ethernet header included, by path (fast or slow)."},
		{Name: nameSendPackets, Type: counter, Labels: path,
			Help: "Packets that the bridge sent to the port, by path (fast or slow); one per wire packet, also for GSO."},
		{Name: nameSendBytes, Type: counter, Labels: path,
			Help: "Bytes that the bridge sent to the port, Ethernet header included, by path (fast or slow)."},
		{Name: nameDropped, Type: counter, Labels: reason,
			Help: "Packets of the port that fastbr dropped, by reason."},
		{Name: nameNetworkPorts, Type: gauge, Labels: []string{"network"},
			Help: "Ports attached to the network."},
		{Name: nameFlows, Type: gauge,
			Help: "NAT flows in the tables of both address families, live ones and those not yet reclaimed."},
		{Name: nameFlowsMax, Type: gauge,
			Help: "NAT flows that the table of an address family can hold."},
		{Name: nameFamilyFlows, Type: gauge, Labels: []string{"family"},
			Help: "NAT flows in the table of an address family, live ones and those not yet reclaimed."},
		{Name: nameOverloads, Type: counter,
			Help: "External ports that were shared between flows because no free one was left."},
		{Name: nameRemaps, Type: counter,
			Help: "Flows that got another external port because the host or a neighbour NAT uses theirs, and flows of those that got another because an established connection of ours uses it."},
		{Name: nameReclaimed, Type: counter,
			Help: "Closed NAT mappings given up early because ports or flow entries ran short."},
		{Name: nameEarlyDrops, Type: counter,
			Help: "Flows begun outside that were given up, oldest first, before their sender had proven to be there: a flood of first packets to published ports."},
		{Name: namePortProbes, Type: histogram,
			Help: "External ports that one allocation looked at until one was free; those that looked at more, or found none, count in +Inf only."},
		{Name: nameRefused, Type: counter, Labels: []string{"reason"},
			Help: "New flows that NAT refused, by reason."},
	}
}
