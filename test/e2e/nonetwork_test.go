package e2e

import (
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2ENoNetwork changes settings of the instance before any network exists.
func TestE2ENoNetwork(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2})
	before := h.snapshot(t)
	h.Must(t, "up", "--no-network", "--uplink", "eth1", "--nat-range", "20000-20999")
	h.Must(t, "up", "--no-network", "--lease", "5") // other settings stay
	if out := h.Must(t, "show"); strings.Contains(out, "fastbr") {
		t.Errorf("there is a bridge:\n%s", out)
	}
	if r := h.Fastbr(t, "port", "ls"); r.Code != 3 {
		t.Errorf("port ls: exit %d, want 3: nothing is up", r.Code)
	}
	h.Must(t, "network", "create", "lab")
	h.Attach(t, h.Containers[0], "c1", "--network", "lab")
	h.mustPing(t, h.Containers[0], h.Outsides[1].Addr, lab.PingOptions{})
	var v ctl.StatusView
	h.JSON(t, &v, "status")
	if v.Lease != "5s" || v.NATRange != "20000-20999" || len(v.Uplinks) != 1 || len(v.Networks) != 1 {
		t.Errorf("status %+v", v)
	}
	h.Must(t, "detach", "c1")
	h.Must(t, "network", "rm", "lab")
	for _, args := range [][]string{{"up", "--no-network", "lab"}, {"up", "--no-network", "--subnet", "10.0.0.0/8"}} {
		if r := h.Fastbr(t, args...); r.Code != 2 || !strings.Contains(r.Stderr, "--no-network and") {
			t.Errorf("%v: exit %d: %s", args, r.Code, r.Stderr)
		}
	}
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)
}
