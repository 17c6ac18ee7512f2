package bench

import (
	"context"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
)

// Workload is one thing to measure.
type Workload interface {
	// Name is a key in the results: "tcp-c2c".
	Name() string
	// Title is for people: "TCP container → container".
	Title() string
	// Unit of Sample.Value: "Gbit/s", "failures".
	Unit() string
	// Run measures once, for about d.
	Run(ctx context.Context, l *lab.Lab, d time.Duration) (Sample, error)
}

// Sample is what one run of a workload gave.
type Sample struct {
	// Value in the workload's unit.
	Value float64 `json:"value"`
	// Retransmits of the sending TCP in segments, spurious ones and those of
	// the warm-up included.
	Retransmits int64 `json:"retransmits,omitempty"`
	// Spurious is how many segments the receiver reported to have got twice (DSACK).
	Spurious int64 `json:"spurious_retransmits,omitempty"`
	// CPUSeconds that all cores of the machine were busy, everybody included.
	CPUSeconds float64 `json:"cpu_seconds"`
	// FastShare of the packets, 0 to 1; absent where there is one path only.
	FastShare *float64 `json:"fast_share,omitempty"`
	// Requests made and Failures by cause, for workloads that count them.
	Requests int            `json:"requests,omitempty"`
	Failures map[string]int `json:"failures,omitempty"`
	// P50 and P99 of a request in milliseconds.
	P50 float64 `json:"p50_ms,omitempty"`
	P99 float64 `json:"p99_ms,omitempty"`
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
		ConnRate{},
	}
}
