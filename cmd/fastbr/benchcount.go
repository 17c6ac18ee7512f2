package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/bench"
)

// benchCountFlags are the flags of `fastbr bench count`.
type benchCountFlags struct {
	from   string
	accept bool
}

func newBenchCountCmd(e *env) *cobra.Command {
	var f benchCountFlags
	cmd := &cobra.Command{
		Use:   "count",
		Short: "Count the instructions of a packet, a KiB, a connection, in an emulated machine",
		Long: `Count the guest instructions that a packet, a KiB of TCP, a connection and an
attach cost, beside a kernel bridge, its flowtable, a bare redirect and a bare
veth pair.

This needs a clock that advances with each instruction, so it runs only in the
emulated machine of 'make bench-count'. With --from it measures nothing: it shows
the stored counts and compares them with bench/counts.json.`,
		Example: `  make bench-count
  fastbr bench count --from bin/counts.json
  fastbr bench count --from bin/counts.json --accept`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.from != "" {
				return f.compare(e)
			}
			if f.accept {
				return usage("--accept needs --from FILE: what was counted")
			}
			return countInstructions(cmd.Context(), e)
		},
	}
	cmd.Flags().StringVar(&f.from, "from", "", "measure nothing, compare the counts stored in this `FILE`")
	cmd.Flags().BoolVar(&f.accept, "accept", false, "store the counts as those to compare with, and render bench/README.md")
	return cmd
}

// Path of the golden counts in a checkout.
const (
	storedCounts     = "bench/" + storedCountsName
	storedCountsName = "counts.json"
)

func countInstructions(ctx context.Context, e *env) error {
	self, err := e.self()
	if err != nil {
		return err
	}
	if err := needForLabs("bench count", "iperf3", "nft"); err != nil {
		return err
	}
	ctx, stop := untilPipeBreaks(ctx)
	defer stop()
	plan := bench.CountPlan(self)
	plan.Progress = func(_ int, w bench.Workload, c bench.Contestant, s bench.Sample) {
		fmt.Fprintf(e.stderr, "%-48s %-16s %s\n", w.Title(), c.Name(), outcome(w, s))
	}
	c, err := bench.Count(ctx, plan, self)
	if errors.Is(err, bench.ErrNotCounting) {
		return fmt.Errorf("%w: run make bench-count", err)
	}
	if err != nil {
		return interruption(ctx, err)
	}
	return e.print(c, func(w io.Writer) { fmt.Fprint(w, c.Text()) })
}

// compare shows stored counts beside the golden ones, or makes them golden.
func (f benchCountFlags) compare(e *env) error {
	c, err := bench.LoadCounts(f.from)
	if err != nil {
		return err
	}
	fmt.Fprint(e.stdout, c.Text())
	if f.accept {
		if !inCheckout() {
			return errors.New("--accept writes bench/counts.json: run it in a checkout of fastbr")
		}
		if _, err := c.Save("bench", storedCountsName); err != nil {
			return err
		}
		return c.RenderReadme(benchPage, storedCountsName)
	}
	golden, err := bench.LoadCounts(storedCounts)
	if err != nil {
		return err
	}
	if off := c.Compare(golden); len(off) > 0 {
		return fmt.Errorf("counts differ from %s: %s (if that is intended, run make bench-count ACCEPT=1)", storedCounts, strings.Join(off, "; "))
	}
	return nil
}
