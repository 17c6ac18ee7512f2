package ctl

import (
	"errors"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Every command that changes something upgrades the pins of an older build first,
// and tells the new maps what the state says; those that only look say what to do.
func TestCommandsUpgradeOlderPins(t *testing.T) {
	for name, do := range map[string]func(h *host, target string) error{
		"up": func(h *host, _ string) error {
			_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
			return err
		},
		"attach": func(h *host, target string) error {
			_, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: target, Name: "c2"})
			return err
		},
		"serve":     func(h *host, _ string) error { return h.ctl(t).Upgrade(h.ctx) },
		"reconcile": func(h *host, _ string) error { return h.ctl(t).Reconcile(h.ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.up(t)
			target := testutil.NewNetns(t).Path()
			h.attach(t, testutil.NewNetns(t).Path(), "c1")
			h.planes.openErr = datapath.ErrSchemaOlder
			if _, err := h.ctl(t).Status(h.ctx); !errors.Is(err, datapath.ErrSchemaOlder) || !strings.Contains(err.Error(), "'fastbr up' upgrades it") {
				t.Errorf("status: %v", err)
			}
			if err := do(h, target); err != nil {
				t.Fatal(err)
			}
			if _, err := h.ctl(t).Status(h.ctx); err != nil {
				t.Errorf("status afterwards: %v", err)
			}
			h.downAll(t)
		})
	}
}
