package metrics

import (
	"bufio"
	"io"
	"strconv"
	"strings"
)

// exposition writes metrics in Prometheus' text format, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats), one family after the
// other. A library that keeps every sample until it has sorted all of them would
// need ten times the memory and time for a host with a thousand ports, in a
// process that starts for each scrape.
type exposition struct {
	w    *bufio.Writer // keeps the first error
	name string        // of the family
}

// writeBuffer is how much is written at a time, in bytes.
const writeBuffer = 32 << 10

func newExposition(w io.Writer) *exposition {
	return &exposition{w: bufio.NewWriterSize(w, writeBuffer)}
}

// family begins one; its samples follow.
func (e *exposition) family(m Metric) {
	e.name = m.Name
	for _, part := range []string{"# HELP ", m.Name, " ", helpText.Replace(m.Help), "\n# TYPE ", m.Name, " ", string(m.Kind), "\n"} {
		e.w.WriteString(part)
	}
}

// sample writes one of the family. The labels are what labelSet made, in pieces
// that come one after the other.
func (e *exposition) sample(value uint64, labels ...string) {
	e.series("", labels)
	b := strconv.AppendUint(e.w.AvailableBuffer(), value, 10)
	e.w.Write(append(b, '\n'))
}

// float is sample for a value that is no count.
func (e *exposition) float(value float64) {
	e.series("", nil)
	b := strconv.AppendFloat(e.w.AvailableBuffer(), value, 'f', -1, 64)
	e.w.Write(append(b, '\n'))
}

// histogram writes the only one of the family: how many values were 1, 2 …, and
// how many were above, which count in the sum with the greatest.
func (e *exposition) histogram(counts []uint64, above uint64) {
	var count, sum uint64
	line := func(suffix string, value uint64, labels ...string) {
		e.series(suffix, labels)
		e.w.WriteString(strconv.FormatUint(value, 10) + "\n")
	}
	bucket := func(le string) { line("_bucket", count, labelSet("le", le)) }
	for i, n := range counts {
		count, sum = count+n, sum+uint64(i+1)*n
		bucket(strconv.Itoa(i + 1))
	}
	count, sum = count+above, sum+uint64(len(counts))*above
	bucket("+Inf")
	line("_sum", sum)
	line("_count", count)
}

// series writes what comes before a value.
func (e *exposition) series(suffix string, labels []string) {
	e.w.WriteString(e.name)
	e.w.WriteString(suffix)
	for _, l := range labels {
		e.w.WriteString(l)
	}
	e.w.WriteByte(' ')
}

// flush writes what is left. The error is the first there was.
func (e *exposition) flush() error { return e.w.Flush() }

// What must not stand in a help text, and in the value of a label, as it is.
var (
	helpText   = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// labelSet is {name="value",...} of alternating names and values.
func labelSet(pairs ...string) string { return "{" + labelPairs(pairs...) + "}" }

// labelPairs is labelSet without the braces.
func labelPairs(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i] + `="` + labelValue.Replace(strings.ToValidUTF8(pairs[i+1], "\uFFFD")) + `"`)
	}
	return b.String()
}
