package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/bench"
	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// bigPayload makes three fragments on a link of 1500 bytes.
const (
	bigPayload   = 4000
	fragmentSize = 1480
)

// piece is one fragment of one of the datagrams of a sequence.
type piece struct{ datagram, fragment int }

// sequences are the orders in which fragments are sent.
func sequences() map[string][]piece {
	return map[string][]piece{
		"in order":      {{0, 0}, {0, 1}, {0, 2}},
		"reversed":      {{0, 2}, {0, 1}, {0, 0}},
		"late first":    {{0, 1}, {0, 0}, {0, 2}},
		"duplicated":    {{0, 0}, {0, 0}, {0, 2}, {0, 2}, {0, 1}},
		"interleaved":   {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {1, 2}, {0, 2}},
		"both reversed": {{0, 2}, {1, 2}, {1, 1}, {0, 1}, {0, 0}, {1, 0}},
	}
}

// fragmentIDs gives each datagram of a test an id of its own.
type fragmentIDs struct{ last uint32 }

func (c *fragmentIDs) next() uint32 { c.last++; return c.last }

// big is a payload of this size that no other datagram has.
func big(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b
}

// sendPieces injects the datagrams of a sequence on eth0 of n and returns their
// payloads.
func sendPieces(t *testing.T, n *lab.Namespace, f testutil.Frame, ids *fragmentIDs, seq []piece) (sent [][]byte) {
	t.Helper()
	var frags [][][]byte
	for i := range slices.MaxFunc(seq, func(a, b piece) int { return a.datagram - b.datagram }).datagram + 1 {
		sent = append(sent, big(bigPayload))
		frags = append(frags, testutil.Fragments(t, f.With(func(f *testutil.Frame) { f.Payload = sent[i] }).Bytes(t), fragmentSize, ids.next()))
	}
	var frames [][]byte
	for _, p := range seq {
		frames = append(frames, frags[p.datagram][p.fragment])
	}
	if err := n.Inject("eth0", frames...); err != nil {
		t.Fatal(err)
	}
	return sent
}

// wantDatagrams expects exactly these datagrams on a socket, in any order. It returns
// the source of the last.
func wantDatagrams(t *testing.T, c *net.UDPConn, want [][]byte) (from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 1<<16)
	missing := slices.Clone(want)
	for len(missing) > 0 {
		_ = c.SetReadDeadline(time.Now().Add(pingPatience))
		n, addr, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d of %d datagrams did not arrive", len(missing), len(want))
			return from
		} else if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(missing, func(b []byte) bool { return bytes.Equal(b, buf[:n]) })
		if i < 0 {
			t.Fatalf("%d bytes arrived from %v that nobody sent, or sent once: %.40x", n, addr, buf[:n])
		}
		missing, from = slices.Delete(missing, i, i+1), addr
	}
	return from
}

func (h *e2e) listenUDP(t *testing.T, n *lab.Namespace, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := n.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// toOutside is a datagram of a container to port 4000 of the server, as the container's
// device sends it.
func (h *e2e) toOutside(t *testing.T, c *lab.Namespace, source uint16) testutil.Frame {
	t.Helper()
	mac, err := c.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := h.Host.MAC(ctl.DefaultBridge)
	if err != nil {
		t.Fatal(err)
	}
	return testutil.Frame{SrcMAC: mac, DstMAC: gateway, Src: c.Addr, Dst: h.Outside.Addr,
		UDP: &testutil.UDP{SrcPort: source, DstPort: 4000}}
}

// TestE2EFragmentsOut sends fragmented datagrams from containers, in every order.
func TestE2EFragmentsOut(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		server := h.listenUDP(t, h.Outside, on(h.Outside.Addr, 4000))
		f, ids := h.toOutside(t, h.Containers[0], 40000), &fragmentIDs{}
		for name, seq := range sequences() {
			t.Run(name, func(t *testing.T) {
				from := wantDatagrams(t, server, sendPieces(t, h.Containers[0], f, ids, seq))
				if from.Addr() != h.HostAddr(0) {
					t.Errorf("they came from %v, want %v", from, h.HostAddr(0))
				}
			})
		}
		t.Run("same id", func(t *testing.T) {
			var want [][]byte
			var frags [2][][]byte
			for i := range frags {
				want = append(want, big(bigPayload+i))
				f := h.toOutside(t, h.Containers[i], 40000).With(func(f *testutil.Frame) { f.Payload = want[i] })
				frags[i] = testutil.Fragments(t, f.Bytes(t), fragmentSize, 7)
			}
			for k := range frags[0] {
				for i := range frags {
					if err := h.Containers[i].Inject("eth0", frags[i][k]); err != nil {
						t.Fatal(err)
					}
				}
			}
			wantDatagrams(t, server, want)
		})
		t.Run("without its beginning", func(t *testing.T) {
			w := newWitness(t, h.Outside, "eth0", hasMark)
			big := f.With(func(f *testutil.Frame) { f.Payload = bytes.Repeat(forgedMark, bigPayload/len(forgedMark)) })
			frags := testutil.Fragments(t, big.Bytes(t), fragmentSize, ids.next())
			if err := h.Containers[0].Inject("eth0", frags[1], frags[2]); err != nil {
				t.Fatal(err)
			}
			h.sendClosing(t, h.Containers[0], h.Outside)
			w.assertClean(t, h.Ctx, isClosing)
		})
	})
}

// fromOutside opens a flow from port source of a container to the server. It returns
// the container's socket and a datagram of the server on that flow.
func (h *e2e) fromOutside(t *testing.T, c *lab.Namespace, source uint16, server *net.UDPConn) (*net.UDPConn, testutil.Frame) {
	t.Helper()
	s := h.listenUDP(t, c, on(netip.IPv4Unspecified(), source))
	hello := big(16)
	if _, err := s.WriteToUDPAddrPort(hello, on(h.Outside.Addr, 4000)); err != nil {
		t.Fatal(err)
	}
	from := wantDatagrams(t, server, [][]byte{hello})
	return s, h.toHost(t, from)
}

// toHost is a datagram from port 4000 of the server to an address of the host, as the
// device outside sends it.
func (h *e2e) toHost(t *testing.T, to netip.AddrPort) testutil.Frame {
	t.Helper()
	return h.arriving(t, 0, testutil.Frame{Src: h.Outside.Addr, Dst: to.Addr(), UDP: &testutil.UDP{SrcPort: 4000, DstPort: to.Port()}})
}

// TestE2EFragmentsIn sends fragmented datagrams from outside, to containers and to the
// host, in every order.
func TestE2EFragmentsIn(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		server, ids := h.listenUDP(t, h.Outside, on(h.Outside.Addr, 4000)), &fragmentIDs{}
		c1, f1 := h.fromOutside(t, h.Containers[0], 40000, server)
		c2, f2 := h.fromOutside(t, h.Containers[1], 40000, server)
		host := h.listenUDP(t, h.Host, on(netip.IPv4Unspecified(), 5000))
		f3 := h.toHost(t, on(h.HostAddr(0), 5000))
		for name, seq := range sequences() {
			t.Run(name, func(t *testing.T) {
				for who, to := range map[string]struct {
					frame testutil.Frame
					sock  *net.UDPConn
				}{"c1": {f1, c1}, "c2": {f2, c2}, "the host": {f3, host}} {
					from := wantDatagrams(t, to.sock, sendPieces(t, h.Outside, to.frame, ids, seq))
					if want := on(h.Outside.Addr, 4000); from != want {
						t.Errorf("%s got it from %v, want %v", who, from, want)
					}
				}
			})
		}
	})
}

// TestE2EBigPings sends echo requests that must be fragmented: from containers (two of
// them with one id at the same time), and from outside to the host.
func TestE2EBigPings(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		o := lab.PingOptions{Size: 3000, Count: 5, ID: 20000}
		var wg sync.WaitGroup
		for _, c := range h.Containers {
			wg.Go(func() { h.mustPing(t, c, h.Outside.Addr, o) })
		}
		wg.Go(func() { h.mustPing(t, h.Outside, h.HostAddr(0), o) })
		wg.Go(func() { h.mustPing(t, h.Host, h.Outside.Addr, o) })
		wg.Wait()
		h.mustPing(t, h.Containers[0], h.Containers[1].Addr, o)
		h.mustPing(t, h.Containers[0], h.gateway(), o)
		h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{Size: 60000, Count: 2})
	})
}

// TestE2EFragmentFlood sends fragments that never make a datagram, from both sides, a
// hundred thousand a second each in `make stress`. Another container and the host go on
// as usual. Fragments pass again once the kernel has given up the incomplete datagrams.
func TestE2EFragmentFlood(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		if !stress() { // make stress logs latency, so the modes take turns
			t.Parallel()
		}
		h := upE2E(t, m, lab.Options{Containers: 2})
		// The host itself reassembles what containers send.
		if err := h.Host.SetSysctl("net.ipv4.ipfrag_time", "2"); err != nil {
			t.Fatal(err)
		}
		server := h.listenUDP(t, h.Outside, on(h.Outside.Addr, 4000))
		_, in := h.fromOutside(t, h.Containers[0], 40000, server)
		b := h.newBystanders(t)
		for range sized(1, 500) {
			b.round(t)
		}
		b.tell(t, "before")
		ctx, stop := context.WithCancel(h.Ctx)
		defer stop()
		var flood, begun sync.WaitGroup
		for _, f := range []bench.FragmentFlood{
			{From: h.Outside, Source: on(in.Src, 4000), To: on(in.Dst, in.UDP.DstPort)},
			{From: h.Containers[0], Source: on(h.Containers[0].Addr, 40001), To: on(h.Outside.Addr, 4000)},
		} {
			begun.Add(1)
			ready := sync.OnceFunc(begun.Done)
			flood.Go(func() {
				defer ready()
				rate, err := f.Run(ctx, sized(20_000, 100_000), ready)
				if err != nil || rate == 0 {
					t.Errorf("%.0f fragments/s from %s: %v", rate, f.From.Name, err)
				}
				t.Logf("%.0f fragments/s from %s", rate, f.From.Name)
			})
		}
		begun.Wait()
		for begin := time.Now(); time.Since(begin) < sized(time.Second, 20*time.Second); {
			b.round(t)
		}
		stop()
		flood.Wait()
		b.tell(t, "meanwhile")
		for _, ns := range []*lab.Namespace{h.Containers[1], h.Host} {
			err := lab.Poll(h.Ctx, func() (bool, error) {
				r, err := ns.Ping(h.Ctx, h.Outside.Addr, lab.PingOptions{Size: 3000, Count: 1})
				return r.Received == 1, err
			})
			if err != nil {
				t.Errorf("fragments of %s after the flood: %v", ns.Name, err)
			}
		}
	})
}

// TestE2EFragmentsOfTwoUplinks: a fragment goes on at the uplink by which it came.
// Otherwise the host's reverse path filter would drop it.
func TestE2EFragmentsOfTwoUplinks(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2})
	h.Must(t, "up", "--uplink", "eth0", "--uplink", "eth1")
	h.Attach(t, h.Containers[0], "c1")
	for _, dev := range []string{"all", "eth0", "eth1"} {
		if err := h.Host.SetSysctl("net.ipv4.conf."+dev+".rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range h.Outsides {
		for _, from := range []*lab.Namespace{h.Containers[0], h.Host} {
			h.mustPing(t, from, o.Addr, lab.PingOptions{Size: 3000})
		}
	}
}

// TestE2EFragmentsToPublishedPort begins flows from outside with fragmented datagrams.
func TestE2EFragmentsToPublishedPort(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		c1, ids := h.Containers[0], &fragmentIDs{}
		h.Must(t, "publish", "add", "5000:53/udp", "c1")
		s := h.listenUDP(t, c1, on(c1.Addr, 53))
		source := uint16(4000)
		for name, seq := range sequences() {
			t.Run(name, func(t *testing.T) {
				f := h.toHost(t, on(h.HostAddr(0), 5000))
				source++ // a flow of its own
				f.UDP.SrcPort = source
				from := wantDatagrams(t, s, sendPieces(t, h.Outside, f, ids, seq))
				if want := on(h.Outside.Addr, source); from != want {
					t.Errorf("it came from %v, want the client's own address %v", from, want)
				}
				// The answer is fragmented, too, and comes from the published port.
				client := h.listenUDP(t, h.Outside, on(h.Outside.Addr, source))
				answer := big(bigPayload)
				if _, err := s.WriteToUDPAddrPort(answer, from); err != nil {
					t.Fatal(err)
				}
				if from := wantDatagrams(t, client, [][]byte{answer}); from != on(h.HostAddr(0), 5000) {
					t.Errorf("the answer came from %v", from)
				}
			})
		}
	})
}

// TestE2EHostFragmentsForContainers: the host fragments what is too big for the uplink
// and has no DF (RFC 4787 REQ-13a).
func TestE2EHostFragmentsForContainers(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1, MTU: 1280}, "--mtu", "1500")
		server := h.listenUDP(t, h.Outside, on(h.Outside.Addr, 4000))
		for range 3 {
			payload := big(1400)
			f := h.toOutside(t, h.Containers[0], 40000).With(func(f *testutil.Frame) { f.Payload = payload })
			if err := h.Containers[0].Inject("eth0", f.Bytes(t)); err != nil {
				t.Fatal(err)
			}
			wantDatagrams(t, server, [][]byte{payload})
		}
	})
}
