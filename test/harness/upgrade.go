package harness

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

// KillAt runs a command that kills itself right after a step.
func (h *Rig) KillAt(t testing.TB, step string, args ...string) {
	t.Helper()
	c := h.Cmd(args...)
	c.Env = append(c.Env, "FASTBR_KILL_AT="+step)
	if r := Run(t, c); r.Code != -1 {
		t.Errorf("fastbr %v was to die after %s: exit %d: %s", args, step, r.Code, r.Stderr)
	}
}

// Upgrade replaces the programs as a newer build would. It makes the pins say that
// another build has made them. Then an `up` is killed when half of the programs are
// swapped, and the next `up` finishes the upgrade.
func (h *Rig) Upgrade(t testing.TB) {
	t.Helper()
	const build = 32 // offset of struct fbr_meta's build, 8 bytes
	meta := h.meta(t)
	ours := lookup(t, meta)
	other := bytes.Clone(ours)
	other[build]++
	if err := meta.Put(uint32(0), other); err != nil {
		t.Fatal(err)
	}
	h.KillAt(t, "upgrade-uplinks", "up")
	h.Must(t, "up")
	if now := lookup(t, h.meta(t)); !bytes.Equal(now[build:build+8], ours[build:build+8]) {
		t.Errorf("after up the build is %x, want %x", now[build:build+8], ours[build:build+8])
	}
}

// meta opens the pinned map fbr_meta. Each upgrade makes a new one.
func (h *Rig) meta(t testing.TB) *ebpf.Map {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(h.BPFFS, "fastbr", "*", "fbr_meta"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("the pins of one instance: %v, %v", pins, err)
	}
	m, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func lookup(t testing.TB, m *ebpf.Map) (v []byte) {
	t.Helper()
	if err := m.Lookup(uint32(0), &v); err != nil {
		t.Fatal(err)
	}
	return v
}
