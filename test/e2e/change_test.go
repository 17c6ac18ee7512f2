package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// shortLease makes leases short, so that changes take effect soon.
func (h *e2e) shortLease(t *testing.T) {
	t.Helper()
	if h.Mode.Name == "fast" {
		h.Must(t, "up", "--lease", "1s")
	}
}

// longFlow is a UDP flow of c1 that outlives the changes of a test.
type longFlow struct {
	h    *e2e
	sock *net.UDPConn
	to   netip.AddrPort
}

func (h *e2e) longFlow(t *testing.T, to netip.AddrPort) longFlow {
	t.Helper()
	c, err := h.Containers[0].ListenUDP(on(netip.IPv4Unspecified(), 25000))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	f := longFlow{h, c, to}
	f.recovers(t, "at first")
	return f
}

// answered reports whether a datagram is answered. It ignores late answers to earlier
// ones.
func (f longFlow) answered() bool {
	msg := fmt.Appendf(nil, "%d", time.Now().UnixNano())
	if _, err := f.sock.WriteToUDPAddrPort(msg, f.to); err != nil {
		return false
	}
	_ = f.sock.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	for buf := make([]byte, 100); ; {
		n, err := f.sock.Read(buf)
		if err != nil || bytes.Equal(buf[:n], msg) {
			return err == nil
		}
	}
}

// recovers waits until the flow works in both directions. From then on every datagram
// must be answered.
func (f longFlow) recovers(t *testing.T, what string) {
	t.Helper()
	waitFor(t, f.h.Ctx, "the flow "+what, f.answered)
}

// moves waits until the flow comes from addr, once its lease has ended.
func (f longFlow) moves(t *testing.T, s *lab.Server, addr netip.Addr) {
	t.Helper()
	sum := func() (n int) {
		for p, k := range s.Peers() {
			if p.Addr() == addr {
				n += k
			}
		}
		return n
	}
	before := sum()
	waitFor(t, f.h.Ctx, "the flow to move to "+addr.String(), func() bool { return f.answered() && sum() > before })
}

// newFlows checks that new flows work, and come from addr.
func (f longFlow) newFlows(t *testing.T, what string, s *lab.Server, addr netip.Addr) {
	t.Helper()
	before := s.Peers()
	if err := f.h.Containers[0].EchoUDP(f.h.Ctx, netip.AddrPort{}, f.to, what); err != nil {
		t.Errorf("a new flow %s: %v", what, err)
	}
	for p := range s.Peers() {
		if _, old := before[p]; !old && p.Addr() != addr && p.Port() != 25000 {
			t.Errorf("a new flow %s came from %v, want %v", what, p, addr)
		}
	}
}

// nothingFrom checks that a working flow sends nothing with an address that the host no
// longer has.
func (f longFlow) nothingFrom(t *testing.T, out *lab.Namespace, old netip.Addr) {
	t.Helper()
	w := newWitness(t, out, "eth0", func(b []byte) bool {
		return len(b) > 34 && b[12] == 8 && b[13] == 0 && netip.AddrFrom4([4]byte(b[26:30])) == old
	})
	for range 3 {
		f.recovers(t, "afterwards")
	}
	f.h.sendClosing(t, f.h.Containers[0], out)
	w.assertClean(t, f.h.Ctx, isClosing)
}

// TestE2EUplinkAddressChanges gives the uplink other addresses. It also takes its
// address, its link and its gateway away and gives them back. No process of fastbr
// watches.
func TestE2EUplinkAddressChanges(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		h.shortLease(t)
		s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		f := h.longFlow(t, s.Addr)
		first := netip.PrefixFrom(h.HostAddr(0), 24)
		gw := h.OutsideAddr(0)

		second := netip.MustParsePrefix("198.51.100.77/24")
		h.Readdress(t, first, second, gw)
		f.newFlows(t, "with another address of the subnet", s, second.Addr())
		f.moves(t, s, second.Addr())
		f.nothingFrom(t, h.Outside, first.Addr())

		third := netip.MustParsePrefix("203.0.113.77/24")
		if err := h.Outside.AddAddr("eth0", netip.MustParsePrefix("203.0.113.78/24")); err != nil {
			t.Fatal(err)
		}
		h.Readdress(t, second, third, netip.MustParseAddr("203.0.113.78"))
		f.newFlows(t, "with an address of another subnet", s, third.Addr())
		f.moves(t, s, third.Addr())
		f.nothingFrom(t, h.Outside, second.Addr())

		// The address goes and comes back: the mapping is the same.
		if err := h.Host.DelAddr("eth0", third); err != nil {
			t.Fatal(err)
		}
		waitFor(t, h.Ctx, "the flow to stop without an address", func() bool { return !f.answered() })
		known := s.Peers()
		if err := errors.Join(h.Host.AddAddr("eth0", third), h.Host.AddRoute(netip.Prefix{}, netip.MustParseAddr("203.0.113.78"))); err != nil {
			t.Fatal(err)
		}
		f.recovers(t, "when the address is back")
		// Down and up: addresses stay, routes are lost.
		if err := h.Host.SetDown("eth0"); err != nil {
			t.Fatal(err)
		}
		if f.answered() {
			t.Error("an answer came although the link is down")
		}
		if err := errors.Join(h.Host.SetUp("eth0"), h.Host.AddRoute(netip.Prefix{}, netip.MustParseAddr("203.0.113.78"))); err != nil {
			t.Fatal(err)
		}
		f.recovers(t, "when the link is back")
		for p := range s.Peers() {
			if _, old := known[p]; !old {
				t.Errorf("the flow has become %v; known before were %v", p, known)
			}
		}

		// Another gateway takes over the address and announces itself.
		if err := h.Outside.SetSysctl("net.ipv4.conf.eth0.arp_notify", "1"); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Outside.Run(h.Ctx, "ip", "link", "set", "eth0", "address", "02:00:00:00:77:01"); err != nil {
			t.Fatal(err)
		}
		f.recovers(t, "with another gateway")
	})
}

// TestE2EUplinkRouteMoves moves the default route to another uplink, and changes the
// MTU of the route.
func TestE2EUplinkRouteMoves(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1, Uplinks: 2}, "--uplink", "eth0", "--uplink", "eth1")
		h.shortLease(t)
		// An address that is served beyond both uplinks.
		if err := h.Outsides[1].AddAddr("eth0", netip.PrefixFrom(h.Outside.Addr, 32)); err != nil {
			t.Fatal(err)
		}
		h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		s := h.ServeUDP(t, h.Outsides[1], on(h.Outside.Addr, 7))
		f := h.longFlow(t, s.Addr)
		ip := func(args ...string) {
			t.Helper()
			if _, err := h.Host.Run(h.Ctx, append([]string{"ip", "route", "replace", "default", "via"}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
		ip(h.OutsideAddr(1).String(), "dev", "eth1")
		f.newFlows(t, "by the other uplink", s, h.HostAddr(1))
		f.moves(t, s, h.HostAddr(1))
		assertPeers(t, s, h.HostAddr(1))

		ip(h.OutsideAddr(1).String(), "dev", "eth1", "mtu", "1300")
		h.wantPathMTU(t, f.to)
		f.recovers(t, "with a smaller MTU")
	})
}

// wantPathMTU sends datagrams of 1400 bytes with DF until the container's kernel has
// learnt that they are too long.
func (h *e2e) wantPathMTU(t *testing.T, to netip.AddrPort) {
	t.Helper()
	c, err := h.Containers[0].DialUDP(netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER, syscall.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, h.Ctx, "the container to learn of the smaller MTU", func() bool {
		_, err := c.Write(make([]byte, 1400))
		time.Sleep(10 * time.Millisecond)
		return errors.Is(err, syscall.EMSGSIZE)
	})
}

// TestE2EUplinkReplaced deletes an uplink's device and makes it again. The next command
// attaches it, or serve does so by itself. Until then nothing leaves by it.
func TestE2EUplinkReplaced(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	far, err := h.Add("far")
	if err != nil {
		t.Fatal(err)
	}
	server := netip.MustParseAddr("192.0.2.99")
	if err := far.AddAddr("lo", netip.PrefixFrom(server, 32)); err != nil {
		t.Fatal(err)
	}
	s := h.ServeUDP(t, far, on(server, 7))
	plug := func() {
		t.Helper()
		err := errors.Join(lab.Veth(h.Host, "wan0", far, "eth0", 1500),
			h.Host.AddAddr("wan0", netip.MustParsePrefix("203.0.113.1/24")),
			far.AddAddr("eth0", netip.MustParsePrefix("203.0.113.2/24")),
			h.Host.AddRoute(netip.PrefixFrom(server, 32), netip.MustParseAddr("203.0.113.2")),
			h.Watch("wan0", far, "eth0"))
		if err != nil {
			t.Fatal(err)
		}
	}
	unplug := func() {
		t.Helper()
		h.AssertNoLeak(t)
		last := len(h.Captures) - 1
		h.Captures[last].Close()
		h.Captures = h.Captures[:last]
		if err := h.Host.DelLink("wan0"); err != nil {
			t.Fatal(err)
		}
	}
	plug()
	h.Must(t, "up", "--uplink", "eth0", "--uplink", "wan0")
	h.Attach(t, h.Containers[0], "c1")
	to := on(server, 7)
	f := h.longFlow(t, to)
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{})

	unplug()
	if r := h.Fastbr(t, "up"); r.Code != 1 || !strings.Contains(r.Stderr, "wan0") {
		t.Errorf("up without its uplink: exit %d, %q; want 1 and its name", r.Code, r.Stderr)
	}
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{}) // the other works
	plug()
	before := h.drops(t, "no_uplink")
	h.noPing(t, h.Containers[0], server)
	h.waitDrops(t, "no_uplink", before, 1)
	h.Must(t, "up")
	f.recovers(t, "after a command")
	assertPeers(t, s, netip.MustParseAddr("203.0.113.1"))

	h.serve(t)
	unplug()
	plug()
	f.recovers(t, "with serve, without a command")
}

// TestE2EServeFollowsUplink makes changes that a lease would hide for more than eleven
// seconds. With serve, the lease ends at once.
func TestE2EServeFollowsUplink(t *testing.T) {
	t.Parallel()
	const lease = 15 * time.Second
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2}, "--uplink", "eth0", "--uplink", "eth1", "--lease", lease.String())
	if err := h.Outsides[1].AddAddr("eth0", netip.PrefixFrom(h.Outside.Addr, 32)); err != nil {
		t.Fatal(err)
	}
	h.serve(t)
	h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
	s := h.ServeUDP(t, h.Outsides[1], on(h.Outside.Addr, 7))
	f := h.longFlow(t, s.Addr)
	ip := func(args ...string) func() {
		return func() {
			t.Helper()
			if _, err := h.Host.Run(h.Ctx, append([]string{"ip"}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"route", ip("route", "replace", "default", "via", h.OutsideAddr(1).String(), "dev", "eth1")},
		{"address", ip("addr", "add", "203.0.113.50/32", "dev", "eth1")},
		{"gateway", ip("neigh", "replace", h.OutsideAddr(1).String(), "lladdr", "02:00:00:00:00:99", "dev", "eth1")},
		{"link", ip("link", "set", "eth1", "down")},
	} {
		h.wantRevoked(t, f, c.what, c.do)
		if c.what == "gateway" {
			ip("neigh", "del", h.OutsideAddr(1).String(), "dev", "eth1")()
			f.recovers(t, "with the old gateway")
		}
	}
	ip("link", "set", "eth1", "up")()
}

// wantRevoked waits until a flow has a fresh lease, makes a change, and checks that the
// lease ends before its time.
func (h *e2e) wantRevoked(t *testing.T, f longFlow, what string, change func()) {
	t.Helper()
	lease := func() int64 {
		for _, v := range h.Flows(t) {
			if strings.HasSuffix(v.Src, ":25000") && v.LeaseS > 0 {
				return int64(v.LeaseS)
			}
		}
		return 0
	}
	var left int64
	waitFor(t, h.Ctx, "a lease before the change of the "+what, func() bool {
		f.answered()
		left = lease()
		return left > 8
	})
	end := time.Now().Add(time.Duration(left-2) * time.Second)
	change()
	for lease() > 0 { // nothing is sent meanwhile, so nothing renews it
		if time.Now().After(end) {
			t.Errorf("the change of the %s did not end a lease of %d s", what, left)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestE2EUplinkAddressInSubnet gives the uplink an address inside the bridge's subnet.
// The conflict is reported, and neither the host nor a container is cut off.
func TestE2EUplinkAddressInSubnet(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1, Private: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24")}})
		h.shortLease(t)
		s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		f := h.longFlow(t, s.Addr)
		addr, gw := netip.MustParsePrefix("172.30.5.9/24"), netip.MustParseAddr("172.30.5.1")
		if err := h.Outside.AddAddr("eth0", netip.PrefixFrom(gw, 24)); err != nil {
			t.Fatal(err)
		}
		h.Readdress(t, netip.PrefixFrom(h.HostAddr(0), 24), addr, gw)
		everybody := func(when string) {
			t.Helper()
			f.recovers(t, when)
			f.newFlows(t, when, s, addr.Addr())
			h.mustPing(t, h.Host, h.Outside.Addr, lab.PingOptions{Count: 1})
			h.mustPing(t, h.Host, gw, lab.PingOptions{Count: 1})
			h.mustPing(t, h.Outside, addr.Addr(), lab.PingOptions{Count: 1})
			h.wantSocketError(t, h.Outside, on(addr.Addr(), 9), syscall.ECONNREFUSED)
		}
		everybody("before a command has seen the address")
		const told = "172.30.5.9 of uplink eth0 lies in subnet 172.30.0.0/16"
		if r := h.Fastbr(t, "check"); !strings.Contains(r.Stdout, told) {
			t.Errorf("check does not tell of the conflict: %q", r.Stdout)
		}
		if r := h.Fastbr(t, "up"); r.Code != 0 || !strings.Contains(r.Stderr, told) {
			t.Errorf("up: exit %d, %q; want 0 and the conflict", r.Code, r.Stderr)
		}
		var v ctl.StatusView
		h.JSON(t, &v, "status")
		if !strings.Contains(strings.Join(v.Notes, "\n"), told) {
			t.Errorf("status does not tell of the conflict: %q", v.Notes)
		}
		everybody("after a command has seen the address")
		h.noPing(t, h.Outside, h.Containers[0].Addr)
	})
}
