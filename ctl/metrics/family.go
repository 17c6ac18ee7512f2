package metrics

import (
	"slices"
	"strings"

	"github.com/fastbr/fastbr/ctl"
	dto "github.com/prometheus/client_model/go"
)

// family is a metric family with room for a known number of samples. It takes a
// handful of allocations for all of them; a scrape may have 20,000 samples.
type family struct {
	metric   Metric
	samples  []dto.Metric
	shown    []*dto.Metric // the same
	counters []dto.Counter
	values   []float64
	labels   []*dto.LabelPair
}

// reset makes f the empty family of m with room for so many samples. It reuses
// the memory of the previous samples, which become invalid.
func (f *family) reset(m Metric, samples int) *family {
	f.metric = m
	f.samples = slices.Grow(f.samples[:0], samples)
	f.shown = slices.Grow(f.shown[:0], samples)
	f.counters = slices.Grow(f.counters[:0], samples)
	f.values = slices.Grow(f.values[:0], samples)
	f.labels = slices.Grow(f.labels[:0], samples*len(m.Labels))
	return f
}

// shelf keeps the memory of a scrape for the next one. A thousand ports take 6
// MB, and getting them from the kernel again takes as long as filling them.
type shelf map[string]*family

func (s shelf) family(m Metric, samples int) *family {
	if s[m.Name] == nil {
		s[m.Name] = &family{}
	}
	return s[m.Name].reset(m, samples)
}

// add appends a sample. labels are in the metric's order.
func (f *family) add(n uint64, labels ...*dto.LabelPair) {
	i, first := len(f.samples), len(f.labels)
	f.values = append(f.values, float64(n))
	f.labels = append(f.labels, labels...)
	f.samples = append(f.samples, dto.Metric{Label: f.labels[first:]})
	if f.metric.Type == dto.MetricType_GAUGE {
		f.samples[i].Gauge = &dto.Gauge{Value: &f.values[i]}
		return
	}
	f.counters = append(f.counters, dto.Counter{Value: &f.values[i]})
	f.samples[i].Counter = &f.counters[i]
}

func (f *family) done() *dto.MetricFamily {
	for i := range f.samples {
		f.shown = append(f.shown, &f.samples[i])
	}
	return &dto.MetricFamily{Name: &f.metric.Name, Help: &f.metric.Help, Type: &f.metric.Type, Metric: f.shown}
}

// single returns a family of one sample without labels.
func single(m Metric, n uint64) *dto.MetricFamily {
	f := (&family{}).reset(m, 1)
	f.add(n)
	return f.done()
}

// probes returns the histogram of the external ports looked at per allocation.
// An allocation that found none counts in the sum with the number of looks of
// the last bucket.
func probes(m Metric, n ctl.NATView) *dto.MetricFamily {
	h := &dto.Histogram{}
	var count, sum uint64
	for i, tries := range n.PortTries {
		count, sum = count+tries, sum+uint64(i+1)*tries
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: new(float64(i + 1)), CumulativeCount: new(count)})
	}
	count += n.PortsNotFound
	sum += uint64(len(n.PortTries)) * n.PortsNotFound
	h.SampleCount, h.SampleSum = &count, new(float64(sum))
	return &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: &m.Type, Metric: []*dto.Metric{{Histogram: h}}}
}

// pair returns a label. Invalid UTF-8 in a value would make the whole scrape
// fail.
func pair(name, value string) *dto.LabelPair {
	value = strings.ToValidUTF8(value, "\uFFFD")
	return &dto.LabelPair{Name: &name, Value: &value}
}
