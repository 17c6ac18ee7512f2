package e2e

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// hopLease is so long that a test notices if nothing revokes it.
const hopLease = 15 * time.Second

// hopRig is a host with one flow of a container, whose next hop outside gets other MAC
// addresses.
type hopRig struct {
	*e2e
	flow longFlow
	hop  netip.Addr
}

// upHop starts a flow to the address to, by the next hop, without any process of fastbr.
func upHop(t *testing.T, to func(h *e2e) netip.Addr, hop func(h *e2e) netip.Addr, upArgs ...string) hopRig {
	t.Helper()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1}, append([]string{"--lease", hopLease.String()}, upArgs...)...)
	server := on(to(h), 7)
	h.ServeUDP(t, h.Outside, server)
	return hopRig{h, h.longFlow(t, server), hop(h)}
}

// moves gives the next hop another MAC address. The host knows nothing of it yet.
func (r hopRig) moves(t *testing.T, mac net.HardwareAddr) {
	t.Helper()
	if _, err := r.Outside.Run(r.Ctx, "ip", "link", "set", "eth0", "address", mac.String()); err != nil {
		t.Fatal(err)
	}
}

// says sends an ARP packet to everybody: addr is at mac. An answer that names mac as its
// target, too, is gratuitous (RFC 5944 section 4.6). Any other one the kernel ignores
// within locktime, a second, of the entry's last change (arp_process()).
func (r hopRig) says(t *testing.T, addr netip.Addr, mac net.HardwareAddr, reply bool) {
	t.Helper()
	a := testutil.ARP{SrcMAC: mac, DstMAC: everybody, SenderMAC: mac, SenderIP: addr, TargetIP: addr, Reply: reply}
	if reply {
		a.TargetMAC = mac
	}
	if err := r.Outside.Inject("eth0", a.Bytes(t)); err != nil {
		t.Fatal(err)
	}
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func gatewayHop(h *e2e) netip.Addr { return h.OutsideAddr(0) }

// TestE2EGatewayMoves gives a gateway another MAC address, which it announces. A flow
// goes on long before its lease ends, as it would through a kernel bridge.
func TestE2EGatewayMoves(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		to   func(h *e2e) netip.Addr
		up   []string
	}{
		{"by a gateway", func(h *e2e) netip.Addr { return h.Outside.Addr }, nil},
		{"to a neighbour, with XDP", gatewayHop, []string{"--xdp", "native"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := upHop(t, c.to, gatewayHop, c.up...)
			for i, change := range []struct {
				what string
				do   func(mac net.HardwareAddr)
			}{
				{"announcement", func(mac net.HardwareAddr) { r.says(t, r.hop, mac, false) }},
				{"gratuitous answer", func(mac net.HardwareAddr) { r.says(t, r.hop, mac, true) }},
				{"neighbour table", func(mac net.HardwareAddr) {
					if _, err := r.Host.Run(r.Ctx, "ip", "neigh", "replace", r.hop.String(), "lladdr", mac.String(), "dev", "eth0"); err != nil {
						t.Fatal(err)
					}
				}},
			} {
				mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
				r.wantRevoked(t, r.flow, change.what, func() {
					r.moves(t, mac)
					change.do(mac)
				})
				r.flow.recovers(t, "after the "+change.what)
			}
		})
	}
}

// TestE2EGatewayMovesByIPv6 is the same for a gateway that is known by an IPv6 address
// (RFC 5549).
func TestE2EGatewayMovesByIPv6(t *testing.T) {
	t.Parallel()
	const hop = "fe80::77"
	r := upHop(t, func(h *e2e) netip.Addr {
		mac, err := h.Outside.MAC("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0"},
			{"ip", "neigh", "replace", hop, "lladdr", mac.String(), "dev", "eth0"},
			{"ip", "-4", "route", "replace", "default", "via", "inet6", hop, "dev", "eth0"},
		} {
			if _, err := h.Host.Run(h.Ctx, args...); err != nil {
				t.Fatal(err)
			}
		}
		return h.Outside.Addr
	}, gatewayHop)
	mac := net.HardwareAddr{2, 0, 0, 0, 1, 9}
	r.wantRevoked(t, r.flow, "neighbour table", func() {
		r.moves(t, mac)
		if _, err := r.Host.Run(r.Ctx, "ip", "neigh", "replace", hop, "lladdr", mac.String(), "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	})
	r.flow.recovers(t, "afterwards")
}

// TestE2ENeighbourRevokesNothing sends ARP packets that do not concern a flow: one repeats
// its next hop's MAC address, and others give a neighbour that is not its next hop ever
// new ones. The flow stays on the fast path.
func TestE2ENeighbourRevokesNothing(t *testing.T) {
	t.Parallel()
	r := upHop(t, func(h *e2e) netip.Addr { return h.Outside.Addr }, gatewayHop)
	other := netip.MustParsePrefix("198.51.100.77/24")
	if err := r.Outside.AddAddr("eth0", other); err != nil {
		t.Fatal(err)
	}
	r.mustPing(t, r.Host, other.Addr(), lab.PingOptions{})
	mac, err := r.Outside.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	fast := func() uint64 { return r.ports(t)["c1"].FastPackets }
	slow := func() uint64 { return r.ports(t)["c1"].SlowPackets }
	waitFor(t, r.Ctx, "the fast path", func() bool {
		before := fast()
		return r.flow.answered() && fast() >= before+2
	})
	// A lease may end by itself meanwhile, hence many tries: each revoked lease would
	// send a datagram to the kernel in each direction.
	const tries = 40
	before := slow()
	for i := range tries {
		r.says(t, r.hop, mac, i%2 == 0)
		r.says(t, other.Addr(), net.HardwareAddr{2, 0, 0, 0, 2, byte(i)}, i%2 == 0)
		if !r.flow.answered() {
			t.Error("no answer")
		}
	}
	if n := slow() - before; n > tries {
		t.Errorf("%d of %d packets took the kernel's path", n, 2*tries)
	}
}
