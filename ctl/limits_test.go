package ctl

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/hostconf"
)

// A memory limit that the maps do not fit in is said with their sizes, and what to do.
func TestTooLittleMemoryNamesTheSizes(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	h.planes.createErr = fmt.Errorf("map create: %w", unix.ENOMEM)
	_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
	if !errors.Is(err, unix.ENOMEM) {
		t.Fatalf("up: %v", err)
	}
	for _, want := range []string{"131072 flows take some 71 MB", "--nat-flows", "memory limit"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// What puts a setting back that somebody has changed says so, once.
func TestSettingAgainIsSaid(t *testing.T) {
	h := newHost(t)
	routed := false
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{Masquerade: &routed}, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	const line = "somebody has set net.ipv4.ip_forward to 0: it is 1 again"
	for _, want := range []int{0, 1, 0} {
		if want == 1 {
			if err := hostconf.Write(hostconf.IPForward, "0"); err != nil {
				t.Fatal(err)
			}
		}
		h.messages.Reset()
		if err := h.ctl(t).Reconcile(h.ctx); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(h.messages.String(), line); got != want {
			t.Errorf("said %d times, want %d: %s", got, want, h.messages)
		}
	}
	h.downAll(t)
}
