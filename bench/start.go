package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// StartPlan says which container starts to time.
type StartPlan struct {
	Fastbr Fastbr
	// Rounds is the number of rounds. Each has one start on every network.
	Rounds int
	// Ports lists how many ports a container publishes; 0: none. Another
	// container already publishes the same number.
	Ports []int
	// DockerMost is the largest number of ports for docker's own bridge, whose
	// time grows faster than the number.
	DockerMost int
	// Version and Commit of the measured fastbr.
	Version, Commit string
	// Progress, if set, is called after each start.
	Progress func(Start)
}

// Start is one way to start a container, with a time for each round.
type Start struct {
	Contestant string `json:"contestant"`
	Step       string `json:"step"`
	// Ports published by the command, and by another container before; 0: none.
	Ports        int       `json:"ports,omitempty"`
	Milliseconds []float64 `json:"ms"`
	// Processes is the number that a start added on the host, in the last round.
	Processes int `json:"processes,omitempty"`
}

// The timed steps.
const (
	stepArrive  = "docker run, until the container's first connection is accepted outside"
	stepRun     = "docker run"
	stepPublish = "fastbr publish add"
)

// dockerOnce is the number of ports from which docker's own bridge runs only
// one round: a thousand ports take it most of a minute.
const dockerOnce = 1000

// startCleanup bounds the removal of thousands of rules.
const startCleanup = 5 * time.Minute

// First host ports: of the containers that exist before (on docker's and on
// fastbr's network) and of the timed start. They lie outside the NAT range.
const (
	portsBefore = 30000 // and 40000
	portsTimed  = 50000
)

// Run times everything.
func (p StartPlan) Run(ctx context.Context) (_ *StartReport, err error) {
	s, err := newStartLab(ctx, p.Fastbr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := &StartReport{Schema: schema, Started: time.Now().UTC(), Rounds: p.Rounds, Environment: ReadEnvironment(ctx, s.Lab, p.Version, p.Commit)}
	note := func(contestant, step string, ports int, took time.Duration, processes int) {
		r.note(Start{contestant, step, ports, []float64{ms(took)}, processes})
		if p.Progress != nil {
			p.Progress(Start{contestant, step, ports, []float64{ms(took)}, processes})
		}
	}
	for round := range 2 * p.Rounds {
		for _, e := range entrants(round) {
			took, err := s.arrive(ctx, e.network)
			if err != nil {
				return nil, err
			}
			note(e.contestant, stepArrive, 0, took, 0)
		}
	}
	for _, n := range p.Ports {
		if err := p.publishing(ctx, s, n, note); err != nil {
			return nil, fmt.Errorf("with %d ports: %w", n, err)
		}
	}
	return r, nil
}

type entrant struct {
	contestant, network string
	before              int // first host port of the container that exists before
}

// entrants returns the entrants in the order of a round. The first one
// alternates.
func entrants(round int) []entrant {
	e := []entrant{{Docker{}.Name(), dockerNetwork, portsBefore}, {Fastbr{}.Name(), fastbrNetwork, portsBefore + 10000}}
	if round%2 == 1 {
		e[0], e[1] = e[1], e[0]
	}
	return e
}

// arrive starts a container that connects to the server outside. It returns the
// time until the connection.
func (s *startLab) arrive(ctx context.Context, network string) (time.Duration, error) {
	begin := time.Now()
	if err := s.run(ctx, network, 0, 0, "nc", s.Outside.Addr.String(), fmt.Sprint(serverPort)); err != nil {
		return 0, err
	}
	select {
	case at := <-s.arrived:
		return at.Sub(begin), s.do(ctx, "rm", "-f", timedContainer)
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(dockerPatience):
		return 0, fmt.Errorf("a container on %s did not arrive within %s", network, dockerPatience)
	}
}

// Names of containers.
const (
	timedContainer  = "bench-timed"
	beforeContainer = "bench-before-" // followed by the network
)

// run starts a container that publishes so many ports, from the host port first
// on.
func (s *startLab) run(ctx context.Context, network string, first, ports int, command ...string) error {
	name := timedContainer
	if first != portsTimed && ports > 0 {
		name = beforeContainer + network
	}
	args := []string{"run", "-d", "--name", name, "--network", network}
	if ports > 0 {
		args = append(args, "-p", fmt.Sprintf("%d-%d:%d-%d", first, first+ports-1, first, first+ports-1))
	}
	return s.do(ctx, append(append(args, dockerImage, "/"+busybox), command...)...)
}

// publishing times containers with so many ports on each network, and the
// command that publishes as many.
func (p StartPlan) publishing(ctx context.Context, s *startLab, n int, note func(contestant, step string, ports int, took time.Duration, processes int)) error {
	var there []string
	for _, e := range entrants(0) {
		if n > 0 && !p.skipped(e, n, 0) {
			if err := s.run(ctx, e.network, e.before, n, "sleep", "1000000"); err != nil {
				return err
			}
			there = append(there, beforeContainer+e.network)
		}
	}
	for round := range p.Rounds {
		for _, e := range entrants(round) {
			if p.skipped(e, n, round) {
				continue
			}
			took, more, err := s.timeRun(ctx, e.network, n)
			if err != nil {
				return err
			}
			note(e.contestant, stepRun, n, took, more)
		}
		if n == 0 {
			continue
		}
		took, err := s.timePublish(ctx, n)
		if err != nil {
			return err
		}
		note(Fastbr{}.Name(), stepPublish, n, took, 0)
	}
	if len(there) == 0 {
		return nil
	}
	return s.do(ctx, append([]string{"rm", "-f"}, there...)...)
}

// skipped reports whether docker's own bridge skips a round.
func (p StartPlan) skipped(e entrant, ports, round int) bool {
	return e.contestant == Docker{}.Name() && (ports > p.DockerMost || ports >= dockerOnce && round > 0)
}

// timeRun times a whole `docker run`, and counts the processes that it added on
// the host.
func (s *startLab) timeRun(ctx context.Context, network string, n int) (took time.Duration, more int, err error) {
	before, err := s.processes()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := s.run(ctx, network, portsTimed, n, "sleep", "1000000"); err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	after, err := s.processes()
	return took, after - before, errors.Join(err, s.do(ctx, "rm", "-f", timedContainer))
}

// timePublish times `fastbr publish add` for the container that exists before.
// It starts the command as a user on the host would: --netns would start
// fastbr a second time.
func (s *startLab) timePublish(ctx context.Context, n int) (time.Duration, error) {
	id, err := s.Host.Run(ctx, s.docker.argv("inspect", "-f", "{{(index .NetworkSettings.Networks \""+fastbrNetwork+"\").EndpointID}}", beforeContainer+fastbrNetwork)...)
	if err != nil {
		return 0, err
	}
	id = fmt.Sprintf("%.12s", strings.TrimSpace(id)) // fastbr's name for it
	host := fmt.Sprintf("%d-%d", portsTimed, portsTimed+n-1)
	c := s.Host.Exec(ctx, append(append([]string{s.fastbr.Binary}, s.fastbr.Flags...), "publish", "add", fmt.Sprintf("%s:%d", host, portsTimed), id)...)
	c.Env = append(os.Environ(), s.fastbr.Env...)
	begin := time.Now()
	if _, err := c.Output(); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	_, err = s.fastbr.Command(ctx, s.Lab, "publish", "rm", host, id)
	return took, err
}
