package datapath

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

// addVethAt is addVeth with a given ifindex.
func addVethAt(t testing.TB, name string, index int) int {
	t.Helper()
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, Index: index}, PeerName: name + "p"}))
	for _, n := range []string{name, name + "p"} {
		l, err := netlink.LinkByName(n)
		check(t, err)
		check(t, netlink.LinkSetUp(l))
	}
	return index
}

// An uplink and a bridge may have an ifindex that falls on the slot of a port. They
// then do all that others do, and none is in another's way, whichever goes first. A
// port may not, and the error says so: its ifindex can be chosen.
func TestSlotIsShared(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	index := addVethAt(t, "up9", h.c1.Ifindex+MaxDevices)
	up := Uplink{Ifindex: index, Addr: netip.MustParseAddr("203.0.113.1"), MTU: 1500}
	l, err := netlink.LinkByIndex(index)
	check(t, err)
	addr, err := netlink.ParseAddr(up.Addr.String() + "/24")
	check(t, err)
	check(t, netlink.AddrAdd(l, addr))
	check(t, netlink.RouteReplace(&netlink.Route{LinkIndex: index, Gw: net.IPv4(203, 0, 113, 2)}))
	check(t, h.AttachUplink(up))
	check(t, h.AttachUplink(up)) // again
	check(t, h.VerifyUplink(up))
	check(t, h.VerifyPort(h.c1))

	frame := testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.outsideHW, Src: c1Addr, Dst: server, UDP: &testutil.UDP{SrcPort: 1, DstPort: 2}}.Bytes(t)
	translated := func() {
		t.Helper()
		got := h.run(t, h.progs.FbrUplinkOut, frame, index, h.bridge)
		if got.verdict != next || netip.AddrFrom4([4]byte(got.frame[26:30])) != up.Addr {
			t.Errorf("by an uplink in a second slot: verdict %d, source %v", got.verdict, got.frame[26:30])
		}
	}
	translated()
	stats, err := h.Stats(index, h.c1.Ifindex)
	check(t, err)
	if stats[index].TX.SlowPackets != 1 {
		t.Errorf("counters of an uplink in a second slot: %+v", stats[index])
	}
	all, err := h.Devices()
	check(t, err)
	seen := map[int]int{}
	for _, i := range all {
		seen[i]++
	}
	if seen[index] != 1 || seen[h.c1.Ifindex] != 1 {
		t.Errorf("devices: %v", all)
	}

	check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.29.0.0/16"), Gateway: netip.MustParseAddr("172.29.0.1"),
		Bridge: h.c1.Ifindex + 2*MaxDevices, Masquerade: true}))
	clash := h.c1
	clash.Ifindex += 3 * MaxDevices
	if err := h.AttachPort(clash); !errors.Is(err, ErrSlotTaken) {
		t.Errorf("a port whose slot is taken: %v, want ErrSlotTaken", err)
	}
	check(t, h.AttachPort(h.c1)) // restores what the refused port has overwritten

	// The port is detached. The uplink stays, and the slot is free.
	check(t, h.DetachPort(h.c1.Ifindex))
	check(t, h.VerifyUplink(up))
	check(t, h.AttachPort(h.c1))
	translated()
	check(t, h.DetachUplink(index))
	if err := h.VerifyUplink(up); !errors.Is(err, ErrDetached) {
		t.Errorf("an uplink that was detached: %v", err)
	}
	check(t, h.VerifyPort(h.c1))
	check(t, h.DeleteNetwork(h.c1.Ifindex+2*MaxDevices))
}

// TestPlainIsBounded: more excepted destinations than there is room for are refused as that.
func TestPlainIsBounded(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	n := Network{Subnet: netip.MustParsePrefix("172.29.0.0/16"), Gateway: netip.MustParseAddr("172.29.0.1"), Bridge: h.bridge + 2*MaxDevices, Masquerade: true}
	for i := range h.maps.FbrPlain.MaxEntries() + 1 {
		n.Plain = append(n.Plain, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	if err := h.SetNetwork(n); !errors.Is(err, ErrTooMany) {
		t.Errorf("one too many: %v", err)
	}
	n.Plain = n.Plain[1:]
	check(t, errors.Join(h.DeleteNetwork(n.Bridge), h.SetNetwork(n)))
}
