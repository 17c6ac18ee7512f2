package ctl

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestHealthyWithoutOnesOwnDevice: a container may delete its device, or end
// with its namespace; the others are served, and new ones are taken.
func TestHealthyWithoutOnesOwnDevice(t *testing.T) {
	h := newHost(t)
	h.upEngine(t)
	lost, other := testutil.NewNetns(t), testutil.NewNetns(t)
	for name, ns := range map[string]*testutil.Netns{"c1": lost, "c2": other} {
		if _, err := h.ctl(t).Attach(h.ctx, owned(ns.Path(), name, "eth0")); err != nil {
			t.Fatal(err)
		}
	}
	lost.Do(t, func() {
		d, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkDel(d)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := h.ctl(t).Engine().Healthy(h.ctx, "cni0"); err != nil {
		t.Errorf("healthy: %v", err)
	}
	o := *owned("", "c1", "eth0").Owner
	if _, err := h.ctl(t).Engine().Verify(h.ctx, o, Expectation{Target: lost.Path()}); !errors.Is(err, ErrBroken) {
		t.Errorf("the container's own: %v, want ErrBroken", err)
	}
	h.downAll(t)
}
