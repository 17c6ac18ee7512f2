package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fastbr/fastbr/ctl/link"
)

// Detach unplugs a port, named by the container's name, its host end or its
// target; from one network, or with network "" from whichever it is. A port
// that is gone already is no error. Returns what was detached.
func (c *Controller) Detach(ctx context.Context, what, networkName string) (detached []string, err error) {
	match := func(n *network, p *port) bool { return p.Name == what || p.Port == what }
	if isTarget(what) {
		ns, err := link.OpenTarget(what)
		if err == nil {
			defer ns.Close()
			match = func(_ *network, p *port) bool { return p.Netns == ns.ID() }
		} else if errors.Is(err, link.ErrGone) || errors.Is(err, link.ErrNotNetns) {
			// Ports of a vanished namespace are forgotten by any command.
			match = func(*network, *port) bool { return false }
		} else {
			return nil, tagged(ErrInvalid, err.Error())
		}
	}
	err = c.mutate(ctx, func(op *operation) error {
		if networkName != "" {
			if _, err := op.upNetwork(networkName); err != nil && !errors.Is(err, ErrNotUp) {
				return err
			}
		}
		found := map[*port]*network{}
		for _, n := range op.st.Networks {
			for _, p := range n.Ports {
				if match(n, p) && (networkName == "" || n.Name == networkName) {
					found[p] = n
				}
			}
		}
		if len(found) > 1 && !isTarget(what) {
			return fmt.Errorf("several networks have a port %s: say which with --network", what)
		}
		for p, n := range found {
			if err := op.detachPort(n, p); err != nil {
				return err
			}
			detached = append(detached, p.Name)
		}
		return nil
	})
	return detached, err
}

func isTarget(s string) bool {
	return strings.ContainsRune(s, '/') || strings.HasPrefix(s, "netns:") || strings.HasPrefix(s, "pid:")
}

// detachBatch is how many ports are removed at a time: some, since the kernel
// waits for its readers once for all of them, and not too many, since it keeps
// others from changing devices meanwhile.
const detachBatch = 32

// detachPort undoes the steps of attach, wherever they stopped.
func (op *operation) detachPort(n *network, p *port) error {
	return op.detachPorts(n, []*port{p})
}

// detachPorts is detachPort for any number of ports. An error does not keep the
// other batches from being removed.
func (op *operation) detachPorts(n *network, ports []*port) error {
	begun := false
	for _, p := range ports {
		if !p.Pending {
			p.Pending, begun = true, true
		}
	}
	// Whoever finds the network pending detaches all of its ports anyway.
	if begun && !n.Pending {
		if err := op.save(); err != nil {
			return err
		}
	}
	var errs []error
	for batch := range slices.Chunk(ports, detachBatch) {
		errs = append(errs, op.runner.undo(op.portSteps(n, nil, batch...)))
	}
	return errors.Join(errs...)
}
