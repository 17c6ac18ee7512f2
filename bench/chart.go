package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-analyze/charts"
)

// chartsDir is beside README.md.
const chartsDir = "charts"

const (
	chartWidth = 1000
	// barHeight of one contestant in one workload, in pixels.
	barHeight   = 16
	chartMargin = 140
)

// Charts writes one SVG for each unit of the report into dir, which is made if
// it is missing, and returns their paths. Charts of units that the report does
// not have stay as they are.
func (r *Report) Charts(dir string) (paths []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the charts: %w", err)
	}
	r.rates(func(unit string, results []Result) {
		if err != nil {
			return
		}
		var svg []byte
		if svg, err = r.chart(unit, results); err != nil {
			err = fmt.Errorf("drawing the chart of %s: %w", unit, err)
			return
		}
		path := filepath.Join(dir, chartName(unit))
		if err = os.WriteFile(path, svg, 0o644); err != nil {
			err = fmt.Errorf("writing a chart: %w", err)
			return
		}
		paths = append(paths, path)
	})
	return paths, err
}

// chartName of a unit: "gbit-s.svg".
func chartName(unit string) string {
	name := strings.NewReplacer("/", "-", "µ", "u").Replace(strings.ToLower(unit))
	return name + ".svg"
}

// chart draws the medians: a group of bars for each workload, one for each contestant.
func (r *Report) chart(unit string, results []Result) ([]byte, error) {
	var names, titles []string
	var data [][]float64
	for _, res := range results {
		titles = append(titles, res.Title)
	}
	for _, name := range r.names() {
		var values []float64
		some := false
		for _, res := range results {
			v := column(res.Samples[name], value)
			if len(v) == 0 {
				values = append(values, charts.GetNullValue())
				continue
			}
			some = true
			values = append(values, Median(v))
		}
		if some {
			names, data = append(names, name), append(data, values)
		}
	}
	o := charts.NewBarChartOptionWithData(data)
	o.Horizontal = true
	o.Title.Text = unit + ", median of the rounds"
	o.CategoryAxis.Labels = titles
	o.Legend.SeriesNames = names
	o.Legend.Offset = charts.OffsetStr{Top: "30"}
	for i := range o.SeriesList {
		o.SeriesList[i].Label = charts.SeriesLabel{Show: charts.Ptr(true), ValueFormatter: number}
	}
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG,
		Width: chartWidth, Height: chartMargin + barHeight*len(titles)*(len(names)+1)})
	if err := p.BarChart(o); err != nil {
		return nil, err
	}
	return p.Bytes()
}
