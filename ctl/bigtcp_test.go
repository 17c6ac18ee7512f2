package ctl

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/testutil"
)

func TestDecideBigTCP(t *testing.T) {
	fast := link.Device{Name: "eth0", Kind: "device", MTU: 1500, GSO: 65536, GSOMax: 524280, GSOSegs: 65535}
	with := func(f func(*link.Device)) link.Device {
		d := fast
		f(&d)
		return d
	}
	usual := with(func(d *link.Device) { d.GSOMax = 65536 })
	some := with(func(d *link.Device) { d.GSOMax = 98304 })
	few := with(func(d *link.Device) { d.GSOSegs = 64 })
	fewJumbo := with(func(d *link.Device) { d.GSOSegs, d.MTU = 64, 9000 })
	limited := with(func(d *link.Device) { d.GSO = 16384 })
	veth := with(func(d *link.Device) { d.Kind = "veth" })
	set := with(func(d *link.Device) { d.Kind, d.GSO = "veth", bigGSO })
	for _, tc := range []struct {
		name    string
		mode    string
		uplinks []link.Device
		size    int
		why     string // part of it
	}{
		{"a fast card", "", []link.Device{fast}, bigGSO, "every uplink"},
		{"a usual card", BigTCPAuto, []link.Device{usual}, 0, "65536 bytes at most"},
		{"one in between", BigTCPAuto, []link.Device{fast, some}, 98304, "every uplink"},
		{"a fast and a usual card", BigTCPAuto, []link.Device{fast, usual}, 0, "65536 bytes at most"},
		{"few segments", BigTCPAuto, []link.Device{few}, 92672, "every uplink"},
		{"few but large segments", BigTCPAuto, []link.Device{fewJumbo}, bigGSO, "every uplink"},
		{"hardly any segments", BigTCPAuto, []link.Device{with(func(d *link.Device) { d.GSOSegs = 40 })}, 0, "40 segments"},
		{"a limit of the user's", BigTCPAuto, []link.Device{limited}, 0, "set to 16384"},
		{"a veth", BigTCPAuto, []link.Device{veth}, 0, "passes packets on"},
		{"a veth whose way somebody knows", BigTCPAuto, []link.Device{set}, bigGSO, "every uplink"},
		{"none", BigTCPAuto, nil, bigGSO, "no uplink"},
		{"not wanted", BigTCPOff, []link.Device{fast}, 0, "not wanted"},
		{"asked for", BigTCPOn, []link.Device{usual}, bigGSO, "asked for"},
	} {
		if got := decideBigTCP(tc.mode, tc.uplinks); got.Size != tc.size || !strings.Contains(got.Why, tc.why) {
			t.Errorf("%s: %+v, want %d, %q", tc.name, got, tc.size, tc.why)
		}
	}
}

// Ports, bridge and uplink follow the mode and what the uplink is set to, and the
// uplink is put back.
func TestBigTCPFollowsTheUplink(t *testing.T) {
	h := newHost(t)
	uplink, _, err := h.conn.CreateVeth(link.Veth{Name: "up0", PeerName: "up1", PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.conn.AddAddr(uplink, netip.MustParsePrefix("203.0.113.2/24")); err != nil {
		t.Fatal(err)
	}
	up := func(mode string) {
		t.Helper()
		h.messages.Reset()
		if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{Uplinks: []string{"up0"}, BigTCP: mode}); err != nil {
			t.Fatal(err)
		}
	}
	c1 := testutil.NewNetns(t)
	process := exec.Command("sleep", "600") // the container is found by its process
	if c1.Do(t, func() { err = process.Start() }); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = process.Process.Kill(), process.Wait() }()
	size := func(conn *link.Conn, name string) int {
		t.Helper()
		d, err := conn.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return d.GSO
	}
	want := func(what string, port, uplink int) {
		t.Helper()
		var inside int
		c1.Do(t, func() {
			conn, err := link.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			inside = size(conn, "eth0")
		})
		var host string
		for _, p := range h.fake(t).Ports {
			d, err := h.conn.ByIndex(p.Ifindex)
			if err != nil {
				t.Fatal(err)
			}
			host = d.Name
		}
		got := []int{inside, size(h.conn, host), size(h.conn, DefaultBridge), size(h.conn, "up0")}
		if expect := []int{port, port, port, uplink}; fmt.Sprint(got) != fmt.Sprint(expect) {
			t.Errorf("%s: container, host end, bridge, uplink %v, want %v", what, got, expect)
		}
		if v, err := h.ctl(t).Status(h.ctx); err != nil || v.BigTCP.Size != port || v.BigTCP.Why == "" {
			t.Errorf("%s: status %+v, %v", what, v.BigTCP, err)
		}
	}
	before := h.traces(t)
	up("")
	h.attach(t, c1.Path(), "c1")
	want("a veth", link.DefaultGSO, link.DefaultGSO)
	up(BigTCPOn)
	want("asked for", bigGSO, bigGSO)
	if !strings.Contains(h.messages.String(), "uplink up0 takes super-packets of 131072 bytes now") {
		t.Errorf("nobody was told: %s", h.messages)
	}
	up(BigTCPAuto) // what we have set ourselves is no promise
	want("a veth again", link.DefaultGSO, link.DefaultGSO)
	if err := h.conn.SetGSO(uplink, 98304); err != nil {
		t.Fatal(err)
	}
	up("")
	want("somebody has raised the uplink", 98304, 98304)
	up(BigTCPOn)
	want("asked for more", bigGSO, bigGSO)
	if _, err := h.ctl(t).Detach(h.ctx, "c1", DefaultNetwork); err != nil {
		t.Fatal(err)
	}
	h.attach(t, c1.Path(), "c1")
	want("a new port", bigGSO, bigGSO)
	h.downAll(t)
	if got := size(h.conn, "up0"); got != 98304 {
		t.Errorf("down left the uplink at %d", got)
	}
	if err := h.conn.SetGSO(uplink, link.DefaultGSO); err != nil {
		t.Fatal(err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// An uplink that has gone, or that somebody else has set meanwhile, is left alone.
func TestBigTCPRestoresOnlyItsOwn(t *testing.T) {
	h := newHost(t)
	make := func() int {
		index, _, err := h.conn.CreateVeth(link.Veth{Name: "up0", PeerName: "up1", PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, MTU: 1500})
		if err == nil {
			err = h.conn.AddAddr(index, netip.MustParsePrefix("203.0.113.2/24"))
		}
		if err == nil {
			_, _, err = h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{Uplinks: []string{"up0"}, BigTCP: BigTCPOn})
		}
		if err != nil {
			t.Fatal(err)
		}
		return index
	}
	index := make()
	if err := h.conn.SetGSO(index, 100000); err != nil {
		t.Fatal(err)
	}
	h.downAll(t)
	if d, err := h.conn.ByIndex(index); err != nil || d.GSO != 100000 {
		t.Errorf("%d, %v", d.GSO, err)
	}
	if err := h.conn.Delete(index); err != nil {
		t.Fatal(err)
	}
	index = make()
	if err := h.conn.Delete(index); err != nil {
		t.Fatal(err)
	}
	h.downAll(t)
}
