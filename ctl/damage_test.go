package ctl

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/internal/testutil"
)

// damages are what may have happened to a state with two networks and two ports.
func damages() map[string]func(text []byte) []byte {
	lines := func(text []byte) [][]byte { return bytes.SplitAfter(text, []byte("\n")) }
	return map[string]func([]byte) []byte{
		"cut in its head":       func(b []byte) []byte { return b[:len(lines(b)[0])/2] },
		"cut in its last port":  func(b []byte) []byte { return b[:len(b)-20] },
		"cut after its head":    func(b []byte) []byte { return lines(b)[0][:len(lines(b)[0])-2] },
		"empty":                 func([]byte) []byte { return nil },
		"no JSON":               func([]byte) []byte { return []byte("\x00\x00\x00") },
		"another JSON":          func([]byte) []byte { return []byte("[]\n") },
		"a network of nothing":  func(b []byte) []byte { return bytes.Replace(b, []byte(`"lab":{`), []byte(`"gone":null,"lab":{`), 1) },
		"a port is a line lost": func(b []byte) []byte { return append(lines(b)[0], "{\"network\":\n"...) },
		"a port of null":        func(b []byte) []byte { return append(b, "null\n"...) },
	}
}

// TestDamagedStateIsMended: readers name the way out; whoever changes something
// goes on with what is known, which is everything here.
func TestDamagedStateIsMended(t *testing.T) {
	for name, damage := range damages() {
		for _, way := range []string{"attach", "down"} {
			t.Run(name+", "+way, func(t *testing.T) {
				h := newHost(t)
				before := h.traces(t)
				h.up(t)
				if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", NetworkRequest{}); err != nil {
					t.Fatal(err)
				}
				h.attach(t, testutil.NewNetns(t).Path(), "c1")
				h.attach(t, testutil.NewNetns(t).Path(), "c2")
				path := h.ctl(t).instance.statePath()
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := h.ctl(t).NetworkList(h.ctx); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "down --all") {
					t.Errorf("a reader says %v", err)
				}
				if way == "attach" {
					h.attach(t, testutil.NewNetns(t).Path(), "c3")
					if !strings.Contains(h.messages.String(), aside(path)) {
						t.Errorf("nobody says where the damaged state is: %s", h.messages)
					}
					if ports, err := h.ctl(t).Ports(h.ctx, DefaultNetwork); err != nil || len(ports) != 3 {
						t.Errorf("ports %+v, %v, want three", ports, err)
					}
				}
				h.downAll(t)
				if err := h.ctl(t).NetworkRemove(h.ctx, "lab"); err != nil {
					t.Error(err)
				}
				if err := os.Remove(aside(path)); err != nil {
					t.Error(err)
				}
				_ = os.Remove(filepath.Dir(path))
				if after := h.traces(t); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})
		}
	}
}

// TestLostStateSaysWhatStays: without any record, what is known is taken back.
func TestLostStateSaysWhatStays(t *testing.T) {
	h := newHost(t)
	before, err := hostconf.ReservedNow()
	if err != nil {
		t.Fatal(err)
	}
	index := h.addDevice(t, "wan0", "203.0.113.2/24", true)
	if err := errors.Join(hostconf.Write(hostconf.IPForward, "0"), h.conn.AddDefault(index, netip.MustParseAddr("203.0.113.1"))); err != nil {
		t.Fatal(err)
	}
	h.up(t)
	if err := os.RemoveAll(h.opts.StateDir); err != nil {
		t.Fatal(err)
	}
	if err := h.ctl(t).NetworkRemove(h.ctx, "lab"); err == nil || !strings.Contains(err.Error(), "no network lab") {
		t.Errorf("network rm: %v", err)
	}
	h.downAll(t)
	if after, err := hostconf.ReservedNow(); err != nil || after != before {
		t.Errorf("reserved ports %q, %v, want %q", after, err, before)
	}
	if !strings.Contains(h.messages.String(), "net.ipv4.conf.wan0.forwarding=1") {
		t.Errorf("nobody says what stays: %s", h.messages)
	}
}

// TestDamagedDefinitionIsOneNetworksMatter, and not of the others.
func TestDamagedDefinitionIsOneNetworksMatter(t *testing.T) {
	for _, content := range []string{"", "{", "null", `{"name":"bad"}`, `{"name":"other"}`} {
		h := newHost(t)
		create := func(name string) {
			t.Helper()
			if _, err := h.ctl(t).NetworkCreate(h.ctx, name, NetworkRequest{}); err != nil {
				t.Fatalf("%q: create %s: %v", content, name, err)
			}
		}
		create("good")
		bad := h.ctl(t).instance.defs.path("bad")
		spoil := func() {
			t.Helper()
			if err := os.WriteFile(bad, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		spoil()
		if all, err := h.ctl(t).NetworkList(h.ctx); err != nil || len(all) != 3 || !strings.Contains(h.messages.String(), bad) {
			t.Errorf("%q: listed %+v, %v: %s", content, all, err, h.messages)
		}
		create("another")
		if _, _, err := h.ctl(t).Up(h.ctx, "bad", NetworkRequest{}, InstanceRequest{}); err == nil || !strings.Contains(err.Error(), "network rm bad") {
			t.Errorf("%q: up of it: %v", content, err)
		}
		create("bad")
		spoil() // while it is up: the state knows it
		if _, _, err := h.ctl(t).Up(h.ctx, "bad", NetworkRequest{}, InstanceRequest{}); err != nil {
			t.Errorf("%q: up again: %v", content, err)
		}
		if def, err := h.ctl(t).instance.defs.get("bad"); err != nil || def == nil {
			t.Errorf("%q: the definition was not written again: %v", content, err)
		}
		spoil()
		for _, name := range []string{"bad", "good", "another"} {
			if err := h.ctl(t).NetworkRemove(h.ctx, name); err != nil {
				t.Errorf("%q: rm %s: %v", content, name, err)
			}
		}
		h.downAll(t)
	}
}
