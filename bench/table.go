package bench

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// table is a header and rows of cells. It is printed on a terminal and rendered
// into README.md.
type table struct {
	head []string
	rows [][]string
}

// text aligns the columns and removes Markdown's emphasis.
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

// none is the cell for a missing value.
const none = "–"

// rates calls show with the results that measure a rate, by unit and family, in the order
// of the report.
func (r *Report) rates(show func(unit string, results []Result)) {
	type kind struct {
		unit string
		ipv6 bool
	}
	of := func(res Result) kind { return kind{res.Unit, isIPv6(res.Workload)} }
	var kinds []kind
	for _, res := range r.Results {
		if res.Unit != failures && !slices.Contains(kinds, of(res)) {
			kinds = append(kinds, of(res))
		}
	}
	for _, k := range kinds {
		show(k.unit, slices.DeleteFunc(slices.Clone(r.Results), func(res Result) bool { return of(res) != k }))
	}
}

// matrix returns a row for each result and a column for each contestant. It
// leaves out empty columns and rows.
func (r *Report) matrix(head string, results []Result, cell func(Result, string) string) table {
	names := r.names()
	cells := map[string]map[string]string{}
	for _, res := range results {
		cells[res.Workload] = map[string]string{}
		for _, name := range names {
			if text := cell(res, name); text != "" {
				cells[res.Workload][name] = text
			}
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return !slices.ContainsFunc(results, func(res Result) bool { return cells[res.Workload][name] != "" })
	})
	t := table{head: append([]string{head}, names...)}
	for _, res := range results {
		if len(cells[res.Workload]) == 0 {
			continue
		}
		row := []string{res.Title}
		for _, name := range names {
			row = append(row, orNone(cells[res.Workload][name]))
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// names returns the names of all contestants, baseline first.
func (r *Report) names() []string {
	var names []string
	for _, e := range r.Entrants {
		names = append(names, e.Name)
	}
	return names
}

// medians returns the table of the medians in one unit.
func (r *Report) medians(unit string, results []Result) table {
	head := unit
	if unit == micros {
		head += ", median (less is better)"
	}
	return r.matrix(head, results, func(res Result, name string) string { return res.median(name) })
}

// subjects returns the contestants with which the others are compared: those
// with a fast path, otherwise the baseline.
func (r *Report) subjects() []string {
	s := slices.DeleteFunc(r.names(), func(name string) bool { return !r.hasPaths(name) })
	if len(s) == 0 {
		return r.names()[:1]
	}
	return s
}

// ratios returns the table of one contestant's ratios to each other one.
func (r *Report) ratios(subject string, results []Result) table {
	t := r.matrix(subject+" / … (95 % CI)", results, func(res Result, name string) string {
		if name == subject {
			return ""
		}
		return ratioText(res.Samples[subject], res.Samples[name])
	})
	if len(t.head) == 1 {
		return table{}
	}
	return t
}

func ratioText(a, b []Sample) string {
	ratios := PairedRatios(a, b)
	if len(ratios) == 0 {
		return ""
	}
	return Bootstrap(ratios).String()
}

// manyFlows compares each workload of many flows with the same workload of one
// flow.
func (r *Report) manyFlows() table {
	return r.matrix("Many flows / one flow (95 % CI)", r.Results, func(res Result, name string) string {
		for _, one := range r.Results {
			if one.Workload == res.OneFlow {
				return ratioText(res.Samples[name], one.Samples[name])
			}
		}
		return ""
	})
}

// cpu returns the table of CPU time per unit.
func (r *Report) cpu(unit string, results []Result) table {
	return r.matrix("CPU s per "+per[unit].name, results, func(res Result, name string) string {
		v := column(res.Samples[name], r.cpuPerUnit)
		if len(v) == 0 {
			return ""
		}
		return fmt.Sprintf("%.3f", Median(v)*per[unit].times)
	})
}

// per names the unit of work of a rate, for CPU time.
var per = map[string]struct {
	name  string
	times float64
}{gbits: {"Gbit", 1}, mpps: {"million packets", 1}, connsPerSecond: {"1,000 connections", 1000}}

// proof shows the lowest share of packets on the fast path in any round.
func (r *Report) proof() table {
	return r.matrix("Fast path, worst round", r.Results, func(res Result, name string) string {
		// Opening connections is the kernel's work and proves nothing.
		share, ok := lowest(column(res.Samples[name], fastShare))
		if !ok || res.Unit == failures || res.Unit == connsPerSecond {
			return ""
		}
		return Percent(share)
	})
}

// lost shows the highest share of lost packets in any round.
func (r *Report) lost() table {
	return r.matrix("Lost, worst round", r.Results, func(res Result, name string) string {
		v := column(res.Samples[name], func(s Sample) (float64, bool) {
			if s.Lost == nil {
				return 0, false
			}
			return *s.Lost, true
		})
		if len(v) == 0 {
			return ""
		}
		return fmt.Sprintf("%.3f %%", 100*max(0, slices.Max(v)))
	})
}

// hasPaths reports whether a contestant counts a fast path.
func (r *Report) hasPaths(name string) bool {
	for _, res := range r.Results {
		if len(column(res.Samples[name], fastShare)) > 0 {
			return true
		}
	}
	return false
}

// retransmits shows them beside those that the receivers reported as spurious.
// The difference is segments that were lost, or whose report was lost.
func (r *Report) retransmits() table {
	return r.matrix("TCP segments per run: sent again / got twice", r.Results, func(res Result, name string) string {
		if res.Unit != gbits || len(res.Samples[name]) == 0 {
			return ""
		}
		again := column(res.Samples[name], func(s Sample) (float64, bool) { return float64(s.Retransmits), true })
		twice := column(res.Samples[name], func(s Sample) (float64, bool) { return float64(s.Spurious), true })
		return fmt.Sprintf("%.0f / %.0f", Median(again), Median(twice))
	})
}

// median returns a contestant's median, with the number of failed runs, or ""
// if it took no part.
func (res *Result) median(name string) string {
	samples := res.Samples[name]
	v := column(samples, value)
	cell := ""
	if len(v) > 0 {
		cell = number(Median(v))
	}
	if failed := len(samples) - len(v); failed > 0 {
		cell = strings.TrimSpace(cell + fmt.Sprintf(" (%d of %d runs failed)", failed, len(samples)))
	}
	return cell
}

// number formats a number with its significant digits.
func number(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// requests lists the workloads that count requests.
func (r *Report) requests() table {
	t := table{head: []string{"Workload", "Contestant", "Requests", "Failed", "p50", "p99", "p99.9", "Why"}}
	for _, res := range r.Results {
		if !res.countsRequests() {
			continue
		}
		for _, name := range r.names() {
			if len(res.Samples[name]) > 0 {
				t.rows = append(t.rows, res.failed(name))
			}
		}
	}
	return t
}

func (res *Result) countsRequests() bool {
	for _, samples := range res.Samples {
		for _, s := range samples {
			if s.Requests > 0 {
				return true
			}
		}
	}
	return res.Unit == failures
}

func (res *Result) failed(name string) []string {
	requests, failed, why := 0, 0, map[string]int{}
	var p50, p99, p999 []float64
	for _, s := range res.Samples[name] {
		if s.Error != "" {
			why["run failed: "+s.Error]++
			continue
		}
		requests += s.Requests
		p50, p99, p999 = append(p50, s.P50), append(p99, s.P99), append(p999, s.P999)
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
		millis(p50), millis(p99), millis(p999), strings.Join(causes, "; ")}
}

// millis returns the median of some milliseconds, or "–" if there are none.
func millis(v []float64) string {
	if m := Median(v); m > 0 {
		return fmt.Sprintf("%.3f ms", m)
	}
	return none
}

// Percent never rounds up to 100.
func Percent(share float64) string {
	return fmt.Sprintf("%.2f %%", float64(int(share*10000))/100)
}

// Text returns the report for a terminal.
func (r *Report) Text() string {
	var b strings.Builder
	r.tables(func(t table) { b.WriteString("\n" + t.text()) })
	return b.String()
}

func (r *Report) tables(show func(table)) {
	some := func(t table) {
		if len(t.rows) > 0 {
			show(t)
		}
	}
	r.rates(func(unit string, results []Result) {
		some(r.medians(unit, results))
		for _, subject := range r.subjects() {
			some(r.ratios(subject, results))
		}
		if _, ok := per[unit]; ok {
			some(r.cpu(unit, results))
		}
	})
	for _, t := range []table{r.manyFlows(), r.requests(), r.controlPlane(), r.proof(), r.lost(), r.retransmits()} {
		some(t)
	}
}
