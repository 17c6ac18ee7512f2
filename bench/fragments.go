package bench

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

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
