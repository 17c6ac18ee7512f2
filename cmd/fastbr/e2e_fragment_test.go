package main_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
	"github.com/fastbr/fastbr/internal/testutil"
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

// fragmentIDs gives every datagram of a test an id of its own.
type fragmentIDs struct{ last uint16 }

func (c *fragmentIDs) next() uint16 { c.last++; return c.last }

// big is a payload of this size that no other has.
func big(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b
}

// sendPieces injects the datagrams of a sequence on eth0 of n, and returns their payloads.
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

// wantDatagrams expects exactly these datagrams on a socket, in any order, and
// returns where the last came from.
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

// toOutside is a datagram of a container to the server's port 4000, as the
// container's device sends it.
func (h *e2e) toOutside(t *testing.T, c *lab.Namespace, source uint16) testutil.Frame {
	t.Helper()
	v := h.victims(t, netip.Addr{})
	mac, err := c.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return testutil.Frame{SrcMAC: mac, DstMAC: v.gwMAC, Src: c.Addr, Dst: h.Outside.Addr,
		UDP: &testutil.UDP{SrcPort: source, DstPort: 4000}}
}

// TestE2EFragmentsOut sends datagrams in pieces from containers, in every order.
func TestE2EFragmentsOut(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m e2eMode) {
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
			w.assertClean(t, h.ctx, isClosing)
		})
	})
}
