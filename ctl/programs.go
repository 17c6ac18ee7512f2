package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/datapath"
)

// programs loads, upgrades, configures and removes the instance's datapath.
type programs struct{ op *operation }

// create makes the instance's datapath unless there is one.
func (pr programs) create() error {
	if pr.op.dp != nil {
		return nil
	}
	// What a killed create left is not worth repairing.
	if err := pr.op.opts.planes.remove(pr.op.pins); err != nil {
		return fmt.Errorf("clearing %s: %w", pr.op.pins, err)
	}
	loadModules()
	set := pr.op.st.Settings
	dp, err := pr.op.opts.planes.create(pr.op.pins, datapath.Config{FlowsMax: set.FlowsMax, NATFirst: set.NATFirst, NATLast: set.NATLast})
	if err != nil {
		return pr.shortOfMemory(fmt.Errorf("creating the datapath: %w", err))
	}
	pr.op.dp = dp
	if cfg, err := dp.Config(); err == nil && set.FlowsMax == 0 {
		pr.op.st.Settings.FlowsMax = cfg.FlowsMax
	}
	pr.op.st.Features = pr.op.checks.kernel()
	return nil
}

// loadModules loads the kernel's modules whose types and functions the programs use: one
// that is not loaded has none.
func loadModules() { _ = exec.Command("modprobe", "-q", "-a", "bridge", "nf_nat").Run() }

// shortOfMemory says what can be done about a lack of memory for the maps, if that is
// what err is.
func (pr programs) shortOfMemory(err error) error {
	if !errors.Is(err, unix.ENOMEM) {
		return err
	}
	flows := pr.op.st.Settings.FlowsMax
	if flows == 0 {
		flows = datapath.DefaultFlowsMax
	}
	return fmt.Errorf("no memory for the maps: %d flows take some %d MB, all else %d MB: raise the memory limit that applies here, or ask for fewer with --nat-flows (%w)",
		flows, (uint64(flows)*datapath.SessionBytes)>>20, datapath.RestBytes>>20, err)
}

func (pr programs) remove() error {
	if pr.op.dp != nil {
		if err := pr.op.dp.Close(); err != nil {
			return fmt.Errorf("closing the datapath: %w", err)
		}
		pr.op.dp = nil
	}
	if err := pr.op.opts.planes.remove(pr.op.pins); err != nil {
		return fmt.Errorf("removing the datapath: %w", err)
	}
	return nil
}

// Upgrade puts this build's programs in the place of an older one's, and nothing
// else. It does nothing when nothing is up, or a newer build has pinned it.
func (c *Controller) Upgrade(ctx context.Context) error {
	if _, err := os.Stat(c.instance.statePath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return c.instance.mutate(ctx, func(op *operation) error {
		if op.dp == nil {
			return nil
		}
		return op.programs.upgrade()
	})
}

// upgrade makes the pinned datapath this build's, with everything in it.
func (pr programs) upgrade() error {
	if pr.op.dp != nil {
		if err := pr.op.dp.Close(); err != nil {
			return fmt.Errorf("closing the datapath: %w", err)
		}
		pr.op.dp = nil
	}
	loadModules()
	done, err := pr.op.opts.planes.upgrade(pr.op.pins, pr.op.runner.passed, pr.retell)
	pr.op.dp = nil // the upgrade's own
	if err != nil {
		return pr.shortOfMemory(fmt.Errorf("upgrading the datapath: %w", err))
	}
	if pr.op.dp, err = pr.op.opts.planes.open(pr.op.pins); err != nil {
		return fmt.Errorf("opening the datapath: %w", err)
	}
	pr.op.stale = nil
	if !done {
		return nil
	}
	pr.op.st.Features = pr.op.checks.kernel()
	return pr.op.save()
}

// retell tells a datapath that is being upgraded what the state says, for what only
// the new layout has room for. What has vanished meanwhile is recover's.
func (pr programs) retell(dp plane) error {
	pr.op.dp = dp
	there, err := pr.op.host.shaped()
	if err != nil {
		return err
	}
	for _, name := range pr.op.st.networkNames() {
		n := pr.op.st.Networks[name]
		if _, ok := there[n.Index]; !ok || n.Pending {
			continue
		}
		if err := pr.op.networks.tell(n); err != nil {
			return err
		}
		for _, p := range n.sortedPorts() {
			if _, ok := there[p.Index]; !ok || p.Pending {
				continue
			}
			if err := errors.Join(pr.op.ports.tell(n, p), pr.op.publications.set(p, p.Publications)); err != nil {
				return err
			}
		}
	}
	for _, u := range pr.op.st.Uplinks {
		if _, ok := there[u.Index]; !ok {
			continue
		}
		if err := pr.op.uplinks.attach(u); err != nil {
			return err
		}
	}
	return nil
}

// setNATRange moves the datapath's NAT range to the one of the settings.
func (pr programs) setNATRange() error {
	now, err := pr.op.dp.Config()
	if err != nil {
		return fmt.Errorf("reading the NAT range: %w", err)
	}
	first, last := pr.op.st.Settings.NATFirst, pr.op.st.Settings.NATLast
	if now.NATFirst == first && now.NATLast == last {
		return nil
	}
	if err := pr.op.hostconf.Reserve(pr.op.st.reserved()); err != nil { // the kernel gives none of them out any more
		return err
	}
	if err := pr.op.dp.SetNATRange(first, last); err != nil {
		return fmt.Errorf("moving the NAT range: %w", err)
	}
	return nil
}

// setSpeed tells the datapath how much of the fast path is wanted.
func (pr programs) setSpeed() error {
	if now, err := pr.op.dp.Lease(); err != nil || now != pr.op.st.Settings.Lease { // setting it revokes
		if err := pr.op.dp.SetLease(pr.op.st.Settings.Lease); err != nil {
			return fmt.Errorf("setting the lease: %w", err)
		}
	}
	return nil
}
