package ctl

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/testutil"
)

func TestDoubtXDP(t *testing.T) {
	physical := link.Device{Index: 3, Name: "eth0", Kind: "device", Ethernet: true}
	veth, tun := physical, physical
	veth.Kind, tun.Ethernet = "veth", false
	vlan := []link.Entry{{Name: "eth0.7", Kind: "vlan", Lower: 3}}
	for _, tc := range []struct {
		name    string
		d       link.Device
		entries []link.Entry
		auto    bool
		want    string // part of the reason, "" for none
	}{
		{"a card", physical, nil, true, ""},
		{"a veth", veth, nil, true, "TSO"},
		{"a veth, asked for", veth, nil, false, ""},
		{"no Ethernet", tun, nil, true, "Ethernet"},
		{"no Ethernet, asked for", tun, nil, false, "Ethernet"},
		{"a VLAN on it", physical, vlan, true, "eth0.7"},
		{"a VLAN on it, asked for", physical, vlan, false, "eth0.7"},
		{"a VLAN on another", physical, []link.Entry{{Name: "eth1.7", Kind: "vlan", Lower: 4}, {Name: "v", Kind: "veth", Lower: 3}}, true, ""},
	} {
		entries := map[int]link.Entry{}
		for i, e := range tc.entries {
			entries[i] = e
		}
		got := doubtXDP(tc.d, entries, tc.auto)
		if got == "" != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestLostOffloads(t *testing.T) {
	before := map[string]bool{"rx-lro": true, "rx-gro-hw": true, "tx-gso": false}
	if got := lostOffloads(before, map[string]bool{"rx-lro": true, "rx-gro-hw": true}); got != "" {
		t.Errorf("nothing lost: %q", got)
	}
	if got := lostOffloads(before, map[string]bool{"tx-gso": true}); got != "its driver would give up rx-gro-hw, rx-lro" {
		t.Errorf("%q", got)
	}
}

// An uplink that is a bridge: native XDP is what the fake says of it.
func TestXDPFollowsTheMode(t *testing.T) {
	h := newHost(t)
	index, err := h.conn.CreateBridge("up0", net.HardwareAddr{2, 0, 0, 0, 0, 9}, 1500)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.conn.AddAddr(index, netip.MustParsePrefix("203.0.113.2/24")); err != nil {
		t.Fatal(err)
	}
	up := func(mode string) error {
		h.messages.Reset()
		_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{Uplinks: []string{"up0"}, XDP: mode})
		return err
	}
	status := func() string {
		t.Helper()
		v, err := h.ctl(t).Status(h.ctx)
		if err != nil || len(v.Uplinks) != 1 {
			t.Fatalf("%+v, %v", v, err)
		}
		return fmt.Sprint(v.XDP, ": ", v.Uplinks[0].XDP, ", ", v.Uplinks[0].XDPWhy)
	}
	before := h.traces(t)
	h.planes.driver = datapath.ErrXDPTaken
	if err := up(XDPNative); err == nil || err.Error() != "uplink up0: no native XDP: another XDP program is on it" {
		t.Errorf("beside another program: %v", err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	h.planes.driver = fmt.Errorf("%w: not at all", datapath.ErrNotSupported)
	if err := up(""); err != nil || strings.Contains(h.messages.String(), "XDP") {
		t.Errorf("%v, %s", err, h.messages)
	}
	const cannot = "auto: off, its driver cannot: not at all"
	if err := up(XDPNative); err == nil || !strings.Contains(err.Error(), "its driver cannot: not at all") || status() != cannot {
		t.Errorf("native: %v, then %s", err, status())
	}
	if err := up(XDPAuto); err != nil || status() != cannot || !strings.Contains(h.messages.String(), "uplink up0: XDP off: its driver cannot") {
		t.Errorf("auto: %v, %s: %s", err, status(), h.messages)
	}

	c1, c2 := testutil.NewNetns(t), testutil.NewNetns(t)
	for _, c := range []*testutil.Netns{c1, c2} {
		process := exec.Command("sleep", "600") // a container that was there before is found by its process
		if c.Do(t, func() { err = process.Start() }); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = process.Process.Kill(), process.Wait() }()
	}
	h.attach(t, c1.Path(), "c1")
	h.planes.driver = nil
	if err := up(XDPAuto); err != nil || status() != cannot {
		t.Errorf("auto decided anew about the same device: %v, %s", err, status())
	}
	for _, mode := range []string{XDPNative, XDPNative} {
		if err := up(mode); err != nil || status() != "native: native, asked for" {
			t.Errorf("%v, %s", err, status())
		}
	}
	h.attach(t, c2.Path(), "c2")
	check := func(want bool) {
		t.Helper()
		for _, p := range h.fake(t).Ports {
			if p.XDP != want {
				t.Errorf("port %+v, want XDP %v", p, want)
			}
		}
		for _, c := range []*testutil.Netns{c1, c2} {
			var on map[string]bool
			c.Do(t, func() { on, err = link.Offloads("eth0") })
			if err != nil || on[link.GRO] != want {
				t.Errorf("GRO inside is %v, want %v: %v", on[link.GRO], want, err)
			}
		}
		if got := len(h.fake(t).XDP) == 1; got != want {
			t.Errorf("XDP is on %v", h.fake(t).XDP)
		}
	}
	e := h.endpoint(t, "e1") // its engine has not taken the container's end yet
	if on, err := link.Offloads(e.Peer); err != nil || !on[link.GRO] {
		t.Errorf("GRO of an endpoint's %s is off: %v", e.Peer, err)
	}
	check(true)
	if err := up(XDPOff); err != nil || status() != "off: off, not wanted" {
		t.Errorf("%v, %s", err, status())
	}
	check(false)
	if err := up(XDPAuto); err != nil || !strings.HasPrefix(status(), "auto: native, ") {
		t.Errorf("%v, %s", err, status())
	}
	check(true)
	if err := h.ctl(t).Engine().Healthy(h.ctx, DefaultNetwork); err != nil {
		t.Error(err)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
