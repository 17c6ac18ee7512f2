package hostconf

import (
	"errors"
	"maps"
	"os/exec"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestRouterAfterOpen: what fastbr has opened before a network is routed was not open
// before fastbr, whether it has opened all devices or one uplink.
func TestRouterAfterOpen(t *testing.T) {
	testutil.RequireRoot(t)
	for name, open := range map[string]func(*Host) error{
		"all devices": func(h *Host) error { return h.OpenOthers(IPv4) },
		"an uplink": func(h *Host) error {
			_, err := h.RecordClosed(IPv4, "there")
			return errors.Join(err, IPv4.Open("there"))
		},
	} {
		testutil.NewNetns(t).Do(t, func() {
			h := &Host{Record: &Record{}, Save: func() error { return nil }, Say: func(string, ...any) {}}
			if out, err := exec.Command("ip", "link", "add", "name", "there", "type", "bridge").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			before := forwardingNow(t)
			if err := errors.Join(open(h), h.Set(Want{Router: true}), h.CloseOthers(IPv4, nil), h.Restore()); err != nil {
				t.Fatal(err)
			}
			if after := forwardingNow(t); !maps.Equal(after, before) {
				t.Errorf("%s: forwarding is %v afterwards, want %v", name, after, before)
			}
		})
	}
}
