package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// Plan says what to measure.
type Plan struct {
	// Contestants take part; the first is the baseline.
	Contestants []Contestant
	Heats       []Heat
	Rounds      int
	Seconds     int // of each run
	// Version and Commit of the measured fastbr.
	Version, Commit string
	// Progress, if set, is called after each run.
	Progress func(round int, w Workload, c Contestant, s Sample)
}

// Heat is a workload and its contestants.
type Heat struct {
	Workload Workload
	// Contestants by name; nil: all.
	Contestants []string
	// Every is the interval in rounds, for workloads that take long; 0: each
	// round.
	Every int
}

// entered reports whether a contestant takes part: it is selected, and supports
// the workload.
func (h Heat) entered(c Contestant) bool {
	if isIPv6(c.Name()) != isIPv6(h.Workload.Name()) {
		return false
	}
	if h.Contestants != nil && !slices.Contains(h.Contestants, c.Name()) {
		return false
	}
	p, ok := h.Workload.(PPS)
	return !ok || c.Flows() == 0 || p.Flows <= c.Flows()
}

func (h Heat) runsIn(round int) bool { return h.Every == 0 || round%h.Every == 0 }

// Runs returns the number of runs.
func (p Plan) Runs() (n int) {
	for round := range p.Rounds {
		for _, h := range p.Heats {
			for _, c := range p.Contestants {
				if h.runsIn(round) && h.entered(c) {
					n++
				}
			}
		}
	}
	return n
}

// cleanupTime is the time for Teardown, even after ctx has ended.
const cleanupTime = 20 * time.Second

// Close undoes Setup and removes the lab, whatever has happened before. The
// error is Teardown's; the lab is removed in any case.
func Close(c Contestant, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	err := c.Teardown(ctx, l)
	l.Close()
	return err
}

// Run measures. Every contestant keeps its lab throughout, and only one at a
// time has traffic. A failed run is recorded in its sample. Run ends early if a
// lab cannot be built or ctx ends.
func (p Plan) Run(ctx context.Context) (_ *Report, err error) {
	p.Contestants = slices.DeleteFunc(slices.Clone(p.Contestants), func(c Contestant) bool {
		return !slices.ContainsFunc(p.Heats, func(h Heat) bool { return h.entered(c) })
	})
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
	for _, h := range p.Heats {
		r.Results = append(r.Results, newResult(h.Workload))
	}
	for round := range p.Rounds {
		if err := p.round(ctx, round, labs, r); err != nil {
			return nil, err
		}
	}
	r.summarise()
	return r, nil
}

// round runs every heat once.
func (p Plan) round(ctx context.Context, round int, labs []*lab.Lab, r *Report) error {
	for hi, h := range p.Heats {
		if !h.runsIn(round) {
			continue
		}
		for k := range p.Contestants {
			// The first contestant alternates, so that none always has the warmer
			// or the busier machine.
			i := (k + round) % len(p.Contestants)
			c := p.Contestants[i]
			if !h.entered(c) {
				continue
			}
			s := Measure(ctx, c, h.Workload, labs[i], time.Duration(p.Seconds)*time.Second)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.Round = round + 1
			r.Results[hi].Samples[c.Name()] = append(r.Results[hi].Samples[c.Name()], s)
			if p.Progress != nil {
				p.Progress(round+1, h.Workload, c, s)
			}
		}
	}
	return nil
}

// Measure runs a workload once and adds the figures of the contestant's
// counters and the machine's clocks.
func Measure(ctx context.Context, c Contestant, w Workload, l *lab.Lab, d time.Duration) Sample {
	m := meter{ctx: ctx, contestant: c, lab: l}
	if p, ok := w.(PPS); ok {
		w = p.leasedBy(c)
	}
	s, err := w.Run(ctx, l, d, m.start)
	if err == nil {
		err = m.stop(&s)
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// meter reads counters and clocks at the start and at the end of a run.
type meter struct {
	ctx        context.Context
	contestant Contestant
	lab        *lab.Lab

	began   time.Time
	cpu     float64
	paths   Paths
	counted bool // paths is valid
}

func (m *meter) start() (err error) {
	if m.paths, m.counted, err = m.contestant.Paths(m.ctx, m.lab); err != nil {
		return err
	}
	m.cpu, err = busyCPU()
	m.began = time.Now()
	return err
}

func (m *meter) stop(s *Sample) error {
	s.Seconds = time.Since(m.began).Seconds()
	cpu, err := busyCPU()
	if err != nil {
		return err
	}
	s.CPUSeconds = cpu - m.cpu
	if !m.counted {
		return nil
	}
	after, _, err := m.contestant.Paths(m.ctx, m.lab)
	if err != nil {
		return err
	}
	if share, ok := after.FastShare(m.paths); ok {
		s.FastShare = &share
	}
	return nil
}
