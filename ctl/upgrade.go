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
	return c.mutate(ctx, func(s *session) error {
		if s.dp == nil {
			return nil
		}
		return s.upgrade()
	})
}

// upgrade makes the pinned datapath this build's, with everything in it.
func (s *session) upgrade() error {
	if s.dp != nil {
		if err := s.dp.Close(); err != nil {
			return fmt.Errorf("closing the datapath: %w", err)
		}
		s.dp = nil
	}
	done, err := s.opts.planes.upgrade(s.pins, s.runner.passed, s.retell)
	s.dp = nil // the upgrade's own
	if err != nil {
		return s.shortOfMemory(fmt.Errorf("upgrading the datapath: %w", err))
	}
	if s.dp, err = s.opts.planes.open(s.pins); err != nil {
		return fmt.Errorf("opening the datapath: %w", err)
	}
	s.stale = nil
	if !done {
		return nil
	}
	s.st.Features = s.kernelFindings()
	return s.save()
}

// retell tells a datapath that is being upgraded what the state says, for what only
// the new layout has room for. What has vanished meanwhile is recover's.
func (s *session) retell(dp plane) error {
	s.dp = dp
	there, err := s.hostQueues()
	if err != nil {
		return err
	}
	for _, name := range s.st.networkNames() {
		n := s.st.Networks[name]
		if _, ok := there[n.Index]; !ok || n.Pending {
			continue
		}
		if err := s.setNetwork(n); err != nil {
			return err
		}
		for _, p := range n.sortedPorts() {
			if _, ok := there[p.Index]; !ok || p.Pending {
				continue
			}
			if err := errors.Join(s.portPrograms(n, p), s.setPublications(p, p.Publications)); err != nil {
				return err
			}
		}
	}
	for _, u := range s.st.Uplinks {
		if _, ok := there[u.Index]; !ok {
			continue
		}
		if err := s.attachUplink(u); err != nil {
			return err
		}
	}
	return nil
}
