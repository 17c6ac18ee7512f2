package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

func TestE2ETraffic(t *testing.T) {
	eachMode(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		t.Run("ping", h.testPing)
		t.Run("bulk", h.testBulk)
		t.Run("udp", h.testUDP)
		t.Run("parallel", h.testParallel)
		t.Run("same source port", h.testSameSourcePort)
		if !m.Plain {
			h.assertBytesEqual(t)
		}
	})
}

func (h *e2e) testPing(t *testing.T) {
	c1, c2 := h.Containers[0], h.Containers[1]
	for _, size := range []int{56, 1472} {
		o := lab.PingOptions{Size: size}
		for _, to := range append(h.Servers(), c2.Addr, h.gateway(), h.HostAddr(0), h.OutsideAddr(0)) {
			h.mustPing(t, c1, to, o)
		}
		h.mustPing(t, h.Host, c1.Addr, o)
	}
	// Both containers and the host, one id, one server: each must get its own replies.
	var wg sync.WaitGroup
	for _, c := range []*lab.Namespace{c1, c2, h.Host} {
		wg.Go(func() { h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{Count: 5, ID: 77}) })
	}
	wg.Wait()
}

func (h *e2e) testBulk(t *testing.T) {
	c1, c2 := h.Containers[0], h.Containers[1]
	const size = 64 << 20
	for _, to := range []*lab.Namespace{c2, h.Outside} {
		for _, reverse := range []bool{false, true} {
			if err := lab.Bulk(h.Ctx, c1, to, to.Addr, size, reverse); err != nil {
				t.Errorf("c1 and %s, reverse %v: %v", to.Name, reverse, err)
			}
		}
	}
}

func (h *e2e) testUDP(t *testing.T) {
	c1, c2 := h.Containers[0], h.Containers[1]
	for _, to := range []*lab.Namespace{c2, h.Outside} {
		s := h.ServeUDP(t, to, on(to.Addr, 7))
		for _, size := range []int{1, 1400} {
			sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			for range 50 { // enough for both directions to use a lease
				if err := lab.EchoUDPOn(h.Ctx, sock, s.Addr, string(make([]byte, size))); err != nil {
					t.Error(err)
					break
				}
			}
			_ = sock.Close()
		}
		if to == h.Outside {
			assertPeers(t, s, h.HostAddr(0))
		} else {
			assertPeers(t, s, c1.Addr)
		}
		s.Close()
	}
}

// testParallel opens 200 connections before it closes any of them.
func (h *e2e) testParallel(t *testing.T) {
	c1, c2 := h.Containers[0], h.Containers[1]
	for _, to := range []*lab.Namespace{c2, h.Outside} {
		s := h.ServeTCP(t, to, on(to.Addr, 7))
		conns := make([]*net.TCPConn, 200)
		for i := range conns {
			c, err := c1.DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			conns[i] = c
			defer func() { _ = c.Close() }()
		}
		var wg sync.WaitGroup
		for i, c := range conns {
			wg.Go(func() {
				for round := range 3 {
					if err := lab.Echo(h.Ctx, c, fmt.Sprintf("connection %d round %d", i, round)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if len(s.Peers()) != len(conns) {
			t.Errorf("%v saw %d peers, want %d", s.Addr, len(s.Peers()), len(conns))
		}
		if to == h.Outside {
			assertPeers(t, s, h.HostAddr(0))
		}
		s.Close()
	}
}

// testSameSourcePort uses one source port in both containers to one server at the same
// time, once inside the NAT range and once outside it.
func (h *e2e) testSameSourcePort(t *testing.T) {
	tcp := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
	udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
	defer tcp.Close()
	defer udp.Close()
	for _, p := range []uint16{20000, 40000} {
		var conns []*net.TCPConn
		var socks []*net.UDPConn
		for _, c := range h.Containers {
			conn, err := c.DialTCP(h.Ctx, port(p), tcp.Addr)
			if err != nil {
				t.Fatal(err)
			}
			sock, err := c.ListenUDP(on(netip.IPv4Unspecified(), p))
			if err != nil {
				t.Fatal(err)
			}
			conns, socks = append(conns, conn), append(socks, sock)
		}
		for range 5 {
			for i := range h.Containers {
				msg := fmt.Sprintf("c%d from port %d", i+1, p)
				if err := errors.Join(lab.Echo(h.Ctx, conns[i], msg), lab.EchoUDPOn(h.Ctx, socks[i], udp.Addr, msg)); err != nil {
					t.Error(err)
				}
			}
		}
		for i := range conns {
			_, _ = conns[i].Close(), socks[i].Close()
		}
	}
	assertPeers(t, tcp, h.HostAddr(0))
	assertPeers(t, udp, h.HostAddr(0))
}

// assertBytesEqual compares `port ls` with the counters of the containers' own devices,
// once the last packets have passed.
func (h *e2e) assertBytesEqual(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
	defer cancel()
	for i, c := range h.Containers {
		name := fmt.Sprintf("c%d", i+1)
		var diff string
		err := lab.Poll(ctx, func() (bool, error) {
			p := h.ports(t)[name]
			own, err := c.Counters("eth0")
			if err != nil {
				return false, err
			}
			diff = ""
			if p.RXBytes != own.TXBytes || p.TXBytes != own.RXBytes {
				diff = fmt.Sprintf("port received %d, sent %d bytes; eth0 sent %d, received %d", p.RXBytes, p.TXBytes, own.TXBytes, own.RXBytes)
			}
			if p.FastPackets+p.SlowPackets != p.RXPackets+p.TXPackets {
				diff += fmt.Sprintf("; fast %d + slow %d is not rx %d + tx %d", p.FastPackets, p.SlowPackets, p.RXPackets, p.TXPackets)
			}
			return diff == "", nil
		})
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, diff)
		}
	}
}

// usualGSO is the size limit of super-packets without BIG TCP, in bytes.
const usualGSO = 65536

// meanSize is the average size, in bytes, of the packets that a container sent and
// received between two readings of its own counters.
func meanSize(before, after lab.Counters) (sent, received float64) {
	sent = float64(after.TXBytes-before.TXBytes) / float64(max(1, after.TXPackets-before.TXPackets))
	received = float64(after.RXBytes-before.RXBytes) / float64(max(1, after.RXPackets-before.RXPackets))
	return sent, received
}

// TestE2EFastShare checks that nearly every packet of bulk traffic takes the fast path,
// and that none does when the fast path is off. Super-packets of more than 64 KiB,
// whose headers have no length, travel whole in both cases.
func TestE2EFastShare(t *testing.T) {
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		c1, c2 := h.Containers[0], h.Containers[1]
		if err := h.Outside.SetGSO("eth0", lab.CableGSO); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name    string
			to      *lab.Namespace
			reverse bool
		}{{"c1 to c2", c2, false}, {"c1 to outside", h.Outside, false}, {"outside to c1", h.Outside, true}} {
			before, own := h.ports(t)["c1"], h.counters(t, c1)
			r, err := lab.Iperf(h.Ctx, c1, c.to, c.to.Addr, lab.IperfOptions{Seconds: 2, Reverse: c.reverse})
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			after := h.ports(t)["c1"]
			size, received := meanSize(own, h.counters(t, c1))
			if c.reverse {
				size = received
			}
			if size <= usualGSO {
				t.Errorf("%s: super-packets of %.0f bytes on average", c.name, size)
			}
			fast, slow := after.FastPackets-before.FastPackets, after.SlowPackets-before.SlowPackets
			share := float64(fast) / float64(fast+slow)
			t.Logf("%s: %.1f Gbit/s, %d retransmits, super-packets of %.0f bytes, fast share %.5f (%d slow)",
				c.name, r.BitsPerSecond/1e9, r.Retransmits, size, share, slow)
			if m.Name == "fast" && share < 0.999 {
				t.Errorf("%s: fast share %.5f (%d fast, %d slow), want 0.999", c.name, share, fast, slow)
			}
			if m.Name == "slow" && fast > 0 {
				t.Errorf("%s: %d packets took the fast path that is switched off", c.name, fast)
			}
		}
		h.assertBytesEqual(t)
	})
}

// counters are the counters of a container's own device.
func (h *e2e) counters(t *testing.T, c *lab.Namespace) lab.Counters {
	t.Helper()
	own, err := c.Counters("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// TestE2EInsideNamespace runs a command in a process that is already in the namespace,
// as on an ordinary host. It works on the same instance as with --netns.
func TestE2EInsideNamespace(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	for _, noun := range []string{"network", "port"} {
		// Repeated until nothing is counted between the two commands: the gratuitous
		// ARP may still be under way.
		var inside, with string
		ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
		err := lab.Poll(ctx, func() (same bool, err error) {
			inside, err = h.Host.Run(h.Ctx, h.Bin, "--bpffs", h.BPFFS, "--state-dir", h.StateDir, noun, "ls", "-o", "json")
			with = h.Must(t, noun, "ls", "-o", "json")
			return inside == with, err
		})
		cancel()
		if err != nil {
			t.Errorf("%s ls: %v; inside:\n%s\nwith --netns:\n%s", noun, err, inside, with)
		}
	}
}
