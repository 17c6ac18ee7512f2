package bench

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// FragmentFlood is UDP fragments that never become a datagram: of each second
// datagram the beginning, of the others the middle.
type FragmentFlood struct {
	From       *lab.Namespace
	Source, To netip.AddrPort
}

// Run sends perSecond of them a second until ctx is done, from when start has been
// called, and returns how many a second there really were.
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
