package testutil

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	ip6A  = netip.MustParseAddr("fd00::2")
	ip6B  = netip.MustParseAddr("2001:db8::11")
	group = netip.MustParseAddr("ff02::1")
)

func valid6() Frame { return valid().With(func(f *Frame) { f.Src, f.Dst = ip6A, ip6B }) }

// message6 is a frame with an ICMPv6 message.
func message6(m *ICMP6) Frame {
	return valid6().With(func(f *Frame) { f.TCP, f.Payload, f.Msg = nil, nil, m })
}

// TestFrame6 has each kind of IPv6 packet read by gopacket.
func TestFrame6(t *testing.T) {
	link := SourceLink(macA)
	for name, c := range map[string]struct {
		f    Frame
		want []gopacket.LayerType // behind IPv6
		hops uint8
	}{
		"tcp":  {valid6(), []gopacket.LayerType{layers.LayerTypeTCP}, 64},
		"udp":  {valid6().With(func(f *Frame) { f.TCP, f.UDP, f.TTL = nil, &UDP{1, 2}, 3 }), []gopacket.LayerType{layers.LayerTypeUDP}, 3},
		"echo": {valid6().With(func(f *Frame) { f.TCP, f.Echo = nil, &Echo{ID: 7} }), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeICMPv6Echo}, 64},
		"error": {valid6().With(func(f *Frame) { f.TCP, f.ICMP = nil, &ICMPError{Type: 2, MTU: 1280, Inner: valid6().IP(t)} }),
			[]gopacket.LayerType{layers.LayerTypeICMPv6}, 64},
		"ns":       {message6(NeighborSolicitation(ip6B, link)), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeICMPv6NeighborSolicitation}, 255},
		"na":       {message6(NeighborAdvertisement(ip6A, NAOverride, TargetLink(macA))), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeICMPv6NeighborAdvertisement}, 255},
		"rs":       {message6(RouterSolicitation(link)), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeICMPv6RouterSolicitation}, 255},
		"ra":       {message6(RouterAdvertisement(1800, PrefixOption(netip.MustParsePrefix("fd00::/64")))), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeICMPv6RouterAdvertisement}, 255},
		"redirect": {message6(Redirect(ip6A, ip6B, TargetLink(macA))), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeICMPv6Redirect}, 255},
		"mld": {message6(MLDReport(group)).With(func(f *Frame) { f.Ext = []Ext{RouterAlert()} }),
			[]gopacket.LayerType{layers.LayerTypeIPv6HopByHop, layers.LayerTypeICMPv6, layers.LayerTypeMLDv2MulticastListenerReport}, 1},
		"query": {message6(MLDQuery(group)), []gopacket.LayerType{layers.LayerTypeICMPv6, layers.LayerTypeMLDv1MulticastListenerQuery}, 1},
		"extensions": {valid6().With(func(f *Frame) {
			f.Ext = []Ext{Options(HopByHop), Options(DestOptions, 30, 1, 0), RoutingHeader(4, 0, ip6B), FragmentHeader(0, false, 9), Options(DestOptions, 1, 0, 1, 0, 0)}
		}), []gopacket.LayerType{layers.LayerTypeIPv6HopByHop, layers.LayerTypeIPv6Destination, layers.LayerTypeIPv6Routing, layers.LayerTypeIPv6Fragment,
			gopacket.LayerTypeFragment}, 64},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.f.Bytes(t)
			if err := CheckSums(b); err != nil {
				t.Errorf("%v\n% x", err, b)
			}
			if src, dst := Addresses(b); src != c.f.Src || dst != c.f.Dst {
				t.Errorf("addresses %v, %v", src, dst)
			}
			var got []gopacket.LayerType
			p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
			for _, l := range p.Layers()[2:] {
				if l.LayerType() != gopacket.LayerTypePayload {
					got = append(got, l.LayerType())
				}
			}
			if !slices.Equal(got, c.want) || p.ErrorLayer() != nil {
				t.Errorf("layers %v, want %v (%v)\n% x", got, c.want, p.ErrorLayer(), b)
			}
			if ip, ok := p.Layers()[1].(*layers.IPv6); !ok || ip.HopLimit != c.hops || int(ip.Length) != len(b)-54 {
				t.Errorf("IPv6 header %+v, want hop limit %d, length %d", ip, c.hops, len(b)-54)
			}
		})
	}
}

func TestJumboHasNoLength(t *testing.T) {
	b := valid6().With(func(f *Frame) { f.Ext, f.Payload = []Ext{Jumbo()}, make([]byte, 3000) }).Bytes(t)
	if got := binary.BigEndian.Uint16(b[18:]); got != 0 {
		t.Errorf("length %d", got)
	}
	if got := binary.BigEndian.Uint32(b[58:]); int(got) != len(b)-54 {
		t.Errorf("jumbo length %d, want %d", got, len(b)-54)
	}
	if err := CheckSums(b); err != nil {
		t.Error(err)
	}
}

func TestFragmentsJoin(t *testing.T) {
	long := func(f *Frame) { f.Payload = bytes.Repeat([]byte("payload "), 300) }
	for name, f := range map[string]Frame{
		"IPv4":         valid().With(long),
		"IPv6":         valid6().With(long),
		"hop by hop":   valid6().With(long, func(f *Frame) { f.Ext = []Ext{RouterAlert(), RoutingHeader(4, 0, ip6B)} }),
		"options last": valid6().With(long, func(f *Frame) { f.Ext = []Ext{Options(DestOptions)} }),
	} {
		t.Run(name, func(t *testing.T) {
			whole := f.Bytes(t)
			frags := Fragments(t, whole, 1200, 77)
			if len(frags) < 2 || FragmentID(frags[1]) != 77 {
				t.Fatalf("%d fragments", len(frags))
			}
			joined, err := Join(frags...)
			if err != nil {
				t.Fatal(err)
			}
			if !isIPv6(whole) { // an IPv4 header keeps the id
				f.ID = 77
				whole = f.Bytes(t)
			}
			if !bytes.Equal(joined, whole) {
				t.Errorf("joined\n% x\nwant\n% x", joined[:80], whole[:80])
			}
			for wrong, list := range map[string][][]byte{
				"order": {frags[1], frags[0]}, "missing": frags[:1], "ids": {frags[0], Fragments(t, whole, 1200, 78)[1]},
			} {
				if _, err := Join(list...); err == nil {
					t.Errorf("%s: no error", wrong)
				}
			}
		})
	}
}

func TestAddressesOfGroupsAndLinks(t *testing.T) {
	for got, want := range map[string]string{
		SolicitedNode(ip6B).String():                          "ff02::1:ff00:11",
		GroupMAC(SolicitedNode(ip6B)).String():                "33:33:ff:00:00:11",
		GroupMAC(netip.MustParseAddr("239.129.1.2")).String(): "01:00:5e:01:01:02",
		LinkLocal(macA).String():                              "fe80::42:acff:fe1e:2",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
