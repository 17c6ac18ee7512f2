package lab_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// newLab builds a lab that must end without a leak, unless leaky is called.
func newLab(t *testing.T, o lab.Options) (*lab.Lab, context.Context) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, ctx
}

func assertNoLeak(t *testing.T, l *lab.Lab) {
	t.Helper()
	leaks, err := l.Leaks()
	if err != nil {
		t.Error(err)
	}
	for _, k := range leaks {
		t.Errorf("leak: %v", k)
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func TestPlainLabCarriesTraffic(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 2, Plain: true, Uplinks: 2})
	c1, c2 := l.Containers[0], l.Containers[1]
	for _, to := range append(l.Servers(), c2.Addr, l.HostAddr(0)) {
		r, err := c1.Ping(ctx, to, lab.PingOptions{})
		if err != nil || r.Received != r.Sent {
			t.Errorf("ping %v: %+v, %v", to, r, err)
		}
	}
	for i, out := range l.Outsides {
		tcp, err := out.ServeTCPEcho(at(l.Servers()[2*i], 7))
		if err != nil {
			t.Fatal(err)
		}
		udp, err := out.ServeUDPEcho(at(l.Servers()[2*i], 7))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range l.Containers {
			if err := c.EchoTCP(ctx, at(netip.Addr{}, 4444), tcp.Addr, "hello"); err != nil {
				t.Error(err)
			}
			if err := c.EchoUDP(ctx, at(netip.Addr{}, 4444), udp.Addr, "hello"); err != nil {
				t.Error(err)
			}
		}
		for _, s := range []*lab.Server{tcp, udp} {
			if len(s.Peers()) != 2 {
				t.Errorf("%v: peers %v, want two", s.Addr, s.Peers())
			}
			for p := range s.Peers() {
				if p.Addr() != l.HostAddr(i) {
					t.Errorf("%v saw %v, want only %v", s.Addr, p, l.HostAddr(i))
				}
			}
		}
	}
	for _, reverse := range []bool{false, true} {
		if err := lab.Bulk(ctx, c1, l.Outside, l.Outside.Addr, 8<<20, reverse); err != nil {
			t.Error(err)
		}
		if err := lab.Bulk(ctx, c1, c2, c2.Addr, 8<<20, reverse); err != nil {
			t.Error(err)
		}
	}
	assertNoLeak(t, l)
}

func TestIperfReportsIntervals(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 1, Plain: true})
	r, err := lab.Iperf(ctx, l.Containers[0], l.Outside, l.Outside.Addr, lab.IperfOptions{Seconds: 1, Interval: 0.5, Reverse: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.BitsPerSecond <= 0 || r.Bytes <= 0 || len(r.Intervals) < 2 {
		t.Errorf("iperf3: %.0f bit/s, %d bytes, intervals %v", r.BitsPerSecond, r.Bytes, r.Intervals)
	}
	assertNoLeak(t, l)
}

func TestNeighbourIsMasqueraded(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Neighbour: true})
	s, err := l.Outside.ServeTCPEcho(at(l.Outside.Addr, 7))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Neighbour.EchoTCP(ctx, at(netip.Addr{}, 12345), s.Addr, "hello"); err != nil {
		t.Fatal(err)
	}
	if n := s.Peers()[at(l.HostAddr(0), 12345)]; n != 1 {
		t.Errorf("peers %v, want the host's address and port 12345", s.Peers())
	}
	assertNoLeak(t, l)
}

func TestCaptureRecordsLeak(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 1, Plain: true})
	// Routing without masquerade is what a leak looks like.
	if err := l.Host.NFT(ctx, "flush ruleset"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Containers[0].Ping(ctx, l.Outside.Addr, lab.PingOptions{Count: 1, Wait: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	err := lab.Poll(ctx, func() (bool, error) {
		leaks, err := l.Leaks()
		return len(leaks) > 0 && strings.Contains(leaks[0].Why, "IPv4 source 172.30.0.2"), err
	})
	if err != nil {
		t.Errorf("the unmasqueraded ping was not recorded: %v", err)
	}
}

func TestCaptureDeadIsFailure(t *testing.T) {
	l, _ := newLab(t, lab.Options{})
	l.Captures[0].Close()
	if _, err := l.Leaks(); err == nil {
		t.Error("a closed capture reports no leak, and no error")
	}
	l, _ = newLab(t, lab.Options{Private: []netip.Prefix{}})
	if _, err := l.Leaks(); err == nil {
		t.Error("a lab without capture reports no leak, and no error")
	}
}

func TestPingReportsErrors(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 1, Plain: true})
	r, err := l.Containers[0].Ping(ctx, l.Outside.Addr, lab.PingOptions{TTL: 1, Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Errors) != 1 || r.Errors[0] != netip.MustParseAddr("172.30.0.1") {
		t.Errorf("TTL 1: %+v, want a time exceeded from the gateway", r)
	}
	assertNoLeak(t, l)
}

func TestRuleCounterSums(t *testing.T) {
	l, ctx := newLab(t, lab.Options{})
	err := l.Host.NFT(ctx, `
		table ip t {
			chain out {
				type filter hook output priority 0;
				icmp type echo-request counter comment "probe"
			}
		}
		`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Host.Ping(ctx, l.Outside.Addr, lab.PingOptions{Count: 2}); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Host.RuleCounter(ctx, "probe"); err != nil || n != 2 {
		t.Errorf("counter %d, %v; want 2", n, err)
	}
	if _, err := l.Host.RuleCounter(ctx, "none"); err == nil {
		t.Error("a rule that does not exist has a counter")
	}
}

func TestCloseRemovesEverything(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 2, Plain: true, Neighbour: true, Uplinks: 2})
	sleep := l.Containers[0].Exec(ctx, "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Outside.ServeTCPEcho(at(l.Outside.Addr, 7)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l.Close()
	if err := sleep.Wait(); err == nil {
		t.Error("the process in a closed lab ended by itself")
	}
	left, err := filepath.Glob(filepath.Join("/run/netns", "fblab-"+l.ID+"-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if n := mountsOf(t, l.ID); n != 0 {
		t.Errorf("%d mounts of lab %s are left", n, l.ID)
	}
}

func TestNewCleansUpAfterFailure(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces")
	}
	// Names do not show it: other labs on the machine come and go. Descriptors
	// do: every remaining namespace would hold one.
	before := openFiles(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lab.New(ctx, lab.Options{Containers: 3}); err == nil {
		t.Fatal("a lab was built in a context that had ended")
	}
	if _, err := lab.New(t.Context(), lab.Options{Uplinks: 3}); err == nil {
		t.Fatal("a lab with three uplinks was built")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors of namespaces before, %d after", before, after)
	}
}

func openFiles(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "net:") {
			n++
		}
	}
	return n
}

func TestExecRunsInsideNamespace(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 1})
	out, err := l.Containers[0].Run(ctx, "readlink", "/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	nsenter, err := l.Host.Run(ctx, "nsenter", "--net="+l.Containers[0].Path(), "readlink", "/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if out != nsenter || strings.TrimSpace(out) == mine {
		t.Errorf("Exec ran in %q, nsenter in %q, the test in %q", out, nsenter, mine)
	}
	if _, err := l.Host.Run(ctx, "sh", "-c", "echo no >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("error %v, want what the command said", err)
	}
}

// TestTunnelCarriesAndRecords proves that packets reach the outside through a
// tunnel, and that a private address on it is recorded.
func TestTunnelCarriesAndRecords(t *testing.T) {
	l, ctx := newLab(t, lab.Options{})
	tun, err := l.AddTunnel("tun0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := tun.Outside.ServeUDPEcho(at(tun.Outside.Addr, 7))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Host.EchoUDP(ctx, netip.AddrPort{}, s.Addr, "honest"); err != nil {
		t.Error(err)
	}
	assertNoLeak(t, l)
	private := netip.MustParseAddr("172.30.0.9")
	if err := l.Host.AddAddr("lo", netip.PrefixFrom(private, 32)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Host.ListenUDP(at(private, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.WriteToUDPAddrPort([]byte("leak"), s.Addr); err != nil {
		t.Fatal(err)
	}
	err = lab.Poll(ctx, func() (bool, error) { return len(tun.Leaks()) == 1, nil })
	if err != nil {
		t.Errorf("%d of one leak was recorded: %v", len(tun.Leaks()), err)
	}
}

func TestRouterAndNeighbourAreOnTheSwitch(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 1, Plain: true, Router: true})
	c1 := l.Containers[0]
	for _, to := range []netip.Addr{l.Outside.Addr, l.Router.Addr, l.Far.Addr, l.LAN.Addr} {
		if r, err := c1.Ping(ctx, to, lab.PingOptions{}); err != nil || r.Received != r.Sent {
			t.Errorf("ping %v: %+v, %v", to, r, err)
		}
	}
	r, err := c1.Ping(ctx, l.Far.Addr, lab.PingOptions{Count: 1, TTL: 2})
	if err != nil || len(r.Errors) != 1 || r.Errors[0] != l.Router.Addr {
		t.Errorf("ping with TTL 2: %+v, %v; want one error from the router", r, err)
	}
	if err := lab.Bulk(ctx, c1, l.Far, l.Far.Addr, 1<<20, false); err != nil {
		t.Errorf("upload through the narrow link: %v", err)
	}
	assertNoLeak(t, l)
}
