package e2e

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EInventedClientsCutNobodyOff sends first packets with invented source addresses
// to published ports, many times more than the table holds. Containers, the host and
// honest clients of the same port go on.
func TestE2EInventedClientsCutNobodyOff(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2}, "--nat-flows", "4096")
		web, other := h.Containers[0], h.Containers[1]
		for _, proto := range []string{"tcp", "udp"} {
			h.Must(t, "publish", "add", "8080:80/"+proto, "c1")
		}
		defer h.ServeTCP(t, web, on(web.Addr, 80)).Close()
		defer h.ServeUDP(t, web, on(web.Addr, 80)).Close()
		outTCP := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 81))
		defer outTCP.Close()
		outUDP := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 81))
		defer outUDP.Close()

		stop := h.invent(t, 8080)
		defer stop()
		public := on(h.Host.Addr, 8080)
		for range 5 {
			for _, from := range []*lab.Namespace{web, other, h.Host} {
				if err := from.EchoTCP(h.Ctx, netip.AddrPort{}, outTCP.Addr, "outwards"); err != nil {
					t.Errorf("TCP from %s: %v", from.Name, err)
				}
				if err := from.EchoUDP(h.Ctx, netip.AddrPort{}, outUDP.Addr, "outwards"); err != nil {
					t.Errorf("UDP from %s: %v", from.Name, err)
				}
			}
			if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, public, "inwards"); err != nil {
				t.Errorf("TCP to the flooded port: %v", err)
			}
			if err := h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, public, "inwards"); err != nil {
				t.Errorf("UDP to the flooded port: %v", err)
			}
		}
		stop()
		if n := value(t, h.Must(t, "metrics"), "fastbr_nat_early_drops_total"); n == 0 {
			t.Error("nobody was given up: the flood was too small to tell")
		}
	})
}

// invent sends SYNs and datagrams with invented source addresses to a port of the host.
// It returns after at least 8,192, and goes on until stop is called.
func (h *e2e) invent(t *testing.T, port uint16) (stop func()) {
	t.Helper()
	in, err := h.Outside.NewInjector("eth0")
	if err != nil {
		t.Fatal(err)
	}
	whole := h.arriving(t, 0, testutil.Frame{Dst: h.Host.Addr, Payload: []byte("?")})
	frame := func(i uint32) []byte {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xcb000000|i&0xffffff) // 203.0.0.0/8
		f := whole
		f.Src = netip.AddrFrom4(a)
		if i%2 == 0 {
			f.Payload, f.TCP = nil, &testutil.TCP{SrcPort: 40000, DstPort: port, SYN: true}
		} else {
			f.UDP = &testutil.UDP{SrcPort: 40000, DstPort: port}
		}
		return f.Bytes(t)
	}
	const few = 8192
	ctx, cancel := context.WithCancel(h.Ctx)
	begun := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for i := uint32(0); ctx.Err() == nil; i++ {
			if i == few {
				close(begun)
			}
			if err := in.Send(frame(i)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	<-begun
	return func() {
		cancel()
		all.Wait()
		in.Close()
	}
}
