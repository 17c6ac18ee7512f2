package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// RoundTrip is TCP request and response, one at a time, with sockperf.
type RoundTrip struct{ Direction Direction }

const (
	sockperfPort = 11111
	sockperfSize = 64 // bytes each way
)

// Name implements Workload.
func (r RoundTrip) Name() string { return [...]string{"tcp-rr-c2c", "tcp-rr-c2o"}[r.Direction] }

// Title implements Workload.
func (r RoundTrip) Title() string { return "TCP round trip, " + r.Direction.String() }

// Unit implements Workload.
func (r RoundTrip) Unit() string { return micros }

// micros is the unit of RoundTrip, for the median. Less is better.
const micros = "µs"

// Run implements Workload. d is rounded down to whole seconds, at least one.
func (r RoundTrip) Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error) {
	client, server := l.Containers[0], l.Outside
	if r.Direction == ContainerToContainer {
		server = l.Containers[1]
	}
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	serving, stop := context.WithCancel(ctx)
	to := []string{"--tcp", "-i", server.Addr.String(), "-p", strconv.Itoa(sockperfPort)}
	srv := server.Exec(serving, append([]string{"sockperf", "server"}, to...)...)
	if err := srv.Start(); err != nil {
		stop()
		return Sample{}, err
	}
	defer func() { stop(); _ = srv.Wait() }()
	if err := server.WaitListen(ctx, netip.AddrPortFrom(server.Addr, sockperfPort)); err != nil {
		return Sample{}, fmt.Errorf("starting sockperf: %w", err)
	}
	if err := start(); err != nil {
		return Sample{}, err
	}
	out, err := client.Run(ctx, append([]string{"sockperf", "ping-pong", "--full-rtt", "-m", strconv.Itoa(sockperfSize),
		"-t", strconv.Itoa(max(1, int(d/time.Second)))}, to...)...)
	if err != nil {
		return Sample{}, err
	}
	return parseSockperf(out)
}

var (
	observations = regexp.MustCompile(`Total (\d+) observations`)
	percentile   = regexp.MustCompile(`percentile (\d+\.\d+) = *(\d+\.\d+)`)
	dropped      = regexp.MustCompile(`# dropped messages = (\d+);`)
)

// parseSockperf parses sockperf's output for people; it has no other.
func parseSockperf(out string) (Sample, error) {
	at := map[string]float64{}
	for _, m := range percentile.FindAllStringSubmatch(out, -1) {
		at[m[1]], _ = strconv.ParseFloat(m[2], 64)
	}
	n := observations.FindStringSubmatch(out)
	if n == nil || at["50.000"] == 0 {
		return Sample{}, errors.New("sockperf measured nothing")
	}
	s := Sample{Value: at["50.000"], P50: at["50.000"] / 1000, P99: at["99.000"] / 1000, P999: at["99.900"] / 1000}
	s.Requests, _ = strconv.Atoi(n[1])
	if d := dropped.FindStringSubmatch(out); d != nil && d[1] != "0" {
		return s, fmt.Errorf("sockperf lost %s messages", d[1])
	}
	return s, nil
}
