package ctl

import (
	"errors"

	"github.com/fastbr/fastbr/ctl/link"
)

// accelerator makes packets cost less where a device can take part in it. Whatever
// it cannot do costs speed and nothing else, so that no container is refused for it.
type accelerator interface {
	// name is that of its step in `up`.
	name() string
	// sync makes uplinks and ports what the settings ask for. With quiet, an uplink
	// that cannot be so is a note instead of an error.
	sync(quiet bool) error
	// prepare is for a new port, before its ends are up.
	prepare(n *network, p *port, inside end)
	// ready is for a port that has come up on its bridge.
	ready(n *network, p *port) error
	// undo gives up what is not a port's: ports go with their network.
	undo() error
	// findings are what `check` says.
	findings() ([]FeatureView, error)
}

// end is the container's end of a new port.
type end struct {
	ns    *link.Netns // nil: the host's
	conn  *link.Conn  // into ns
	index int
	name  string
}

// accelerators are all of them, in the order in which they are synced.
type accelerators []accelerator

func (as accelerators) sync(quiet bool) error {
	var errs []error
	for _, a := range as {
		errs = append(errs, a.sync(quiet))
	}
	return errors.Join(errs...)
}

// prepare tells every accelerator of a new port.
func (as accelerators) prepare(n *network, p *port, inside end) {
	for _, a := range as {
		a.prepare(n, p, inside)
	}
}

// ready tells every accelerator of a port that is up.
func (as accelerators) ready(n *network, p *port) error {
	for _, a := range as {
		if err := a.ready(n, p); err != nil {
			return err
		}
	}
	return nil
}
