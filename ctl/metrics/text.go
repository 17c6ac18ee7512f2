package metrics

import (
	"context"
	"io"
)

// Write prints one exposition in the text format: what a scrape would get,
// without the figures of the process, which would be those of a command that
// is about to exit.
func Write(ctx context.Context, w io.Writer, c *Collector) error {
	snap, err := c.snapshot(ctx)
	if err != nil {
		return err
	}
	e := newExposition(w)
	c.show(e, snap)
	return e.flush()
}
