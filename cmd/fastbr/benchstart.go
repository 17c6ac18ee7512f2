package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/bench"
)

// benchStartFlags are the flags of `fastbr bench start`.
type benchStartFlags struct {
	rounds, dockerMost int
	ports              []int
	out, render        string
}

func newBenchStartCmd(e *env) *cobra.Command {
	var f benchStartFlags
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Time 'docker run' on fastbr beside Docker's own bridge",
		Long: `Time 'docker run' on a network of fastbr and on one of Docker's own bridge driver,
both of one dockerd in a throw-away lab. Two times are taken: until the
container's first connection is accepted outside, and of the whole command with a
number of published ports while another container has as many. 'fastbr publish
add' is timed alone as well.

Networks take turns. In a checkout of fastbr, results go to
bench/results/starts and into bench/README.md.`,
		Example: `  fastbr bench start
  fastbr bench start --rounds 3 --ports 0,1,100 --out -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.render != "" {
				return f.renderStored(e)
			}
			return f.run(cmd.Context(), e)
		},
	}
	cmd.Flags().IntVar(&f.rounds, "rounds", 10, "how often every start is timed (first connections: twice as often)")
	cmd.Flags().IntSliceVar(&f.ports, "ports", []int{0, 1, 100, 1000, 10000}, "`NUMBERS` of published ports")
	cmd.Flags().IntVar(&f.dockerMost, "docker-ports", 1000, "`NUMBER` of ports at most that Docker's own bridge is asked for")
	cmd.Flags().StringVar(&f.out, "out", "", "`DIR` for the raw results (default: bench/results/starts in a checkout, else none; -: none)")
	cmd.Flags().StringVar(&f.render, "render", "", "measure nothing, show the results stored in this `FILE`")
	return cmd
}

// storedStarts is the path of the results in a checkout.
const storedStarts = storedResults + "/starts"

// maxStartPorts is the number of host ports available for each container.
const maxStartPorts = 10000

func (f benchStartFlags) run(ctx context.Context, e *env) error {
	if f.rounds < 1 || slices.ContainsFunc(f.ports, func(n int) bool { return n < 0 || n > maxStartPorts }) {
		return usage("--rounds: at least 1; --ports: each 0 to %d", maxStartPorts)
	}
	self, err := e.self()
	if err != nil {
		return err
	}
	if err := needForLabs("bench start", "dockerd", "busybox", "iptables"); err != nil {
		return err
	}
	ctx, stop := untilPipeBreaks(ctx)
	defer stop()
	v := buildVersion()
	plan := bench.StartPlan{Fastbr: self, Rounds: f.rounds, Ports: f.ports, DockerMost: f.dockerMost, Version: v.Version, Commit: v.commit(),
		Progress: func(s bench.Start) {
			fmt.Fprintf(e.stderr, "%-8s %-75s %5d ports %9.1f ms\n", s.Contestant, s.Step, s.Ports, s.Milliseconds[0])
		}}
	r, err := plan.Run(ctx)
	if err != nil {
		return interruption(ctx, err)
	}
	fmt.Fprint(e.stdout, r.Text())
	return keepResults(e, f.out, storedStarts, r)
}

// renderStored shows stored results, and renders the page if they are the checkout's.
func (f benchStartFlags) renderStored(e *env) error {
	r, err := bench.LoadStarts(f.render)
	if err != nil {
		return err
	}
	fmt.Fprint(e.stdout, r.Text())
	if inCheckout() && filepath.Dir(filepath.Clean(f.render)) == storedStarts {
		return r.RenderReadme(benchPage, f.render)
	}
	return nil
}
