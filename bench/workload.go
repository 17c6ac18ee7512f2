package bench

import (
	"context"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// Workload is one thing to measure.
type Workload interface {
	// Name is a key in the results: "tcp-c2c".
	Name() string
	// Title is for people: "TCP container → container".
	Title() string
	// Unit of Sample.Value: "Gbit/s", "Mpps", "failures".
	Unit() string
	// Run measures once, for about d. It calls start when everything is warm:
	// what counters and clocks say before does not count.
	Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error)
}

// Sample is what one run of a workload gave.
type Sample struct {
	// Round it was taken in, from 1.
	Round int `json:"round,omitempty"`
	// Value in the workload's unit.
	Value float64 `json:"value"`
	// Retransmits of the sending TCP in segments, spurious ones and those of
	// the warm-up included.
	Retransmits int64 `json:"retransmits,omitempty"`
	// Spurious is how many segments the receiver reported to have got twice (DSACK).
	Spurious int64 `json:"spurious_retransmits,omitempty"`
	// Lost is the share of packets that did not arrive, 0 to 1; absent where
	// something sends them again.
	Lost *float64 `json:"lost_share,omitempty"`
	// Seconds of the clock that CPUSeconds and FastShare are about.
	Seconds float64 `json:"seconds,omitempty"`
	// CPUSeconds that all cores of the machine were busy, everybody included.
	CPUSeconds float64 `json:"cpu_seconds"`
	// FastShare of the packets, 0 to 1; absent where there is one path only.
	FastShare *float64 `json:"fast_share,omitempty"`
	// Requests made and Failures by cause, for workloads that count them.
	Requests int            `json:"requests,omitempty"`
	Failures map[string]int `json:"failures,omitempty"`
	// Percentiles of a request in milliseconds.
	P50  float64 `json:"p50_ms,omitempty"`
	P99  float64 `json:"p99_ms,omitempty"`
	P999 float64 `json:"p99.9_ms,omitempty"`
	// Error of a run that failed; its Value does not count.
	Error string `json:"error,omitempty"`
}

// warmUp in seconds belongs to TCP's slow start and to the first lease.
const warmUp = 1

// Workloads are all there are, in the order of the report.
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
		ConnMax{},
		ConnRate{},
	}
}
