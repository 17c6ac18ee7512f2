package bench

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// Workload is something to measure.
type Workload interface {
	// Name is a key in the results: "tcp-c2c".
	Name() string
	// Title is the name for reports: "TCP container → container".
	Title() string
	// Unit of Sample.Value: "Gbit/s", "Mpps", "failures".
	Unit() string
	// Run measures once, for about d. It calls start when everything is warm:
	// counters and clocks count from there.
	Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error)
}

// Sample is the result of one run of a workload.
type Sample struct {
	// Round in which it was taken, from 1.
	Round int `json:"round,omitempty"`
	// Value in the workload's unit.
	Value float64 `json:"value"`
	// Retransmits of the sending TCP in segments, including spurious ones and
	// those of the warm-up.
	Retransmits int64 `json:"retransmits,omitempty"`
	// Spurious is the number of segments that the receiver reported as received
	// twice (DSACK).
	Spurious int64 `json:"spurious_retransmits,omitempty"`
	// Lost is the share of packets that did not arrive, 0 to 1. It is absent if
	// lost packets are sent again.
	Lost *float64 `json:"lost_share,omitempty"`
	// Seconds of the clock to which CPUSeconds and FastShare refer.
	Seconds float64 `json:"seconds,omitempty"`
	// CPUSeconds is the busy time of all cores of the machine, other processes
	// included.
	CPUSeconds float64 `json:"cpu_seconds"`
	// FastShare is the share of packets on the fast path, 0 to 1. It is absent
	// if there is only one path.
	FastShare *float64 `json:"fast_share,omitempty"`
	// Requests made, and Failures by cause, for workloads that count them.
	Requests int            `json:"requests,omitempty"`
	Failures map[string]int `json:"failures,omitempty"`
	// Percentiles of a request's time in milliseconds.
	P50  float64 `json:"p50_ms,omitempty"`
	P99  float64 `json:"p99_ms,omitempty"`
	P999 float64 `json:"p99.9_ms,omitempty"`
	// Error of a failed run, whose Value does not count.
	Error string `json:"error,omitempty"`
}

// ipv6 ends the names of the workloads and the contestants of IPv6, which belong together.
const ipv6 = "-ipv6"

func isIPv6(name string) bool { return strings.HasSuffix(name, ipv6) }

// ipv6Text adds what s says to a text of the report.
func ipv6Text(text string, is bool, s string) string {
	if is {
		text += s
	}
	return text
}

// addrIn returns a namespace's address of a family.
func addrIn(n *lab.Namespace, ipv6 bool) netip.Addr {
	if ipv6 {
		return n.Addr6
	}
	return n.Addr
}

// warmUp, in seconds, covers TCP's slow start and the first lease.
const warmUp = 1

// Workloads returns all workloads, in the order of the report.
func Workloads() []Workload {
	return []Workload{
		Bulk{Direction: ContainerToContainer, Omit: warmUp},
		Bulk{Direction: ContainerToOutside, Omit: warmUp},
		Bulk{Direction: OutsideToContainer, Omit: warmUp},
		Bulk{Direction: ContainerToOutside, Processes: 4, Omit: warmUp},
		Bulk{Direction: ContainerToContainer, Apart: true, Omit: warmUp},
		Bulk{Direction: ContainerToOutside, Apart: true, Omit: warmUp},
		Bulk{Direction: OutsideToContainer, Apart: true, Omit: warmUp},
		PPS{Direction: ContainerToContainer},
		PPS{Direction: ContainerToOutside},
		PPS{Direction: OutsideToContainer},
		Flood{},
		PPS{Direction: ContainerToOutside, Flows: 100_000},
		PPS{Direction: ContainerToOutside, Flows: 1_000_000},
		RoundTrip{ContainerToContainer},
		RoundTrip{ContainerToOutside},
		Bulk{Direction: ContainerToContainer, Omit: warmUp, IPv6: true},
		Bulk{Direction: ContainerToOutside, Omit: warmUp, IPv6: true},
		Bulk{Direction: OutsideToContainer, Omit: warmUp, IPv6: true},
		PPS{Direction: ContainerToContainer, IPv6: true},
		PPS{Direction: ContainerToOutside, IPv6: true},
		PPS{Direction: OutsideToContainer, IPv6: true},
		ConnMax{},
		ConnRate{},
	}
}
