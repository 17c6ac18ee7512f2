package ctl

import (
	"fmt"

	"github.com/fastbr/fastbr/ctl/link"
)

// Netns is an open network namespace, for commands that start in another one.
type Netns struct {
	ns *link.Netns
}

// OpenNetns opens a path, netns:NAME or pid:N. The error wraps link.ErrGone or
// link.ErrNotNetns.
func OpenNetns(target string) (*Netns, error) {
	ns, err := link.OpenTarget(target)
	if err != nil {
		return nil, err
	}
	return &Netns{ns}, nil
}

// Close gives the namespace up.
func (n *Netns) Close() { n.ns.Close() }

// Current reports whether the calling thread is in the namespace.
func (n *Netns) Current() bool {
	now, err := link.Current()
	if err != nil {
		return false
	}
	defer now.Close()
	return now.ID() == n.ns.ID()
}

// Enter moves the calling thread, which must be locked, into the namespace.
func (n *Netns) Enter() error { return n.ns.Enter() }

// RaiseLoopback raises lo in a namespace that gets no port.
func RaiseLoopback(target string) error {
	ns, err := link.OpenTarget(target)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := link.OpenIn(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	lo, err := inside.ByName("lo")
	if err != nil {
		return err
	}
	if err := inside.SetUp(lo.Index, true); err != nil {
		return fmt.Errorf("raising lo in %s: %w", target, err)
	}
	return nil
}
