package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EPublish reaches a container from outside by ports of the host. The container
// sees the client's own address, and the client sees the host's.
func TestE2EPublish(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2})
		web := h.Containers[0]
		tcp := h.ServeTCP(t, web, on(web.Addr, 80))
		defer tcp.Close()
		udp := h.ServeUDP(t, web, on(web.Addr, 53))
		defer udp.Close()
		h.Must(t, "publish", "add", "8080:80", "c1")
		h.Must(t, "publish", "add", h.Host.Addr.String()+":5000-5999:53/udp", "c1", "--allow", h.Outside.Addr.String()+"/32")

		for i := range 5 {
			if err := h.Outside.EchoTCP(h.Ctx, on(h.Outside.Addr, 0), on(h.Host.Addr, 8080), fmt.Sprint("hello ", i)); err != nil {
				t.Errorf("TCP to the published port: %v", err)
			}
			if err := h.Outside.EchoUDP(h.Ctx, on(h.Outside.Addr, 44000), on(h.Host.Addr, 5000), fmt.Sprint("hello ", i)); err != nil {
				t.Errorf("UDP to the published port: %v", err)
			}
		}
		for _, s := range []*lab.Server{tcp, udp} {
			for peer := range s.Peers() {
				if peer.Addr() != h.Outside.Addr {
					t.Errorf("the container was reached from %s, want the client's own address %s", peer, h.Outside.Addr)
				}
			}
		}
		h.assertBytesEqual(t)

		// A removed publication is closed at once, for running flows too.
		h.Must(t, "publish", "rm", "5000-5999")
		ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
		defer cancel()
		if err := h.Outside.EchoUDP(ctx, on(h.Outside.Addr, 44000), on(h.Host.Addr, 5000), "still there?"); err == nil {
			t.Error("a port that is published no more still answers")
		}
		// The container's own way out is not affected.
		out := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 81))
		defer out.Close()
		if err := web.EchoTCP(h.Ctx, netip.AddrPort{}, out.Addr, "outwards"); err != nil {
			t.Error(err)
		}
	})
}

// TestE2EPublishedBulk moves data both ways through a published port. The data must
// take the fast path.
func TestE2EPublishedBulk(t *testing.T) {
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	h.Must(t, "publish", "add", "5201:5201", "c1")
	if err := h.Outside.SetGSO("eth0", lab.CableGSO); err != nil {
		t.Fatal(err)
	}
	before, own := h.ports(t)["c1"], h.counters(t, h.Containers[0])
	if _, err := lab.Iperf(h.Ctx, h.Outside, h.Containers[0], h.Containers[0].Addr, lab.IperfOptions{Seconds: 2, Via: h.Host.Addr}); err != nil {
		t.Fatal(err)
	}
	after := h.ports(t)["c1"]
	fast, slow := after.FastPackets-before.FastPackets, after.SlowPackets-before.SlowPackets
	if fast < 100*slow {
		t.Errorf("%d packets on the fast path, %d on the kernel's", fast, slow)
	}
	if _, size := meanSize(own, h.counters(t, h.Containers[0])); size <= usualGSO {
		t.Errorf("super-packets of %.0f bytes on average", size)
	}
	h.assertBytesEqual(t)
}

// TestE2EPublishRefusesAPortInUse: a listener of the host keeps its port.
func TestE2EPublishRefusesAPortInUse(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	s := h.ServeTCP(t, h.Host, on(netip.IPv4Unspecified(), 8085))
	defer s.Close()
	r := h.Fastbr(t, "publish", "add", "8080-8089:80", "c1")
	if want := "fastbr: host port 8085/tcp is in use by a socket of the host\n"; r.Code != 1 || r.Stderr != want {
		t.Errorf("exit %d: %q, want %q", r.Code, r.Stderr, want)
	}
	if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.Host.Addr, 8085), "hello, host"); err != nil {
		t.Error(err)
	}
}

// TestE2EPublishedToContainers reaches a published port from containers, by every
// address of the host: from one of the same network, from one of another network, and
// from the container that serves it. The server sees the address that the client has
// asked for, never a container's own.
func TestE2EPublishedToContainers(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2})
		second, err := h.Add("c3")
		if err != nil {
			t.Fatal(err)
		}
		h.Must(t, "network", "create", "second", "--subnet", "172.29.0.0/24")
		h.Attach(t, second, "c3", "--network", "second")
		shut, err := h.Add("c4")
		if err != nil {
			t.Fatal(err)
		}
		h.Must(t, "network", "create", "shut", "--subnet", "172.28.0.0/24", "--internal")
		h.Attach(t, shut, "c4", "--network", "shut")

		web := h.Containers[0]
		tcp, udp := h.ServeTCP(t, web, on(web.Addr, 80)), h.ServeUDP(t, web, on(web.Addr, 53))
		defer tcp.Close()
		defer udp.Close()
		h.Must(t, "publish", "add", "8080:80", "c1")
		h.Must(t, "publish", "add", "5353:53/udp", "c1")
		hosts := []netip.Addr{h.HostAddr(0), h.gateway(), netip.MustParseAddr("172.29.0.1")}
		clients := map[string]*lab.Namespace{"the same network": h.Containers[1], "another network": second, "itself": web}
		for where, c := range clients {
			for _, host := range hosts {
				for i := range 2 {
					if err := c.EchoTCP(h.Ctx, netip.AddrPort{}, on(host, 8080), fmt.Sprint("hello ", i)); err != nil {
						t.Errorf("TCP from %s by %s: %v", where, host, err)
					}
					if err := c.EchoUDP(h.Ctx, netip.AddrPort{}, on(host, 5353), fmt.Sprint("hello ", i)); err != nil {
						t.Errorf("UDP from %s by %s: %v", where, host, err)
					}
				}
			}
		}
		assertPeers(t, tcp, hosts...)
		assertPeers(t, udp, hosts...)
		if err := lab.EchoBulk(h.Ctx, second, on(h.HostAddr(0), 8080), 4<<20); err != nil {
			t.Errorf("bulk from another network: %v", err)
		}
		h.assertBytesEqual(t)

		h.notLetIn(t, shut, on(netip.MustParseAddr("172.28.0.1"), 8080), "from an internal network")
		h.notLetIn(t, second, on(web.Addr, 80), "from another network by the container's own address")
		h.Must(t, "publish", "rm", "8080")
		h.Must(t, "publish", "add", "8080:80", "c1", "--allow", h.Containers[1].Addr.String()+"/32")
		h.notLetIn(t, second, on(h.HostAddr(0), 8080), "without being allowed")
		if err := h.Containers[1].EchoTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), 8080), "allowed"); err != nil {
			t.Error(err)
		}
		h.Must(t, "publish", "rm", "8080")
		h.notLetIn(t, h.Containers[1], on(h.HostAddr(0), 8080), "published no more")
	})
}

// notLetIn expects that a connection fails, by RST or by silence.
func (h *e2e) notLetIn(t *testing.T, from *lab.Namespace, to netip.AddrPort, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
	defer cancel()
	if err := from.EchoTCP(ctx, netip.AddrPort{}, to, "let me in"); err == nil {
		t.Errorf("%s is let in %s", to, what)
	}
}
