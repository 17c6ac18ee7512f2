package ctl

import (
	"slices"
	"testing"
)

// What the kernel offers is found out when the programs are loaded; `status` says
// what was found then, and looks itself only where nobody wrote it down.
func TestStatusShowsFeaturesFoundAtLoading(t *testing.T) {
	h := newHost(t)
	h.planes.missing = "xdp"
	h.up(t)
	h.planes.missing = ""
	xdp := func() string {
		t.Helper()
		v, err := h.ctl(t).Status(h.ctx)
		at := slices.IndexFunc(v.Features, func(f FeatureView) bool { return f.Name == "xdp" })
		if err != nil || at < 0 {
			t.Fatalf("%+v, %v", v.Features, err)
		}
		return v.Features[at].State
	}
	if now := xdp(); now != "absent" {
		t.Errorf("xdp is %s: not what was found when the programs were loaded", now)
	}
	c := h.ctl(t)
	err := c.instance.mutate(h.ctx, func(op *operation) error { op.st.Features = nil; return op.save() })
	if now := xdp(); err != nil || now != "ok" {
		t.Errorf("without a record xdp is %s, %v", now, err)
	}
}
