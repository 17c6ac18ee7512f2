package metrics

import (
	"strings"

	"github.com/fastbr/fastbr/ctl"
	dto "github.com/prometheus/client_model/go"
)

// family is a metric family in the making.
type family struct {
	metric  Metric
	samples []*dto.Metric
}

// add appends a sample. labels are in the metric's order.
func (f *family) add(n uint64, labels ...*dto.LabelPair) {
	sample, value := &dto.Metric{Label: labels}, new(float64(n))
	if f.metric.Type == dto.MetricType_GAUGE {
		sample.Gauge = &dto.Gauge{Value: value}
	} else {
		sample.Counter = &dto.Counter{Value: value}
	}
	f.samples = append(f.samples, sample)
}

func (f *family) done() *dto.MetricFamily {
	return &dto.MetricFamily{Name: &f.metric.Name, Help: &f.metric.Help, Type: &f.metric.Type, Metric: f.samples}
}

// single returns a family of one sample without labels.
func single(m Metric, n uint64) *dto.MetricFamily {
	f := family{metric: m}
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
