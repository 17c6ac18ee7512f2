package datapath

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// client is a client's packet to a published port of the host.
func (h *harness) client(proto string, port uint16) testutil.Frame {
	f := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: h.addr.server, Dst: h.addr.ext, Payload: []byte("hello, inside")}
	if proto == "udp" {
		f.UDP = &testutil.UDP{SrcPort: 33333, DstPort: port}
	} else {
		f.TCP = &testutil.TCP{SrcPort: 33333, DstPort: port, SYN: true}
	}
	return f
}

func (h *harness) publication(udp bool) Publication {
	p := Publication{First: 8080, Last: 8089, Port: 80, Proto: unix.IPPROTO_TCP, Ifindex: h.c1.Ifindex, Container: h.addr.c1}
	if udp {
		p.Proto = unix.IPPROTO_UDP
	}
	return p
}

// wantHost asserts that a frame from outside is left to the host as it is.
func (h *harness) wantHost(t *testing.T, what string, f testutil.Frame) {
	t.Helper()
	if got := h.uplinkIn(t, f.Bytes(t)); got.verdict != next || string(got.frame) != string(f.Bytes(t)) {
		t.Errorf("%s: verdict %d, changed: %v; want the host to have it", what, got.verdict, string(got.frame) != string(f.Bytes(t)))
	}
}

// inside is the client's packet as the container receives it.
func (h *harness) inside(f testutil.Frame, port uint16) testutil.Frame {
	return f.With(func(f *testutil.Frame) {
		f.Dst = h.addr.c1
		if f.UDP != nil {
			f.UDP.DstPort = port
		} else {
			f.TCP.DstPort = port
		}
	})
}

// A published port: the container receives the client's packet with the client's
// address, and its answer leaves from the host's port. Later packets of both directions
// take the fast path, byte for byte as on the kernel's path.
func TestPublishedPort(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
			check(t, h.Publish(h.publication(proto == "udp")))
			h.age(t, 0)
			f := h.client(proto, 8083)
			want := h.inside(f, 83)
			got := h.uplinkIn(t, f.Bytes(t))
			if got.verdict != next || string(got.frame) != string(want.Bytes(t)) {
				t.Fatalf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want.Bytes(t))
			}
			answer := h.answerOf(want)
			out := h.fromHost(h.routed(answer), 8083).Bytes(t)
			if got := h.uplinkOut(t, h.routed(answer).Bytes(t), h.bridge); got.verdict != next || string(got.frame) != string(out) {
				t.Fatalf("the answer: verdict %d\n got %x\nwant %x", got.verdict, got.frame, out)
			}
			if f.TCP != nil { // SYN and SYN-ACK never grant a lease
				f.TCP.SYN, f.TCP.ACK, answer.TCP.SYN = false, true, false
				h.uplinkIn(t, f.Bytes(t))
				h.uplinkOut(t, h.routed(answer).Bytes(t), h.bridge)
			}
			h.portOut(t, h.inside(f, 83).With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC = h.gateway, h.c1.MAC }).Bytes(t), h.uplink.Ifindex)
			fast := h.portIn(t, answer.Bytes(t))
			if want := h.fromHost(h.routed(answer), 8083).Bytes(t); fast.verdict != redirect || string(fast.frame) != string(want) {
				t.Errorf("fast answer: verdict %d\n got %x\nwant %x", fast.verdict, fast.frame, want)
			}
			fast = h.uplinkIn(t, f.Bytes(t))
			if want := h.inside(f, 83).With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC, f.TTL = h.gateway, h.c1.MAC, 63 }).Bytes(t); fast.verdict != redirect || string(fast.frame) != string(want) {
				t.Errorf("fast request: verdict %d\n got %x\nwant %x", fast.verdict, fast.frame, want)
			}
			if fl := h.flow(t); fl.NAT != netip.AddrPortFrom(h.addr.ext, 8083) {
				t.Errorf("flow %+v", fl)
			}
			check(t, h.Unpublish(h.publication(proto == "udp")))
			if n := h.live(t); n != 0 {
				t.Errorf("%d sessions of a port that is published no more", n)
			}
			h.wantHost(t, "unpublished", h.client(proto, 8083))
		})
	}
}

// fromHost is a container's packet as it leaves, from this port of the host.
func (h *harness) fromHost(f testutil.Frame, port uint16) testutil.Frame {
	return translated(f, port).With(func(f *testutil.Frame) { f.Src = h.addr.ext })
}

// answerOf is c1's answer to a packet that it has received.
func (h *harness) answerOf(f testutil.Frame) testutil.Frame {
	a := f.With(func(a *testutil.Frame) {
		a.SrcMAC, a.DstMAC, a.Src, a.Dst = h.c1.MAC, h.gateway, f.Dst, f.Src
		if a.UDP != nil {
			a.UDP.SrcPort, a.UDP.DstPort = f.UDP.DstPort, f.UDP.SrcPort
		} else {
			a.TCP.SrcPort, a.TCP.DstPort, a.TCP.ACK = f.TCP.DstPort, f.TCP.SrcPort, true
		}
	})
	return a
}

func TestPublicationLetsInNobodyElse(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, publicationLetsInNobodyElse)
}

func publicationLetsInNobodyElse(t *testing.T, h *harness) {
	allowed, refused, notOurs, loopback := netip.MustParsePrefix("192.0.2.0/28"), mustAddr("192.0.2.77"), mustAddr("198.51.100.9"), mustAddr("127.0.0.1")
	if h.addr.ext.Is6() {
		allowed, _ = h.addr.server.Prefix(125)
		refused, notOurs, loopback = allowed.Addr().Next(), mustAddr("2001:db8:1::9"), netip.IPv6Loopback()
		for allowed.Contains(refused) {
			refused = refused.Next()
		}
	}
	p := h.publication(false)
	p.Allow = allowed
	p.HostAddr = h.addr.ext
	check(t, h.Publish(p))
	h.wantHost(t, "below the range", h.client("tcp", 8079))
	h.wantHost(t, "above the range", h.client("tcp", 8090))
	h.wantHost(t, "another protocol", h.client("udp", 8080))
	h.wantHost(t, "a client that is not allowed", h.client("tcp", 8080).With(func(f *testutil.Frame) { f.Src = refused }))
	h.wantHost(t, "another address", h.client("tcp", 8080).With(func(f *testutil.Frame) { f.Dst = notOurs }))
	h.wantHost(t, "no first packet", h.client("tcp", 8080).With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = false, true }))
	if n := h.live(t); n != 0 {
		t.Errorf("%d sessions", n)
	}
	if got := h.uplinkIn(t, h.client("tcp", 8080).Bytes(t)); string(got.frame) != string(h.inside(h.client("tcp", 8080), 80).Bytes(t)) {
		t.Error("the allowed client is not let in")
	}
	any := h.publication(true)
	check(t, h.Publish(any))
	h.wantDrop(t, h.uplink.Ifindex, "martian", func() result {
		return h.uplinkIn(t, h.client("udp", 8080).With(func(f *testutil.Frame) { f.Dst = loopback }).Bytes(t))
	})
	h.wantHost(t, "an address that is not the host's", h.client("udp", 8080).With(func(f *testutil.Frame) { f.Dst = notOurs }))
}

// gatewayUp gives a bridge its address, so that the kernel has its routes.
func (h *harness) gatewayUp(t *testing.T, bridge int, addr string) {
	t.Helper()
	h.ns.Do(t, func() {
		l, err := netlink.LinkByIndex(bridge)
		check(t, err)
		a, err := netlink.ParseAddr(addr)
		check(t, err)
		check(t, netlink.AddrAdd(l, a))
		check(t, netlink.LinkSetUp(l))
		check(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	})
}

// The kernel accepts packets to a network's broadcast address, but that is no address of
// the host. No published port answers there, neither to outside nor to another network.
func TestNobodyAnswersByABroadcastAddress(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	h.gatewayUp(t, h.bridge2, "172.31.0.1/16")
	check(t, h.Publish(h.publication(true)))
	broadcast := mustAddr("172.31.255.255")
	h.wantDrop(t, h.uplink.Ifindex, "direct", func() result {
		return h.uplinkIn(t, h.client("udp", 8083).With(func(f *testutil.Frame) { f.Dst = broadcast }).Bytes(t))
	})
	h.wantDrop(t, h.c2.Ifindex, "isolated", func() result {
		return h.portInOf(t, h.c2, h.udpOf(h.c2, broadcast.String(), 8083))
	})
	// The gateway's own address is the host's.
	if got := h.portInOf(t, h.c2, h.udpOf(h.c2, "172.31.0.1", 8083)); got.verdict != next {
		t.Errorf("the gateway: verdict %d", got.verdict)
	}
	if got := h.uplinkIn(t, h.client("udp", 8083).With(func(f *testutil.Frame) { f.Dst = mustAddr("172.31.0.1") }).Bytes(t)); got.verdict != next {
		t.Errorf("the gateway, from outside: verdict %d", got.verdict)
	}
}

// After its flow has ended, a server that sends again must not do so from a port that
// its client has never seen.
func TestPublishedPortAnswersFromItsOwnPort(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		check(t, h.Publish(h.publication(true)))
		late := h.routed(h.answerOf(h.inside(h.client("udp", 8080), 80)))
		got := h.uplinkOut(t, late.Bytes(t), h.bridge)
		if want := h.fromHost(late, 8080).Bytes(t); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
		}
	})
}

func TestManyPortsArePublishedAtOnce(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, manyPortsArePublishedAtOnce)
}

func manyPortsArePublishedAtOnce(t *testing.T, h *harness) {
	p := h.publication(true)
	p.First, p.Last, p.Port = 40000, 49999, 40000
	check(t, h.Publish(p))
	check(t, h.Publish(p))
	f := h.client("udp", 49999)
	if got := h.uplinkIn(t, f.Bytes(t)); string(got.frame) != string(h.inside(f, 49999).Bytes(t)) {
		t.Error("the last port does not lead anywhere")
	}
	check(t, h.Unpublish(p))
	check(t, h.Unpublish(p))
	h.wantHost(t, "unpublished", f)
}

// TestPublicationsAreTakenBackTogether withdraws several publications at once, after a
// part of one of them.
func TestPublicationsAreTakenBackTogether(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, publicationsAreTakenBackTogether)
}

func publicationsAreTakenBackTogether(t *testing.T, h *harness) {
	tcp, udp := h.publication(false), h.publication(true)
	check(t, h.Publish(tcp, udp))
	part := tcp
	part.First, part.Last, part.Port = 8083, 8083, 83
	check(t, h.Unpublish(part))
	h.wantHost(t, "unpublished", h.client("tcp", 8083))
	for _, proto := range []string{"tcp", "udp"} {
		h.uplinkIn(t, h.client(proto, 8084).Bytes(t))
	}
	if n := h.live(t); n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
	check(t, h.Unpublish(tcp, udp))
	for _, proto := range []string{"tcp", "udp"} {
		h.wantHost(t, "unpublished", h.client(proto, 8084))
	}
	if k, err := h.object().maps[tcMapFbrPubOf].NextKeyBytes(nil); err != nil || k != nil {
		t.Errorf("fbr_pub_of still has %x, %v", k, err)
	}
	if n := h.live(t); n != 0 {
		t.Errorf("%d sessions of ports that are published no more", n)
	}
}

// Ports of one family say nothing about those of the other: neither to clients, nor when one
// of them is published no more.
func TestPublicationsOfBothFamilies(t *testing.T) {
	six := withIP6(t, newHarness(t, Config{FlowsMax: 64}, nil)).harness
	four := six.speaking(of4)
	check(t, six.Publish(four.publication(false), six.publication(false), six.publication(true)))
	for _, h := range []*harness{four, six} {
		check(t, h.VerifyPublication(h.publication(false)))
		f := h.client("tcp", 8083)
		if got := h.uplinkIn(t, f.Bytes(t)); got.verdict != next || string(got.frame) != string(h.inside(f, 83).Bytes(t)) {
			t.Errorf("%s: verdict %d", h.addr.c1, got.verdict)
		}
	}
	four.wantHost(t, "published by IPv6 only", four.client("udp", 8083))
	check(t, six.Unpublish(four.publication(false)))
	four.wantHost(t, "unpublished", four.client("tcp", 8084))
	if n := six.live(t); n != 1 {
		t.Errorf("%d sessions, want that of IPv6", n)
	}
	check(t, six.VerifyPublication(six.publication(false)))
	if err := six.VerifyPublication(four.publication(false)); !errors.Is(err, ErrDetached) {
		t.Errorf("published no more: %v", err)
	}
	check(t, six.Unpublish(six.publication(false), six.publication(true)))
	six.wantHost(t, "unpublished", six.client("tcp", 8083))
}

// Where no network has IPv6, no port is published by it.
func TestPublishWithoutIPv6(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	if err := h.Publish(h.speaking(of6).publication(false)); err == nil {
		t.Error("no error")
	}
}

// A client with an address of the link only is not let in: the container could not answer.
func TestPublishedToNobodyOfTheLink(t *testing.T) {
	h := withIP6(t, newHarness(t, Config{FlowsMax: 64}, nil))
	check(t, h.Publish(h.publication(true)))
	h.wantHost(t, "a link-local client", h.client("udp", 8080).With(func(f *testutil.Frame) { f.Src = mustAddr("fe80::99") }))
}
