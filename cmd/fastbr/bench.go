package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/bench"
	"github.com/fastbr/fastbr/ctl"
)

// benchFlags are the flags of `fastbr bench`.
type benchFlags struct {
	rounds, seconds, ports int
	workloads, contestants []string
	out, render, set       string
	chart                  string
}

func newBenchCmd(e *env) *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure fastbr beside a plain kernel bridge, in throw-away labs",
		Long: fmt.Sprintf(`Measure fastbr beside a plain kernel bridge with masquerade, in throw-away labs
in network namespaces of their own; nothing else on this machine is touched.

Contestants run in turn. The table shows medians, the median of the ratios of
each round and its 95 %% confidence interval. In a checkout of fastbr, results go
to bench/results and into bench/README.md.

Workloads: %s.
Contestants: %s. The first one named is the baseline.`,
			strings.Join(workloadNames(), ", "), strings.Join(contestantNames(), ", ")),
		Example: `  fastbr bench
  fastbr bench --rounds 10 --seconds 10 --out /tmp/results
  fastbr bench --workload conn-rate --contestant fastbr --rounds 1 --seconds 600
  fastbr bench --set table --rounds 10 --seconds 1 --chart /tmp/charts`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.render != "" {
				return f.renderStored(e)
			}
			return runBench(cmd.Context(), e, f)
		},
	}
	cmd.AddCommand(newBenchStartCmd(e), newBenchCountCmd(e))
	cmd.Flags().IntVar(&f.rounds, "rounds", 5, "`NUMBER` of rounds; each runs every workload with every contestant")
	cmd.Flags().IntVar(&f.seconds, "seconds", 5, "`SECONDS` of each run")
	cmd.Flags().StringSliceVar(&f.workloads, "workload", nil, "`NAMES` of the workloads to run (default: all of IPv4 with a single flow, bulk TCP on one CPU)")
	cmd.Flags().StringSliceVar(&f.contestants, "contestant", nil, "`NAMES` of the contestants, baseline first (default: bridge-iptables,fastbr)")
	cmd.Flags().StringVar(&f.set, "set", "", "workloads and contestants that belong together: "+setPurposes())
	complete(cmd, "set", cobra.FixedCompletions(setNames(), cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "workload", cobra.FixedCompletions(workloadNames(), cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "contestant", cobra.FixedCompletions(contestantNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&f.out, "out", "", "`DIR` for the raw results (default: bench/results in a checkout, else none; -: none)")
	cmd.Flags().IntVar(&f.ports, "ports", 0, "afterwards time the commands themselves, with up to this `NUMBER` of ports (0: do not)")
	cmd.Flags().StringVar(&f.chart, "chart", "", "draw SVG charts into this `DIR`")
	cmd.Flags().StringVar(&f.render, "render", "", "measure nothing, show the results stored in this `FILE`")
	return cmd
}

// renderStored shows stored results, and renders the page if they are the checkout's.
func (f benchFlags) renderStored(e *env) error {
	r, err := bench.Load(f.render)
	if err != nil {
		return err
	}
	if err := f.show(e, r); err != nil {
		return err
	}
	if inCheckout() && filepath.Dir(filepath.Clean(f.render)) == storedResults {
		return r.RenderReadme(benchPage, f.render)
	}
	return nil
}

// show prints the tables and draws the requested charts.
func (f benchFlags) show(e *env, r *bench.Report) error {
	fmt.Fprint(e.stdout, r.Text())
	if f.chart == "" {
		return nil
	}
	paths, err := r.Charts(f.chart)
	for _, path := range paths {
		e.note("chart in %s", path)
	}
	return err
}

// maxBenchPorts is the port limit of a kernel bridge.
const maxBenchPorts = 1023

// Paths of the results and their page in a checkout.
const (
	storedResults = "bench/results"
	benchPage     = "bench/README.md"
)

func runBench(ctx context.Context, e *env, f benchFlags) error {
	plan, err := f.plan(e)
	if err != nil {
		return codedError{err, exitUsage}
	}
	if err := needForLabs("bench", f.tools()...); err != nil {
		return err
	}
	ctx, stop := untilPipeBreaks(ctx)
	defer stop()
	runs := plan.Runs()
	e.note("%d runs of %d s, in labs of their own", runs, f.seconds)
	done := 0
	plan.Progress = func(round int, w bench.Workload, c bench.Contestant, s bench.Sample) {
		done++
		fmt.Fprintf(e.stderr, "%3d/%d  round %d  %-48s %-16s %s\n", done, runs, round, w.Title(), c.Name(), outcome(w, s))
	}
	report, err := plan.Run(ctx)
	if err == nil && f.ports > 0 {
		report.Control, err = f.timeCommands(ctx, e, plan)
	}
	if err != nil {
		return interruption(ctx, err)
	}
	if err := f.show(e, report); err != nil {
		return err
	}
	if err := keepResults(e, f.out, storedResults, report); err != nil {
		return err
	}
	if failed, all := report.Failed(); failed > 0 {
		return fmt.Errorf("%d of %d runs failed: their errors are in the lines above", failed, all)
	}
	return nil
}

// timeCommands times the commands of fastbr, and those of docker if it is a
// contestant.
func (f benchFlags) timeCommands(ctx context.Context, e *env, plan bench.Plan) ([]bench.Timing, error) {
	e.note("timing commands with up to %d ports", f.ports)
	self, err := e.self()
	if err != nil {
		return nil, err
	}
	timings, err := self.Control(ctx, f.ports)
	if err != nil {
		return nil, fmt.Errorf("timing fastbr's commands: %w", err)
	}
	for _, c := range plan.Contestants {
		if d, ok := c.(bench.Docker); ok {
			more, err := d.Control(ctx)
			if err != nil {
				return nil, fmt.Errorf("timing docker's commands: %w", err)
			}
			timings = append(timings, more...)
		}
	}
	return timings, nil
}

// plan turns the flags into what to run.
func (f benchFlags) plan(e *env) (bench.Plan, error) {
	v := buildVersion()
	p := bench.Plan{Rounds: f.rounds, Seconds: f.seconds, Version: v.Version, Commit: v.commit()}
	if f.rounds < 1 || f.seconds < 1 {
		return p, errors.New("--rounds and --seconds: at least 1")
	}
	if f.ports < 0 || f.ports > maxBenchPorts {
		return p, fmt.Errorf("--ports: 0 to %d", maxBenchPorts)
	}
	self, err := e.self()
	if err != nil {
		return p, err
	}
	if p.Heats, err = f.heats(); err != nil {
		return p, err
	}
	for _, h := range p.Heats {
		self = self.WithRoomFor(h.Workload)
	}
	known := contestants(self)
	for _, name := range f.entrants() {
		i := slices.IndexFunc(known, func(c bench.Contestant) bool { return c.Name() == name })
		if i < 0 {
			return p, fmt.Errorf("no contestant %q: there are %s", name, strings.Join(contestantNames(), ", "))
		}
		p.Contestants = append(p.Contestants, known[i])
	}
	return p, nil
}

// heats returns what the set, or the flags in its place, ask for.
func (f benchFlags) heats() ([]bench.Heat, error) {
	if f.workloads == nil && f.set != "" {
		sets := bench.Sets()
		i := slices.IndexFunc(sets, func(s bench.Set) bool { return s.Name == f.set })
		if i < 0 {
			return nil, fmt.Errorf("no set %q: there are %s", f.set, strings.Join(setNames(), ", "))
		}
		return sets[i].Heats, nil
	}
	names := f.workloads
	if names == nil {
		names = defaultWorkloads()
	}
	var heats []bench.Heat
	for _, name := range names {
		i := slices.Index(workloadNames(), name)
		if i < 0 {
			return nil, fmt.Errorf("no workload %q: there are %s", name, strings.Join(workloadNames(), ", "))
		}
		heats = append(heats, bench.Heat{Workload: bench.Workloads()[i]})
	}
	return heats, nil
}

// defaultWorkloads returns the workloads that last --seconds and whose results do
// not depend on chance.
func defaultWorkloads() []string {
	var names []string
	for _, w := range bench.Workloads() {
		p, _ := w.(bench.PPS)
		b, _ := w.(bench.Bulk)
		if p.Flows <= 1 && !b.Apart && !p.IPv6 && !b.IPv6 {
			names = append(names, w.Name())
		}
	}
	return names
}

// entrants returns the contestants to run. Without iptables, nft replaces it: after
// a connection's first packet both do the same.
func (f benchFlags) entrants() []string {
	if f.contestants != nil {
		return f.contestants
	}
	if f.set != "" {
		return contestantNames()
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		return []string{"bridge-nft", "fastbr"}
	}
	return []string{"bridge-iptables", "fastbr"}
}

// tools returns the programs that the labs and workloads need.
func (f benchFlags) tools() []string {
	tools := []string{"iperf3", "nft", "sockperf"}
	for name, more := range map[string][]string{
		"bridge-iptables": {"iptables"}, "bridge-iptables-nfcall": {"iptables"},
		"docker": {"dockerd", "busybox", "iptables"},
	} {
		if slices.Contains(f.entrants(), name) {
			tools = append(tools, more...)
		}
	}
	return tools
}

// benchReport is the outcome of a benchmark.
type benchReport interface {
	Save(dir string) (path string, err error)
	RenderReadme(page, results string) error
}

// keepResults stores the raw results in the directory out ("-": nowhere). In a
// checkout, the default is the checkout's own directory, and keepResults also
// renders the page.
func keepResults(e *env, out, own string, r benchReport) error {
	checkout := inCheckout()
	dir := out
	if out == "" && checkout {
		dir = own
	}
	if dir == "" || dir == "-" {
		return nil
	}
	path, err := r.Save(dir)
	if err != nil {
		return err
	}
	e.note("raw results in %s", path)
	if out != "" || !checkout {
		return nil
	}
	return r.RenderReadme(benchPage, path)
}

// inCheckout reports whether the current directory is the top of fastbr's source.
func inCheckout() bool {
	mod, err := os.ReadFile("go.mod")
	return err == nil && bytes.HasPrefix(mod, []byte("module github.com/fastbr/fastbr\n"))
}

func contestants(self bench.Fastbr) []bench.Contestant {
	return []bench.Contestant{
		bench.Bridge{NAT: bench.IPTables}, bench.Bridge{NAT: bench.IPTables, NFCall: true}, bench.Bridge{},
		bench.Bridge{NAT: bench.Routed}, bench.Bridge{NAT: bench.IPTables, Big: true}, bench.NewDocker(),
		self, self.WithoutNAT(), self.WithNFCall(), self.WithXDP(), self.WithoutBigTCP(),
		bench.Bridge{IPv6: true}, bench.Bridge{NAT: bench.Routed, IPv6: true}, self.WithIPv6(), self.WithoutNAT().WithIPv6(), bench.NewFloor().WithIPv6(),
		bench.NewFloor(), self.HashFloor(), bench.NewXDPFloor(), bench.NewXDPDrop(), bench.Direct{},
	}
}

func contestantNames() []string {
	var names []string
	for _, c := range contestants(bench.Fastbr{}) {
		names = append(names, c.Name())
	}
	return names
}

func setPurposes() string {
	var purposes []string
	for _, s := range bench.Sets() {
		purposes = append(purposes, s.Name+" ("+s.Purpose+")")
	}
	return strings.Join(purposes, ", ")
}

func setNames() []string {
	var names []string
	for _, s := range bench.Sets() {
		names = append(names, s.Name)
	}
	return names
}

func workloadNames() []string {
	var names []string
	for _, w := range bench.Workloads() {
		names = append(names, w.Name())
	}
	return names
}

// outcome describes a sample in a few words.
func outcome(w bench.Workload, s bench.Sample) string {
	if s.Error != "" {
		return "failed: " + s.Error
	}
	text := fmt.Sprintf("%7.2f %s", s.Value, w.Unit())
	if s.Requests > 0 {
		text = fmt.Sprintf("%7.0f %s of %d", s.Value, w.Unit(), s.Requests)
	}
	if s.FastShare != nil {
		text += "  " + bench.Percent(*s.FastShare) + " fast"
	}
	return text
}

// needForLabs returns a one-line error if something that the command `name` needs
// is missing.
func needForLabs(name string, tools ...string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root, because it makes network namespaces: run it with sudo", name)
	}
	packages := map[string]string{"iperf3": "iperf3", "nft": "nftables", "iptables": "iptables",
		"sockperf": "sockperf", "dockerd": "docker.io", "busybox": "busybox-static"}
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t); err != nil {
			if !slices.Contains(missing, packages[t]) {
				missing = append(missing, packages[t])
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s needs a program that is missing: apt-get install %s", name, strings.Join(missing, " "))
	}
	return nil
}

// self returns this binary as a contestant, with the directories from its flags.
func (e *env) self() (bench.Fastbr, error) {
	path, err := os.Executable()
	if err != nil {
		return bench.Fastbr{}, fmt.Errorf("finding the fastbr binary: %w", err)
	}
	f := bench.Fastbr{Binary: path}
	if e.flags.bpffs != ctl.DefaultBPFFS {
		f.Flags = append(f.Flags, "--bpffs", e.flags.bpffs)
	}
	if e.flags.stateDir != "" {
		f.Flags = append(f.Flags, "--state-dir", e.flags.stateDir)
	}
	return f, nil
}

// untilPipeBreaks also ends ctx when nobody reads the output any more (`| head`).
// Otherwise SIGPIPE would end the process and leave a lab behind. The other
// signals end ctx already.
func untilPipeBreaks(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGPIPE)
}

// interruption returns the error to report: the signal if there was one, rather
// than its consequences.
func interruption(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}
