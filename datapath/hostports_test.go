package datapath

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// The programs for sockets of the host are attached once. They survive an upgrade and
// the loss of their cgroup, and go with the last publication.
func TestHostHooks(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 64}, nil)
	links := func(want int) {
		t.Helper()
		got, err := filepath.Glob(filepath.Join(h.dir, linksDir, "host-*"))
		check(t, err)
		if len(got) != want {
			t.Errorf("%d links, want %d: %v", len(got), want, got)
		}
	}
	all := len(h.Datapath.sockets.hostHooks())
	check(t, h.DetachHost())
	check(t, h.Datapath.sockets.updateHost())
	links(0)
	check(t, h.Publish(h.publication(false)))
	check(t, h.Publish(h.publication(true)))
	cgroup, gone := testutil.Cgroup(t), testutil.Cgroup(t)+"/gone"
	check(t, os.Mkdir(gone, 0o755))
	check(t, h.AttachHost(gone))
	check(t, h.AttachHost(gone))
	links(all)
	check(t, h.Datapath.sockets.updateHost())
	check(t, os.Remove(gone))
	check(t, h.AttachHost(cgroup))
	links(all)
	check(t, h.Unpublish(h.publication(false)))
	links(all)
	check(t, h.Unpublish(h.publication(true)))
	links(0)
	if err := h.AttachHost("/proc"); err == nil {
		t.Error("attached to a directory that is no cgroup")
	}
}

func TestLocalAddressesAreReplaced(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	for _, want := range [][]netip.Addr{{c1Addr, c2Addr}, {c2Addr, extAddr}, {}} {
		check(t, h.SetLocal(want))
		n := 0
		var addr, unused uint32
		for it := h.maps.FbrLocal.Iterate(); it.Next(&addr, &unused); n++ {
		}
		for _, a := range want {
			check(t, h.maps.FbrLocal.Lookup(be32(a), &unused))
		}
		if n != len(want) {
			t.Errorf("%d addresses, want %v", n, want)
		}
	}
}
