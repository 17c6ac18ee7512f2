package metrics

import (
	"bufio"
	"fmt"
	"io"

	"github.com/prometheus/common/expfmt"
)

// Write prints one exposition in the text format. It leaves out the figures of
// the process, which is about to exit.
func Write(w io.Writer, g *Gatherer) error {
	families, err := g.Gather()
	if err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(b, f); err != nil {
			return fmt.Errorf("writing %s: %w", f.GetName(), err)
		}
	}
	return b.Flush()
}
