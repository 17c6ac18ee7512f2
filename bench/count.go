package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
)

// On an emulated machine whose clock advances with each instruction (QEMU's
// icount), times become repeatable instruction counts. `make bench-count` runs
// CountPlan there.

// nsPerInstruction is the value that .ci/vm --count sets: 2 to the power of its
// shift.
const nsPerInstruction = 2

// The tolerance of a count relative to the golden one. Two runs of one build
// differ by up to 1 %, because timer interrupts and disk reads come at other
// points. Connections differ by up to 4 %, since their clients also take turns at
// other points.
const (
	countSlack           = 0.02
	countSlackConnection = 0.06
)

const (
	countSeconds  = 1
	countPorts    = 20
	attachCount   = "attach"
	perConnection = "connection"
)

// Counts are guest instructions by workload and contestant. They include
// everything on the machine, senders and receivers too.
type Counts struct {
	Schema int        `json:"schema"`
	Kernel string     `json:"kernel"`
	Rows   []CountRow `json:"rows"`
}

// CountRow is the counts of one workload.
type CountRow struct {
	Workload     string             `json:"workload"`
	Title        string             `json:"title"`
	Per          string             `json:"per"` // the unit of work that the instructions are for
	Instructions map[string]float64 `json:"instructions"`
}

// CountPlan returns the plan for counting, with self as fastbr.
func CountPlan(self Fastbr) Plan {
	routed := Bridge{NAT: Routed}
	all := []string{Bridge{}.Name(), Bridge{Flowtable: true}.Name(), self.Name(), NewFloor().Name(), Direct{}.Name()}
	inside := append(slices.Clone(all), self.WithoutNAT().Name())
	outside := append(slices.Clone(all), routed.Name(), self.WithoutNAT().Name())
	return Plan{
		Contestants: []Contestant{Bridge{}, Bridge{Flowtable: true}, self, routed, self.WithoutNAT(), NewFloor(), Direct{},
			Bridge{IPv6: true}, self.WithIPv6(), NewFloor().WithIPv6()},
		Heats: []Heat{
			{Workload: PPS{Direction: ContainerToContainer}, Contestants: inside},
			{Workload: PPS{Direction: ContainerToOutside}, Contestants: outside},
			{Workload: PPS{Direction: OutsideToContainer}, Contestants: outside},
			{Workload: Bulk{Direction: ContainerToContainer, Omit: warmUp}, Contestants: all},
			{Workload: Bulk{Direction: ContainerToOutside, Omit: warmUp}, Contestants: all},
			{Workload: Bulk{Direction: OutsideToContainer, Omit: warmUp}, Contestants: all},
			{Workload: ConnMax{}, Contestants: all},
			{Workload: PPS{Direction: ContainerToContainer, IPv6: true}},
			{Workload: PPS{Direction: ContainerToOutside, IPv6: true}},
			{Workload: PPS{Direction: OutsideToContainer, IPv6: true}},
			{Workload: Bulk{Direction: ContainerToOutside, Omit: warmUp, IPv6: true}},
		},
		Rounds: 1, Seconds: countSeconds,
	}
}

// ErrNotCounting: the machine's clock does not count instructions.
var ErrNotCounting = errors.New("this machine's clock does not count instructions")

// Count runs the plan, and attach, on a machine whose clock counts
// instructions. On other machines the error wraps ErrNotCounting, as far as
// that can be detected.
func Count(ctx context.Context, p Plan, self Fastbr) (*Counts, error) {
	if cpu, _ := cpuInfo("/proc/cpuinfo"); !strings.Contains(cpu, "TCG") {
		return nil, fmt.Errorf("%w: it is %s, not an emulated processor", ErrNotCounting, cpu)
	}
	r, err := p.Run(ctx)
	if err != nil {
		return nil, err
	}
	if failed, all := r.Failed(); failed > 0 {
		return nil, fmt.Errorf("%d of %d runs failed:\n%s", failed, all, r.Text())
	}
	timings, err := self.Control(ctx, countPorts)
	if err != nil {
		return nil, err
	}
	return newCounts(r, timings), nil
}

func newCounts(r *Report, timings []Timing) *Counts {
	c := &Counts{Schema: schema, Kernel: r.Environment.Kernel}
	for _, res := range r.Results {
		row := CountRow{Workload: res.Workload, Title: res.Title, Instructions: map[string]float64{}}
		var ns float64 // of one unit at a rate of 1
		switch res.Unit {
		case mpps:
			row.Per, ns = "packet", 1e3
		case gbits:
			row.Per, ns = "KiB", 1024*8
		case connsPerSecond:
			row.Per, ns = perConnection, 1e9
		}
		for name, samples := range res.Samples {
			row.Instructions[name] = math.Round(ns / Median(column(samples, value)) / nsPerInstruction)
		}
		c.Rows = append(c.Rows, row)
	}
	for _, t := range timings {
		if strings.HasPrefix(t.Step, attachStep(1, 3*countPorts)) {
			c.Rows = append(c.Rows, CountRow{Workload: attachCount, Title: "fastbr attach, the process alone", Per: "command",
				Instructions: map[string]float64{t.Contestant: math.Round(Median(t.CPUMilliseconds) * 1e6 / nsPerInstruction)}})
		}
	}
	return c
}

// LoadCounts reads a file that Save wrote.
func LoadCounts(path string) (*Counts, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading counts: %w", err)
	}
	var c Counts
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("reading counts from %s: %w", path, err)
	}
	if c.Schema != schema {
		return nil, fmt.Errorf("reading counts from %s: schema %d, want %d", path, c.Schema, schema)
	}
	return &c, nil
}

// Save writes the counts to the file name in dir.
func (c *Counts) Save(dir, name string) (string, error) { return save(c, dir, name) }

// Compare returns a line for each of fastbr's counts that differs from golden's
// by more than the slack. Another kernel build changes the counts of all
// contestants. Then golden's are scaled by the first other contestant of their
// row. attach has no other contestant and depends on the Go compiler: it is
// shown but not compared.
func (c *Counts) Compare(golden *Counts) []string {
	var off []string
	for _, want := range golden.Rows {
		i := slices.IndexFunc(c.Rows, func(r CountRow) bool { return r.Workload == want.Workload })
		if i < 0 {
			off = append(off, want.Title+": not counted")
			continue
		}
		got := c.Rows[i]
		reference := c.reference(got)
		if reference == "" || want.Instructions[reference] == 0 {
			continue
		}
		slack := countSlack
		if want.Per == perConnection {
			slack = countSlackConnection
		}
		for _, subject := range slices.Sorted(maps.Keys(want.Instructions)) {
			if !strings.HasPrefix(subject, "fastbr") {
				continue
			}
			expected := want.Instructions[subject]
			if c.Kernel != golden.Kernel {
				expected *= got.Instructions[reference] / want.Instructions[reference]
			}
			if ratio := got.Instructions[subject] / expected; math.Abs(ratio-1) > slack {
				off = append(off, fmt.Sprintf("%s, %s: %.0f instructions per %s, %+.1f %% of the %.0f on record",
					got.Title, subject, got.Instructions[subject], got.Per, 100*(ratio-1), expected))
			}
		}
	}
	return off
}

// reference returns the contestant whose counts show a different kernel build.
func (c *Counts) reference(row CountRow) string {
	for _, name := range []string{NewFloor().Name(), NewFloor().WithIPv6().Name(), Bridge{}.Name()} {
		if row.Instructions[name] > 0 {
			return name
		}
	}
	return ""
}

// tables returns a table for each family, with a row for each workload.
func (c *Counts) tables() (all []table) {
	for _, six := range []bool{false, true} {
		rows := slices.DeleteFunc(slices.Clone(c.Rows), func(row CountRow) bool { return isIPv6(row.Workload) != six })
		if len(rows) > 0 {
			all = append(all, (&Counts{Rows: rows}).table())
		}
	}
	return all
}

func (c *Counts) table() table {
	names := []string{}
	for _, row := range c.Rows {
		for _, e := range CountPlan(Fastbr{}).Contestants {
			if row.Instructions[e.Name()] > 0 && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	t := table{head: append([]string{"Guest instructions", "per"}, names...)}
	for _, row := range c.Rows {
		cells := []string{row.Title, row.Per}
		for _, name := range names {
			text := none
			if n := row.Instructions[name]; n > 0 {
				text = thousands(int(n))
			}
			cells = append(cells, text)
		}
		t.rows = append(t.rows, cells)
	}
	return t
}

// Text returns the counts for a terminal.
func (c *Counts) Text() string { return c.render(table.text) }

// render joins the tables.
func (c *Counts) render(as func(table) string) string {
	var texts []string
	for _, t := range c.tables() {
		texts = append(texts, as(t))
	}
	return strings.Join(texts, "\n")
}

const (
	beginCounts = "<!-- counts: rendered by make bench-count ACCEPT=1 -->\n"
	endCounts   = "<!-- /counts -->\n"
)

// RenderReadme puts the counts between their markers in the page at path. The
// error wraps ErrNoMarkers if the page has no markers, and os.ErrNotExist if
// there is no page.
func (c *Counts) RenderReadme(path, golden string) error {
	text := fmt.Sprintf("Linux %s, raw numbers in [%s](%s).\n\n%s", c.Kernel, golden, golden, c.render(table.markdown))
	return rewrite(path, beginCounts, endCounts, text)
}
