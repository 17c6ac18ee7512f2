package bench

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Interval is a median with its 95 % confidence interval.
type Interval struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Values int     `json:"values"` // number of values
}

// Median returns the median of some numbers, or 0 if there are none.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// resamples of the bootstrap. With so many, another seed no longer changes the
// second digit of the interval's ends.
const resamples = 10000

// Bootstrap returns the median with the percentile bootstrap's 95 % interval.
// It is deterministic. With fewer than about five values the interval is hardly
// more than their range.
func Bootstrap(v []float64) Interval {
	if len(v) == 0 {
		return Interval{}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	medians := make([]float64, resamples)
	draw := make([]float64, len(v))
	for i := range medians {
		for j := range draw {
			draw[j] = v[rnd.IntN(len(v))]
		}
		medians[i] = Median(draw)
	}
	slices.Sort(medians)
	const tail = resamples * 25 / 1000
	return Interval{Median: Median(v), Low: medians[tail], High: medians[resamples-1-tail], Values: len(v)}
}

// minValues is the least number of values for which an interval is shown.
const minValues = 3

// String returns the median and, if there are enough values, the interval.
func (i Interval) String() string {
	if i.Values < minValues {
		return fmt.Sprintf("**%.2f** (too few rounds)", i.Median)
	}
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", i.Median, i.Low, i.High)
}

// PairedRatios divides a by b round by round. It leaves out rounds in which
// either run failed, gave nothing or did not take place.
func PairedRatios(a, b []Sample) []float64 {
	rounds := map[int]Sample{}
	for i, s := range b {
		rounds[s.round(i)] = s
	}
	var r []float64
	for i, s := range a {
		if other, ok := rounds[s.round(i)]; ok && s.Error == "" && other.Error == "" && s.Value > 0 && other.Value > 0 {
			r = append(r, s.Value/other.Value)
		}
	}
	return r
}

// round returns the round of the sample with this index. In older files the
// index counts rounds.
func (s Sample) round(index int) int {
	if s.Round == 0 {
		return index + 1
	}
	return s.Round
}
