package datapath

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

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
	all := len(h.Datapath.sockets.links())
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

// IPv6's programs stand before IPv4's on the hooks of IPv6 sockets, wherever those have been
// attached before, and leave the place to them.
func TestHostHooksOfBothFamilies(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 64}, nil)
	cgroup := testutil.Cgroup(t)
	names := func(want ...string) {
		t.Helper()
		dir, err := os.Open(cgroup)
		check(t, err)
		defer dir.Close()
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupInet6Connect})
		check(t, err)
		var got []string
		for _, a := range q.Programs {
			p, err := ebpf.NewProgramFromID(a.ID)
			check(t, err)
			info, err := p.Info()
			check(t, errors.Join(err, p.Close()))
			id, _ := info.ID()
			for _, o := range h.families.loaded() {
				own, err := o.progs[tcProgFbrConnect6].Info()
				check(t, err)
				if ownID, _ := own.ID(); ownID == id {
					got = append(got, o.name)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("on connect6 are the programs of %v, want %v", got, want)
		}
	}
	check(t, h.Publish(h.publication(false)))
	check(t, h.AttachHost(cgroup))
	names("IPv4")
	six := withIP6(t, h)
	names("IPv4")
	for range 2 {
		check(t, h.AttachHost(cgroup))
		names("IPv6", "IPv4")
	}
	check(t, h.Datapath.sockets.updateHost())
	names("IPv6", "IPv4")
	check(t, h.DetachHost())
	names()
	check(t, h.AttachHost(cgroup))
	names("IPv6", "IPv4")
	// An older build knew IPv4's only: that keeps the place.
	check(t, detach(linkPath(h.dir, "host-connect6-mapped")))
	check(t, h.Datapath.sockets.updateHost())
	names("IPv4")
	check(t, h.AttachHost(cgroup))
	names("IPv6", "IPv4")
	for _, p := range []Port{six.c1, six.c2, six.other} {
		check(t, h.DetachPort(p.Ifindex))
	}
	check(t, h.DeleteNetwork(h.bridge))
	check(t, h.DeleteNetwork(h.bridge2))
	names("IPv4")
	left, err := filepath.Glob(filepath.Join(h.dir, linksDir, "host-*"))
	check(t, err)
	if want := len(h.Datapath.sockets.links()); len(left) != want {
		t.Errorf("%d links, want %d: %v", len(left), want, left)
	}
}

func TestLocalAddressesAreReplaced(t *testing.T) {
	h := withIP6(t, newReal(t, Config{FlowsMax: 64}, nil))
	for _, want := range [][]netip.Addr{{c1Addr, c2Addr, c1Addr6}, {c2Addr, extAddr, extAddr6, c2Addr6}, {c1Addr6}, {}} {
		check(t, h.SetLocal(want))
		var got []netip.Addr
		for _, o := range h.families.loaded() {
			check(t, eachEntry(o.maps[tcMapFbrLocal], 0, func(k, _ []byte) error {
				a, _ := netip.AddrFromSlice(k)
				got = append(got, a)
				return nil
			}))
		}
		slices.SortFunc(got, netip.Addr.Compare)
		slices.SortFunc(want, netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
	}
}
