package datapath

import (
	"errors"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

func TestCreateOpenRemove(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.NewNetns(t).Enter(t)
	d := newDatapath(t, metaOf(t, Config{FlowsMax: 1024}), loading(loadTc, nil))
	if _, err := Create(d.dir, Config{}); !errors.Is(err, ErrExists) {
		t.Errorf("second Create: %v, want ErrExists", err)
	}
	o, err := Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	cfg, err := o.Config()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.FlowsMax != 1024 || cfg.NATFirst != DefaultNATFirst || cfg.NATLast != DefaultNATLast {
		t.Errorf("Config = %+v", cfg)
	}
	if _, err := Open(d.dir + "x"); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("Open of nothing: %v, want ErrNotLoaded", err)
	}
	if swapped, err := Upgrade(d.dir, Hooks{}); swapped || err != nil {
		t.Errorf("Upgrade to the same build: %v, %v", swapped, err)
	}
}
