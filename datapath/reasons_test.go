package datapath

import (
	"slices"
	"testing"
)

// Labels that a release has had stay, in their order: the counters of a running
// instance, dashboards and alerts depend on them.
func TestReasonsAreOnlyAdded(t *testing.T) {
	want := []Reason{
		"spoof_mac", "spoof_ip", "spoof_arp", "l2_proto", "isolated", "no_uplink", "direct", "martian",
		"foreign", "unsupported", "nat_full", "quota", "fragment", "filtered", "bad_csum",
	}
	got := Reasons()
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("reasons are %q, and were %q", got, want)
	}
	if slices.Contains(got, "") {
		t.Errorf("FBR_REASON_MAX leaves a gap: %q", got)
	}
}
