package bench

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// Flood is small UDP packets from outside to a container's own address, which
// nothing translates. It measures how many of them one core generates and the
// host drops.
type Flood struct{}

// Name implements Workload.
func (Flood) Name() string { return "flood-direct" }

// Title implements Workload.
func (Flood) Title() string { return "UDP, 64 bytes, outside to a container's own address, dropped" }

// Unit implements Workload.
func (Flood) Unit() string { return mpps }

// Run implements Workload.
func (Flood) Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (_ Sample, err error) {
	from, to := l.Outside, l.Containers[0]
	s := stream{src: netip.AddrPortFrom(from.Addr, ppsServerPort), dst: netip.AddrPortFrom(to.Addr, ppsSourcePort),
		sports: 1, dports: 1, arriveAt: to.Addr}
	if s.srcMAC, err = from.MAC(device); err != nil {
		return Sample{}, err
	}
	if s.dstMAC, err = l.Host.MAC(device); err != nil {
		return Sample{}, err
	}
	r, err := s.run(ctx, from, to, d, func(g *generator) error { return g.send(burst) }, start)
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{Value: float64(r.sent) / r.took.Seconds() / 1e6}
	if r.received > 0 {
		return sample, errors.New("frames have got in")
	}
	return sample, nil
}

// FragmentFlood is UDP fragments that never complete a datagram: alternately
// the beginning of a datagram and the middle of another.
type FragmentFlood struct {
	From       *lab.Namespace
	Source, To netip.AddrPort
}

// Run sends perSecond fragments a second until ctx is done. It calls start when
// it begins, and returns the actual rate per second.
func (f FragmentFlood) Run(ctx context.Context, perSecond int, start func()) (rate float64, err error) {
	s := stream{src: f.Source, dst: f.To, arriveAt: f.To.Addr()}
	if err := s.aim(ctx, f.From); err != nil {
		return 0, err
	}
	g, err := newSender(s, f.From)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	start()
	begin := time.Now()
	n, err := live{f.From, g.objects.FbrBenchFragment, frameBytes}.pace(ctx, math.MaxInt, perSecond)
	return float64(n) / time.Since(begin).Seconds(), err
}
