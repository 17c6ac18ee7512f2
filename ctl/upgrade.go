package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Upgrade puts this build's programs in the place of an older one's, and nothing
// else. It does nothing when nothing is up, or a newer build has pinned it.
func (c *Controller) Upgrade(ctx context.Context) error {
	if _, err := os.Stat(c.statePath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return c.mutate(ctx, func(op *operation) error {
		if op.dp == nil {
			return nil
		}
		return op.upgrade()
	})
}

// upgrade makes the pinned datapath this build's, with everything in it.
func (op *operation) upgrade() error {
	if op.dp != nil {
		if err := op.dp.Close(); err != nil {
			return fmt.Errorf("closing the datapath: %w", err)
		}
		op.dp = nil
	}
	done, err := op.opts.planes.upgrade(op.pins, op.runner.passed, op.retell)
	op.dp = nil // the upgrade's own
	if err != nil {
		return op.shortOfMemory(fmt.Errorf("upgrading the datapath: %w", err))
	}
	if op.dp, err = op.opts.planes.open(op.pins); err != nil {
		return fmt.Errorf("opening the datapath: %w", err)
	}
	op.stale = nil
	if !done {
		return nil
	}
	op.st.Features = op.kernelFindings()
	return op.save()
}

// retell tells a datapath that is being upgraded what the state says, for what only
// the new layout has room for. What has vanished meanwhile is recover's.
func (op *operation) retell(dp plane) error {
	op.dp = dp
	there, err := op.host.shaped()
	if err != nil {
		return err
	}
	for _, name := range op.st.networkNames() {
		n := op.st.Networks[name]
		if _, ok := there[n.Index]; !ok || n.Pending {
			continue
		}
		if err := op.networks.tell(n); err != nil {
			return err
		}
		for _, p := range n.sortedPorts() {
			if _, ok := there[p.Index]; !ok || p.Pending {
				continue
			}
			if err := errors.Join(op.portPrograms(n, p), op.setPublications(p, p.Publications)); err != nil {
				return err
			}
		}
	}
	for _, u := range op.st.Uplinks {
		if _, ok := there[u.Index]; !ok {
			continue
		}
		if err := op.uplinks.attach(u); err != nil {
			return err
		}
	}
	return nil
}
