package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// Timing holds the times of one step of the control plane as the user sees it:
// a whole command, from start to end.
type Timing struct {
	Contestant string `json:"contestant"`
	Step       string `json:"step"`
	// Milliseconds of elapsed time, one for each repetition. CPU is that of the
	// command's own process; in scrapes, that of `fastbr serve`.
	Milliseconds    []float64 `json:"ms"`
	CPUMilliseconds []float64 `json:"cpu_ms"`
}

const (
	// controlRepeats is the number of repetitions of each step that can be
	// repeated.
	controlRepeats = 10
	controlNetwork = "fastbr-bench"
)

// stopwatch runs commands on a lab's host and records their times.
type stopwatch struct {
	host       *lab.Namespace
	contestant string
	timings    []Timing
}

// run times one command.
func (w *stopwatch) run(ctx context.Context, step string, argv ...string) error {
	c := w.host.Exec(ctx, argv...)
	begin := time.Now()
	_, err := c.Output()
	if err != nil {
		return err
	}
	took := time.Since(begin)
	w.note(step, took, c.ProcessState.UserTime()+c.ProcessState.SystemTime())
	return nil
}

func (w *stopwatch) note(step string, took, cpu time.Duration) {
	at := len(w.timings) - 1
	if at < 0 || w.timings[at].Step != step {
		w.timings = append(w.timings, Timing{Contestant: w.contestant, Step: step})
		at++
	}
	t := &w.timings[at]
	t.Milliseconds = append(t.Milliseconds, ms(took))
	t.CPUMilliseconds = append(t.CPUMilliseconds, ms(cpu))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Control times fastbr's commands in a lab with so many ports.
func (f Fastbr) Control(ctx context.Context, ports int) (_ []Timing, err error) {
	l, err := lab.New(ctx, f.Options())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, Close(f, l)) }()
	w := &stopwatch{host: l.Host, contestant: f.Name()}
	argv := func(args ...string) []string { return append(append([]string{f.Binary}, f.Flags...), args...) }
	if err := w.run(ctx, "up", argv("up")...); err != nil {
		return nil, err
	}
	for i := 1; i <= ports; i++ {
		n, err := l.Add(fmt.Sprintf("p%d", i))
		if err != nil {
			return nil, err
		}
		if err := w.run(ctx, attachStep(i, ports), argv("attach", "netns:"+n.Name, "--name", portName(i-1))...); err != nil {
			return nil, err
		}
	}
	with := fmt.Sprintf(", %s ports", thousands(ports))
	for range controlRepeats {
		if err := w.run(ctx, "metrics, the command"+with, argv("metrics")...); err != nil {
			return nil, err
		}
	}
	if err := w.scrapes(ctx, "scrape of serve"+with, argv("serve")...); err != nil {
		return nil, err
	}
	for i := range min(controlRepeats, ports-1) {
		if err := w.run(ctx, "detach"+with, argv("detach", portName(ports-1-i))...); err != nil {
			return nil, err
		}
	}
	return w.timings, w.run(ctx, "down"+with, argv("down", "--all")...)
}

// attachStep names the attachment of the i-th port: those around the tenth
// count as "the 10th", and the last ones as "the last".
func attachStep(i, ports int) string {
	switch {
	case i > ports-controlRepeats:
		return fmt.Sprintf("attach, up to port %s", thousands(ports))
	case i <= 2*controlRepeats:
		return fmt.Sprintf("attach, up to port %d", 2*controlRepeats)
	}
	return "attach, in between"
}

// Control times the corresponding commands of Docker, on a network of its own,
// with running containers.
func (d Docker) Control(ctx context.Context) (_ []Timing, err error) {
	l, err := Build(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, Close(d, l)) }()
	w := &stopwatch{host: l.Host, contestant: d.Name()}
	if err := w.run(ctx, "up", d.argv("network", "create", controlNetwork)...); err != nil {
		return nil, err
	}
	for range controlRepeats {
		if err := w.run(ctx, attachStep(1, 3*controlRepeats), d.argv("network", "connect", controlNetwork, portName(0))...); err != nil {
			return nil, err
		}
		if _, err := l.Host.Run(ctx, d.argv("network", "disconnect", controlNetwork, portName(0))...); err != nil {
			return nil, err
		}
	}
	return w.timings, nil
}

// controlPlane returns the table of medians.
func (r *Report) controlPlane() table {
	t := table{head: []string{"Control plane, median", "Contestant", "Times", "Clock", "CPU of the process"}}
	for _, c := range r.Control {
		t.rows = append(t.rows, []string{c.Step, c.Contestant, fmt.Sprint(len(c.Milliseconds)),
			fmt.Sprintf("%.1f ms", Median(c.Milliseconds)), fmt.Sprintf("%.1f ms", Median(c.CPUMilliseconds))})
	}
	return t
}
