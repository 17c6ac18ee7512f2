package metrics

import (
	"bufio"
	"fmt"
	"io"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// Write prints one exposition in the text format. It leaves out the figures of
// the process, which is about to exit.
func Write(w io.Writer, g *Gatherer) error {
	b := bufio.NewWriter(w)
	var one family
	err := g.each(one.reset, func(f *dto.MetricFamily) error {
		if _, err := expfmt.MetricFamilyToText(b, f); err != nil {
			return fmt.Errorf("writing %s: %w", f.GetName(), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.Flush()
}
