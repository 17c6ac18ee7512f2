package bench

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

// chartsDir is beside README.md.
const chartsDir = "charts"

// The chart's geometry, in pixels. A page never enlarges a chart.
const (
	chartWidth  = 800
	chartTop    = 52 // title and unit
	chartLimit  = 22 // the label of the limit's line, below the bars
	barHeight   = 20
	barStep     = 28
	barLeft     = 180 // the names are left of the bars
	barLongest  = 530
	barRounding = 3
)

//go:embed chart.svg.tmpl
var chartText string

var chartTemplate = template.Must(template.New("chart").Parse(chartText))

// limits are contestants that are not products but show the most that a machine
// can do. A chart shows the first one that ran as a line.
var limits = []string{"floor", "direct", "xdp-drop"}

// chart is one workload's medians as chart.svg.tmpl draws them.
type chart struct {
	Title, Unit             string
	Width, Height           int
	Left, Top, Bar, Rounded int
	Bars                    []bar
	Limit                   *bar
	LimitTop, LimitBottom   int
}

// bar is one contestant's bar. Positions and lengths are in pixels.
type bar struct {
	Name, Class, Value string
	Y, Middle, Length  int
	End, After         int // end of the bar, and position of its value

	median float64
}

// Charts writes an SVG file into dir for each workload that at least two
// contestants ran. It returns their paths. It makes dir if it does not exist,
// and leaves other files alone.
func (r *Report) Charts(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the charts: %w", err)
	}
	var paths []string
	for _, res := range r.charted() {
		var svg strings.Builder
		if err := chartTemplate.Execute(&svg, r.chart(res)); err != nil {
			return paths, fmt.Errorf("drawing the chart of %s: %w", res.Workload, err)
		}
		path := filepath.Join(dir, chartName(res))
		if err := os.WriteFile(path, []byte(svg.String()), 0o644); err != nil {
			return paths, fmt.Errorf("writing a chart: %w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// charted returns the results to chart, in the order of the report.
func (r *Report) charted() []Result {
	return slices.DeleteFunc(slices.Clone(r.Results), func(res Result) bool {
		return res.Unit == failures || len(r.bars(res)) < 2
	})
}

func chartName(res Result) string { return res.Workload + ".svg" }

// bars returns the medians of all contestants that ran, the best first.
func (r *Report) bars(res Result) []bar {
	var bars []bar
	for _, name := range r.names() {
		v := column(res.Samples[name], value)
		if len(v) == 0 {
			continue
		}
		b := bar{Name: name, Class: "other", Value: res.median(name), median: Median(v)}
		if name == "fastbr" {
			b.Class = "fastbr"
		} else if r.hasPaths(name) {
			b.Class = "variant"
		}
		bars = append(bars, b)
	}
	slices.SortStableFunc(bars, func(a, b bar) int {
		better := a.median > b.median
		if res.Unit == micros {
			better = a.median < b.median
		}
		if better {
			return -1
		}
		return 1
	})
	return bars
}

// chart lays out a result's bars, the best on top, and the limit's line.
func (r *Report) chart(res Result) chart {
	c := chart{Title: res.Title, Unit: res.Unit, Width: chartWidth,
		Left: barLeft, Top: chartTop, Bar: barHeight, Rounded: barRounding}
	if res.Unit == micros {
		c.Unit += ", less is better"
	}
	c.Bars = r.bars(res)
	longest := slices.MaxFunc(c.Bars, func(a, b bar) int { return int(a.median*1000) - int(b.median*1000) }).median
	for _, name := range limits {
		at := slices.IndexFunc(c.Bars, func(b bar) bool { return b.Name == name })
		if at >= 0 {
			limit := c.Bars[at]
			c.Limit, c.Bars = &limit, slices.Delete(c.Bars, at, at+1)
			break
		}
	}
	place := func(b *bar) {
		b.Length = max(1, int(b.median/longest*barLongest))
		b.End = barLeft + b.Length
		b.After = b.End + 8
	}
	for i := range c.Bars {
		b := &c.Bars[i]
		b.Y = chartTop + i*barStep
		b.Middle = b.Y + barHeight/2
		place(b)
		// A value beside its bar must not overlap the line.
		if c.Limit != nil {
			limit := barLeft + int(c.Limit.median/longest*barLongest)
			if b.End < limit && limit < b.After+len(b.Value)*9 {
				b.After = limit + 8
			}
		}
	}
	c.Height = chartTop + len(c.Bars)*barStep + 6
	if c.Limit != nil {
		place(c.Limit)
		c.LimitTop, c.LimitBottom = chartTop-4, c.Height
		c.Height += chartLimit
	}
	return c
}
