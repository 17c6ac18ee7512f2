package ctl

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// TestEndpointsLeaveTogether deletes those that are asked for until the first gets
// the lock in one go, and tells each who asked.
func TestEndpointsLeaveTogether(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	h.up(t)
	for _, name := range []string{"e1", "e2", "e3"} {
		h.endpoint(t, name)
	}
	var errs []error
	names := h.steps(t, func(c *Controller) { errs = together(t, h.ctx, c, []string{"e1", "e2", "e3", "e2"}) })
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if n := len(slices.DeleteFunc(names, func(s string) bool { return s != "undo-port-veth" })); n != 1 {
		t.Errorf("devices were deleted %d times, want once", n)
	}
	if ports, err := h.ctl(t).Ports(h.ctx, DefaultNetwork); err != nil || len(ports) != 0 {
		t.Errorf("%d ports are left, %v", len(ports), err)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestEndpointsStayTogether tells everybody of an error, and who has given up is
// left behind.
func TestEndpointsStayTogether(t *testing.T) {
	h := newHost(t)
	h.up(t)
	h.endpoint(t, "e1")
	h.endpoint(t, "e2")
	for _, err := range together(t, h.ctx, h.ctl(t, "undo-port-veth"), []string{"e1", "e2"}) {
		if err == nil {
			t.Error("no error")
		}
	}
	c := h.ctl(t)
	c.departures.join(&departure{DefaultNetwork, "e1", make(chan error, 1)})
	gone, cancel := context.WithCancel(h.ctx)
	cancel()
	if err := c.Engine().EndpointDelete(gone, DefaultNetwork, "e2"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who has gone: %v", err)
	}
	c.Engine().seeOff(h.ctx)
	if ports, err := h.ctl(t).Ports(h.ctx, DefaultNetwork); err != nil || len(ports) != 0 {
		t.Errorf("%d ports are left, %v", len(ports), err)
	}
	h.downAll(t)
}

// together asks for all of them before the first has the lock. Only that one works
// in the namespace of its thread, which must be the test's.
func together(t *testing.T, ctx context.Context, c *Controller, names []string) (errs []error) {
	t.Helper()
	first := &departure{DefaultNetwork, names[0], make(chan error, 1)}
	if !c.departures.join(first) {
		t.Fatal("somebody was there before the first")
	}
	others := make(chan error, len(names)-1)
	for _, name := range names[1:] {
		go func() { others <- c.Engine().EndpointDelete(ctx, DefaultNetwork, name) }()
	}
	count := func() int {
		c.departures.mu.Lock()
		defer c.departures.mu.Unlock()
		return len(c.departures.waiting)
	}
	for count() < len(names) {
		time.Sleep(time.Millisecond)
	}
	c.Engine().seeOff(ctx)
	errs = append(errs, <-first.done)
	for range names[1:] {
		errs = append(errs, <-others)
	}
	return errs
}
