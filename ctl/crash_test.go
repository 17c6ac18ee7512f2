package ctl

import (
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// crash is an operation that has steps, with what must be there before.
type crash struct {
	name    string
	prepare func(t *testing.T, h *host, target string)
	do      func(c *Controller, h *host, target string) error
}

func crashes() []crash {
	up := func(t *testing.T, h *host, _ string) { h.up(t) }
	plugged := func(t *testing.T, h *host, target string) { h.up(t); h.attach(t, target, "c1") }
	return []crash{
		{"up", func(*testing.T, *host, string) {}, func(c *Controller, h *host, _ string) error {
			_, _, err := c.Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
			return err
		}},
		{"create", up, func(c *Controller, h *host, _ string) error {
			_, err := c.NetworkCreate(h.ctx, "lab", NetworkRequest{})
			return err
		}},
		{"attach", up, func(c *Controller, h *host, target string) error {
			_, err := c.Attach(h.ctx, AttachRequest{Target: target})
			return err
		}},
		{"attach-owned", up, func(c *Controller, h *host, target string) error { return attachOwned(h.ctx, c, target) }},
		{"detach", plugged, func(c *Controller, h *host, _ string) error {
			_, err := c.Detach(h.ctx, "c1", "")
			return err
		}},
		{"endpoint", up, func(c *Controller, h *host, _ string) error {
			_, err := c.Engine().EndpointCreate(h.ctx, e1())
			return err
		}},
		{"endpoint-rm", func(t *testing.T, h *host, _ string) { h.up(t); h.endpoint(t, e1().Name) },
			func(c *Controller, h *host, _ string) error {
				return c.Engine().EndpointDelete(h.ctx, e1().Network, e1().Name)
			}},
		{"publish", plugged, func(c *Controller, h *host, _ string) error { return publishTwo(h, c) }},
		{"unpublish", func(t *testing.T, h *host, target string) {
			plugged(t, h, target)
			if err := publishTwo(h, h.ctl(t)); err != nil {
				t.Fatal(err)
			}
		}, func(c *Controller, h *host, _ string) error {
			_, err := c.Unpublish(h.ctx, PublishRequest{First: 8080, Last: 8081})
			return err
		}},
		{"down", plugged, func(c *Controller, h *host, _ string) error {
			_, err := c.DownAll(h.ctx)
			return err
		}},
	}
}

func e1() EndpointRequest { return EndpointRequest{Network: DefaultNetwork, Name: "e1"} }

func publishTwo(h *host, c *Controller) error {
	_, err := c.Publish(h.ctx, PublishRequest{First: 8080, Last: 8081, Port: 80, Proto: "tcp", Name: "c1"})
	return err
}

// clear leaves nothing of an operation behind, definitions included.
func (h *host) clear(t *testing.T) {
	t.Helper()
	_ = h.ctl(t).NetworkRemove(h.ctx, "lab")
	h.downAll(t)
}

func TestBreakMidwayUndoes(t *testing.T) {
	for _, op := range crashes() {
		t.Run(op.name, func(t *testing.T) {
			h := newHost(t)
			target := testutil.NewNetns(t).Path()
			untouched := h.traces(t)
			op.prepare(t, h, target)
			names := h.steps(t, func(c *Controller) {
				if err := op.do(c, h, target); err != nil {
					t.Fatal(err)
				}
			})
			h.clear(t)
			for _, name := range names {
				op.prepare(t, h, target)
				before := h.traces(t)
				if err := op.do(h.ctl(t, name), h, target); err == nil {
					t.Fatalf("broken at %s: no error", name)
				}
				// What was begun is taken back; what was being taken back goes on
				// to be taken back by the next command.
				if !slices.Contains([]string{"detach", "endpoint-rm", "unpublish", "down"}, op.name) {
					if after := h.traces(t); after != before {
						t.Errorf("broken at %s: before:\n%s\nafter:\n%s", name, before, after)
					}
				}
				h.assertSound(t, untouched, target)
			}
		})
	}
}

func TestKillAnywhereIsSound(t *testing.T) {
	for _, op := range crashes() {
		t.Run(op.name, func(t *testing.T) {
			h := newHost(t)
			target := testutil.NewNetns(t).Path()
			untouched := h.traces(t)
			op.prepare(t, h, target)
			names := h.steps(t, func(c *Controller) {
				if err := op.do(c, h, target); err != nil {
					t.Fatal(err)
				}
			})
			h.clear(t)
			for _, name := range names {
				op.prepare(t, h, target)
				arg := target
				if op.name == "detach" {
					arg = "c1"
				}
				cmd := h.process(t, name, op.name, arg)
				err := cmd.Run()
				exit, ok := err.(*exec.ExitError)
				if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("at %s: %v, want it killed: %s", name, err, cmd.Stderr)
				}
				if op.name == "create" {
					// Killed after its last step a create is complete.
					_ = h.ctl(t).NetworkRemove(h.ctx, "lab")
				}
				h.assertSound(t, untouched, target)
				if t.Failed() {
					t.Fatalf("killed at %s", name)
				}
			}
		})
	}
}

// TestKillThenVanish kills an attach where only the kernel knows the new device,
// which then goes before the next command looks.
func TestKillThenVanish(t *testing.T) {
	h := newHost(t)
	target := testutil.NewNetns(t).Path()
	untouched := h.traces(t)
	h.up(t)
	cmd := h.process(t, "port-programs", "attach", target)
	if err := cmd.Run(); err == nil {
		t.Fatalf("it was not killed: %s", cmd.Stderr)
	}
	inside, d := insideOf(t, target)
	if err := inside.Delete(d.Index); err != nil {
		t.Fatal(err)
	}
	h.assertSound(t, untouched, target)
}

func TestAttachTwoAtOnce(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	h.up(t)
	const rounds = 5
	var wg sync.WaitGroup
	for range rounds {
		for range 2 {
			cmd := h.process(t, "", "attach", testutil.NewNetns(t).Path())
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if err := cmd.Wait(); err != nil {
					t.Errorf("attach: %v: %s", err, cmd.Stderr)
				}
			})
		}
		wg.Wait()
	}
	ports, err := h.ctl(t).Ports(h.ctx, DefaultNetwork)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range ports {
		if seen[p.IP] {
			t.Errorf("address %s given twice", p.IP)
		}
		seen[p.IP] = true
	}
	if len(ports) != 2*rounds {
		t.Errorf("%d ports, want %d", len(ports), 2*rounds)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestStepsAreNamedOnce(t *testing.T) {
	h := newHost(t)
	names := h.steps(t, func(c *Controller) {
		if _, _, err := c.Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{}); err != nil {
			t.Fatal(err)
		}
	})
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] || strings.ContainsAny(n, " \n") {
			t.Errorf("step name %q is not usable", n)
		}
		seen[n] = true
	}
	h.downAll(t)
}
