package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
)

// Plan says what to measure.
type Plan struct {
	// Contestants; the first is the baseline.
	Contestants []Contestant
	Workloads   []Workload
	Rounds      int
	Seconds     int // of each run
	// Version and Commit of the fastbr that is measured.
	Version, Commit string
	// Progress, if set, is told of each run when it is over.
	Progress func(round int, w Workload, c Contestant, s Sample)
}

// cleanupTime is what Teardown gets, also after ctx has ended.
const cleanupTime = 20 * time.Second

// Close undoes Setup and removes the lab, whatever has happened before. The
// error is Teardown's; the lab is gone in any case.
func Close(c Contestant, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	err := c.Teardown(ctx, l)
	l.Close()
	return err
}

// Run measures. Every contestant keeps its lab for the whole time, and only one
// of them carries traffic at a time. A run that fails is noted in its sample; a
// lab that cannot be built, or ctx, ends everything.
func (p Plan) Run(ctx context.Context) (_ *Report, err error) {
	r := &Report{Schema: schema, Started: time.Now().UTC(), Rounds: p.Rounds, Seconds: p.Seconds, Omit: warmUp}
	labs := make([]*lab.Lab, len(p.Contestants))
	defer func() {
		for i, l := range labs {
			if l != nil {
				err = errors.Join(err, Close(p.Contestants[i], l))
			}
		}
	}()
	for i, c := range p.Contestants {
		if labs[i], err = Build(ctx, c); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name(), err)
		}
		r.Entrants = append(r.Entrants, Entrant{Name: c.Name(), Description: c.Describe()})
	}
	r.Environment = ReadEnvironment(ctx, labs[0], p.Version, p.Commit)
	for _, w := range p.Workloads {
		r.Results = append(r.Results, Result{Workload: w.Name(), Title: w.Title(), Unit: w.Unit(), Samples: map[string][]Sample{}})
	}
	for round := range p.Rounds {
		for wi, w := range p.Workloads {
			for k := range p.Contestants {
				// Who begins alternates, so that none always has the warmer or the busier machine.
				i := (k + round) % len(p.Contestants)
				c := p.Contestants[i]
				s := Measure(ctx, c, w, labs[i], time.Duration(p.Seconds)*time.Second)
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				r.Results[wi].Samples[c.Name()] = append(r.Results[wi].Samples[c.Name()], s)
				if p.Progress != nil {
					p.Progress(round+1, w, c, s)
				}
			}
		}
	}
	r.summarise()
	return r, nil
}

// Measure runs a workload once and adds what the contestant's counters and the
// machine's clock say about it.
func Measure(ctx context.Context, c Contestant, w Workload, l *lab.Lab, d time.Duration) Sample {
	before, counted, err := c.Paths(ctx, l)
	if err != nil {
		return Sample{Error: err.Error()}
	}
	cpu, err := busyCPU()
	if err != nil {
		return Sample{Error: err.Error()}
	}
	s, err := w.Run(ctx, l, d)
	if err != nil {
		s.Error = err.Error()
		return s
	}
	if after, err := busyCPU(); err == nil {
		s.CPUSeconds = after - cpu
	}
	if counted {
		after, _, err := c.Paths(ctx, l)
		if err != nil {
			s.Error = err.Error()
			return s
		}
		if share, ok := after.FastShare(before); ok {
			s.FastShare = &share
		}
	}
	return s
}
