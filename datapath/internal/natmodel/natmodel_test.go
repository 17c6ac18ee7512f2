package natmodel

import (
	"net/netip"
	"testing"
)

// family is the addresses of a world.
type family struct {
	subnet          netip.Prefix
	outside, public Addr
}

var (
	ip4 = family{netip.MustParsePrefix("172.30.0.0/16"), netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("198.51.100.1")}
	ip6 = family{netip.MustParsePrefix("fd00::/64"), netip.MustParseAddr("2001:db8:2::11"), netip.MustParseAddr("2001:db8::1")}

	inside, outside, public = nth(ip4.subnet.Addr(), 2), ip4.outside, ip4.public
)

// nth is the address n behind a.
func nth(a Addr, n int) Addr {
	for range n {
		a = a.Next()
	}
	return a
}

// small returns a NAT of few ports and slots with two containers.
func small(policy Policy) (*NAT, []*Device) { return ip4.small(policy) }

func (f family) small(policy Policy) (*NAT, []*Device) {
	cfg := Config{
		HZ: 100, FlowsMax: 12, FlowsQuota: 9, PortsQuota: 6, HalfQuota: 3, WaitingMax: 2, First: 10000, Count: 8,
		UDPOneway: 120, UDPTwoway: 300, UDPDNS: 20, ICMPQuery: 60,
		TCPOpen: 240, TCPEstablished: 86400, TCPHalf: 7440, TCPClosing: 240, TCPWaiting: 60, UDPWaiting: 30, Hold: 120,
	}
	n := New(cfg)
	n.Now, n.Lease, n.Uplink, n.Route = 1<<20, 1000, f.public, f.public
	state := uint32(1)
	n.Random = func() uint32 { state = state*1664525 + 1013904223; return state >> 8 }
	net := &Network{Bridge: 1, Subnet: f.subnet, Gateway: nth(f.subnet.Addr(), 1), Policy: policy}
	n.Networks = []*Network{net}
	var devs []*Device
	for i := range 2 {
		d := &Device{Ifindex: 2 + i, IP: nth(f.subnet.Addr(), 2+i), Net: net}
		n.Devices[d.Ifindex] = d
		devs = append(devs, d)
	}
	return n, devs
}

func udp(port uint16) Packet {
	return Packet{Kind: Ports, Proto: UDP, Src: inside, Dst: outside, SPort: port, DPort: 9999, TTL: 64}
}

// answer returns the answer to a packet as it left.
func answer(p Packet) Packet {
	p.Src, p.Dst, p.SPort, p.DPort = p.Dst, p.Src, p.DPort, p.SPort
	if p.Kind == EchoRequest {
		p.Kind = EchoReply
	}
	return p
}

func TestMappingFollowsThePolicy(t *testing.T) {
	for _, edm := range []bool{false, true} {
		n, _ := small(Policy{EDM: edm})
		p := udp(40000)
		a := n.UplinkOut(1, p, false)
		p.Dst = p.Dst.Next()
		b := n.UplinkOut(1, p, false)
		if a.Packet.Src != public || (a.Packet.SPort == b.Packet.SPort) == edm {
			t.Errorf("EDM %v: ports %d and %d", edm, a.Packet.SPort, b.Packet.SPort)
		}
	}
}

func TestPortsAreKeptAndReleasedLast(t *testing.T) {
	n, _ := small(Policy{})
	if v := n.UplinkOut(1, udp(10005), false); v.Packet.SPort != 10005 {
		t.Errorf("port %d, want its own", v.Packet.SPort)
	}
	first := n.UplinkOut(1, udp(40000), false).Packet.SPort
	n.Flush(nil)
	for i := range uint16(5) {
		if v := n.UplinkOut(1, udp(41000+i), false); v.Packet.SPort == first {
			t.Errorf("port %d is used again before the others", first)
		}
	}
}

func TestSessionsEnd(t *testing.T) {
	for _, c := range []struct {
		port    uint16
		replied bool
		secs    uint64
	}{{9999, false, 120}, {9999, true, 300}, {53, true, 20}} {
		n, _ := small(Policy{})
		p := udp(40000)
		p.DPort = c.port
		out := n.UplinkOut(1, p, false).Packet
		if c.replied {
			n.UplinkIn(answer(out))
		}
		n.Now += c.secs*n.HZ - 1
		if n.inbound(answer(out).Tuple()) == nil {
			t.Errorf("%+v: ended early", c)
		}
		n.Now++
		if n.inbound(answer(out).Tuple()) != nil {
			t.Errorf("%+v: still there", c)
		}
	}
}

func TestExhaustion(t *testing.T) {
	for _, strict := range []bool{false, true} {
		n, _ := small(Policy{Strict: strict})
		for i := range uint16(8) {
			p := udp(40000 + i)
			if i >= 4 {
				p.Src = inside.Next()
			}
			if v := n.UplinkOut(1, p, false); v.Action != Next {
				t.Fatalf("port %d: %+v", i, v)
			}
		}
		p := udp(50000)
		p.Dst = p.Dst.Next()
		v := n.UplinkOut(1, p, false)
		if (v.Action == Next) == strict || strict && (v.Action != Redirect || v.Packet.Code != 13) {
			t.Errorf("strict %v: %+v", strict, v)
		}
	}
}

func TestNoLeaseOutlivesItsSession(t *testing.T) {
	n, devs := small(Policy{EIF: true})
	n.Lease = 3000 // longer than the session lives
	p := udp(40000)
	p.DPort = 53
	out := n.UplinkOut(1, p, false).Packet
	n.Now += 10 * n.HZ
	in := n.UplinkIn(answer(out))
	n.PortOut(devs[0], in.Packet)
	if v := n.UplinkIn(answer(out)); v.Action != Redirect {
		t.Errorf("%+v, want the fast path", v)
	}
	n.Now += 10 * n.HZ
	if v := n.UplinkIn(answer(out)); v.Action == Redirect {
		t.Errorf("%+v: the lease is longer than the session", v)
	}
}
