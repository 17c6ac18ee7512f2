package metrics

import (
	"strings"

	"github.com/fastbr/fastbr/ctl"
	dto "github.com/prometheus/client_model/go"
)

// family is a metric family that grows to a number of samples known before: a
// handful of allocations for all of them, where a scrape may have 20,000.
type family struct {
	metric   Metric
	samples  []dto.Metric
	counters []dto.Counter
	values   []float64
	labels   []*dto.LabelPair
}

func newFamily(m Metric, samples int) *family {
	return &family{
		metric:   m,
		samples:  make([]dto.Metric, 0, samples),
		counters: make([]dto.Counter, 0, samples),
		values:   make([]float64, 0, samples),
		labels:   make([]*dto.LabelPair, 0, samples*len(m.Labels)),
	}
}

// add adds a sample with the labels of the metric, in their order.
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
	samples := make([]*dto.Metric, len(f.samples))
	for i := range f.samples {
		samples[i] = &f.samples[i]
	}
	return &dto.MetricFamily{Name: &f.metric.Name, Help: &f.metric.Help, Type: &f.metric.Type, Metric: samples}
}

// single is a family of one sample without labels.
func single(m Metric, n uint64) *dto.MetricFamily {
	f := newFamily(m, 1)
	f.add(n)
	return f.done()
}

// probes says how hard it is to find a free external port. Those that were not
// found count in the sum with the greatest number of looks.
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

// pair is a label. A value that is not UTF-8 would make the whole scrape fail.
func pair(name, value string) *dto.LabelPair {
	value = strings.ToValidUTF8(value, "\uFFFD")
	return &dto.LabelPair{Name: &name, Value: &value}
}
