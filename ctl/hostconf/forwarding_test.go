package hostconf

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// forwardingNow is the setting of every device of the thread's namespace.
func forwardingNow(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(IPv4.Forwarding("*"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no settings", err)
	}
	out := map[string]string{}
	for _, p := range paths {
		v, err := Read(p)
		if err != nil {
			t.Fatal(err)
		}
		out[deviceOf(p)] = v
	}
	return out
}

// TestOpenOthers opens a host that is no router, whose devices come and go, and leaves
// it as it was. A host of which its owner has opened something is left alone.
func TestOpenOthers(t *testing.T) {
	testutil.RequireRoot(t)
	add := func(device string) {
		t.Helper()
		if out, err := exec.Command("ip", "link", "add", "name", device, "type", "bridge").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, c := range []struct {
		name string
		open string // by the host's owner
		want bool
	}{{"closed", "", true}, {"a router", "all", false}, {"one device", "there", false}, {"ours", "br", true}} {
		testutil.NewNetns(t).Do(t, func() {
			h := Host{Record: &Record{}, Save: func() error { return nil }}
			add("there")
			add("br")
			if c.open != "" {
				if err := Write(IPv4.Forwarding(c.open), "1"); err != nil {
					t.Fatal(err)
				}
			}
			before := forwardingNow(t)
			can, err := h.CanOpenOthers(IPv4, []string{"br"})
			if err != nil || can != c.want {
				t.Errorf("%s: %v, %v, want %v", c.name, can, err, c.want)
			}
			if !can {
				return
			}
			if err := h.OpenOthers(IPv4); err != nil {
				t.Fatal(err)
			}
			add("later")
			for device, v := range forwardingNow(t) {
				if open := device != "all" && device != "lo"; (v == "1") != open {
					t.Errorf("%s: forwarding of %s is %s", c.name, device, v)
				}
			}
			if closed, err := h.RecordClosed(IPv4, "later"); !closed || err != nil {
				t.Errorf("%s: an open device counts as its owner's: %v", c.name, err)
			}
			if err := errors.Join(h.CloseOthers(IPv4, []string{"br"}), h.CloseOthers(IPv4, nil)); err != nil {
				t.Fatal(err)
			}
			before["later"], before["br"] = "0", "1"
			after := forwardingNow(t)
			for device, v := range before {
				if after[device] != v {
					t.Errorf("%s: forwarding of %s is %s, want %s", c.name, device, after[device], v)
				}
			}
			if err := h.Restore(); err != nil {
				t.Fatal(err)
			}
			if after := forwardingNow(t); after["br"] != "0" || len(h.Sysctls) > 0 {
				t.Errorf("%s: after restoring: %v, record %v", c.name, after, h.Record)
			}
		})
	}
}
