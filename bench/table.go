package bench

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// table is a head and rows of cells; the same one is printed on a terminal and
// rendered into README.md.
type table struct {
	head []string
	rows [][]string
}

// text aligns the columns; Markdown's emphasis goes.
func (t table) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(w, strings.ReplaceAll(strings.Join(row, "\t"), "**", ""))
	}
	_ = w.Flush() // a strings.Builder does not fail
	return b.String()
}

func (t table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, row := range t.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}

// none stands where there is nothing to show.
const none = "–"

// throughput compares the workloads that measure a rate, baseline first.
func (r *Report) throughput() table {
	base := r.Entrants[0].Name
	t := table{head: []string{"Workload", base}}
	for _, e := range r.Entrants[1:] {
		t.head = append(t.head, e.Name, e.Name+" / "+base+" (95 % CI)")
		if r.hasPaths(e.Name) {
			t.head = append(t.head, "fast path, worst round")
		}
	}
	t.head = append(t.head, "CPU s per Gbit: "+base)
	for _, e := range r.Entrants[1:] {
		t.head = append(t.head, e.Name)
	}
	for _, res := range r.Results {
		if res.Unit == failures {
			continue
		}
		row := []string{res.Title, res.median(base)}
		for _, e := range r.Entrants[1:] {
			ratio := none
			if i, ok := res.Ratios[e.Name]; ok {
				ratio = i.String()
			}
			row = append(row, res.median(e.Name), ratio)
			if r.hasPaths(e.Name) {
				fast := none
				if share, ok := lowest(column(res.Samples[e.Name], fastShare)); ok {
					fast = Percent(share)
				}
				row = append(row, fast)
			}
		}
		for _, e := range r.Entrants {
			cell := none
			if v := column(res.Samples[e.Name], r.cpuPerGbit); len(v) > 0 {
				cell = fmt.Sprintf("%.3f", Median(v))
			}
			row = append(row, cell)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// hasPaths tells whether a contestant has a fast path to count.
func (r *Report) hasPaths(name string) bool {
	for _, res := range r.Results {
		if len(column(res.Samples[name], fastShare)) > 0 {
			return true
		}
	}
	return false
}

// retransmits shows them beside what the receivers say was spurious. What the
// one exceeds the other by was lost, or the report about it was.
func (r *Report) retransmits() table {
	t := table{head: []string{"TCP segments per run: sent again / got twice"}}
	for _, e := range r.Entrants {
		t.head = append(t.head, e.Name)
	}
	for _, res := range r.Results {
		if res.Unit == failures {
			continue
		}
		row := []string{res.Title}
		for _, e := range r.Entrants {
			again := column(res.Samples[e.Name], func(s Sample) (float64, bool) { return float64(s.Retransmits), true })
			twice := column(res.Samples[e.Name], func(s Sample) (float64, bool) { return float64(s.Spurious), true })
			row = append(row, fmt.Sprintf("%.0f / %.0f", Median(again), Median(twice)))
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// median of a contestant in the workload's unit, with the number of runs that failed.
func (res *Result) median(name string) string {
	samples := res.Samples[name]
	v := column(samples, value)
	cell := none
	if len(v) > 0 {
		cell = fmt.Sprintf("%.2f %s", Median(v), res.Unit)
	}
	if failed := len(samples) - len(v); failed > 0 {
		cell += fmt.Sprintf(" (%d of %d runs failed)", failed, len(samples))
	}
	return cell
}

// connections compares the workloads that count failures.
func (r *Report) connections() table {
	t := table{head: []string{"Workload", "Contestant", "Requests", "Failed", "p50", "p99", "Why"}}
	for _, res := range r.Results {
		if res.Unit != failures {
			continue
		}
		for _, e := range r.Entrants {
			t.rows = append(t.rows, res.failed(e.Name))
		}
	}
	return t
}

func (res *Result) failed(name string) []string {
	requests, failed, why := 0, 0, map[string]int{}
	var p50, p99 []float64
	for _, s := range res.Samples[name] {
		if s.Error != "" {
			why["run failed: "+s.Error]++
			continue
		}
		requests += s.Requests
		p50, p99 = append(p50, s.P50), append(p99, s.P99)
		for cause, n := range s.Failures {
			failed += n
			why[cause] += n
		}
	}
	var causes []string
	for cause, n := range why {
		causes = append(causes, fmt.Sprintf("%s: %d", cause, n))
	}
	slices.Sort(causes)
	if causes == nil {
		causes = []string{none}
	}
	return []string{res.Title, name, fmt.Sprint(requests), fmt.Sprint(failed),
		fmt.Sprintf("%.2f ms", Median(p50)), fmt.Sprintf("%.2f ms", Median(p99)), strings.Join(causes, "; ")}
}

// Percent never rounds up to 100.
func Percent(share float64) string {
	return fmt.Sprintf("%.2f %%", float64(int(share*10000))/100)
}

// Text is the report for a terminal.
func (r *Report) Text() string {
	var b strings.Builder
	r.tables(func(t table) { b.WriteString("\n" + t.text()) })
	return b.String()
}

func (r *Report) tables(show func(table)) {
	for _, t := range []table{r.throughput(), r.retransmits(), r.connections()} {
		if len(t.rows) > 0 {
			show(t)
		}
	}
}
