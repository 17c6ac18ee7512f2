package harness

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// KillAt runs a command with the order to die right after a step.
func (h *Rig) KillAt(t *testing.T, step string, args ...string) {
	t.Helper()
	c := h.Cmd(args...)
	c.Env = append(c.Env, "FASTBR_KILL_AT="+step)
	if r := Run(t, c); r.Code != -1 {
		t.Errorf("fastbr %v was to die after %s: exit %d: %s", args, step, r.Code, r.Stderr)
	}
}

// Upgrade replaces the programs as a newer build would, by an `up` that is killed
// on its way and another one.
func (h *Rig) Upgrade(t *testing.T) {
	t.Helper()
	const build = 32 // offset of struct fbr_meta's build, 8 bytes
	pins, err := filepath.Glob(filepath.Join(h.BPFFS, "fastbr", "*", "fbr_meta"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("the pins of one instance: %v, %v", pins, err)
	}
	m, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	recorded := func() (v []byte) {
		if err := m.Lookup(uint32(0), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	ours, other := recorded(), recorded()
	other[build]++
	if err := m.Put(uint32(0), other); err != nil {
		t.Fatal(err)
	}
	c := h.Cmd("up")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	_ = c.Process.Kill() // wherever it is
	_ = c.Wait()
	h.Must(t, "up")
	if now := recorded(); !bytes.Equal(now[build:], ours[build:]) {
		t.Errorf("after up the build is %x, want %x", now[build:], ours[build:])
	}
}
