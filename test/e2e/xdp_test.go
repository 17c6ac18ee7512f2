package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// native is the fast mode with XDP on the uplink.
func native() harness.Mode {
	return harness.Mode{Name: "xdp", Up: []string{"--xdp", "native"}}
}

// upXDP builds a lab with XDP on the uplink. The uplink's other end sends whole
// checksums, as packets from a wire have them.
func upXDP(t *testing.T, m harness.Mode, containers int) *e2e {
	t.Helper()
	testutil.RequireCommand(t, "ethtool")
	h := newE2E(t, m, lab.Options{Containers: containers})
	h.ethtool(t, h.Outside, "-K", "eth0", "tx", "off")
	h.Must(t, append([]string{"up"}, m.Up...)...)
	for i, c := range h.Containers {
		h.Attach(t, c, fmt.Sprintf("c%d", i+1))
	}
	return h
}

func (h *e2e) ethtool(t *testing.T, n *lab.Namespace, args ...string) string {
	t.Helper()
	out, err := n.Run(h.Ctx, append([]string{"ethtool"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// xdpCount is the driver's own counter of what XDP did with the uplink's packets:
// "redirect" or "drops".
func (h *e2e) xdpCount(t *testing.T, what string) (sum int) {
	t.Helper()
	for _, m := range regexp.MustCompile(`rx_queue_\d+_xdp_`+what+`: (\d+)`).FindAllStringSubmatch(h.ethtool(t, h.Host, "-S", "eth0"), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// uplinkXDP is what `status` says about XDP on the uplink.
func (h *e2e) uplinkXDP(t *testing.T) ctl.UplinkView {
	t.Helper()
	var v ctl.StatusView
	h.JSON(t, &v, "status")
	if len(v.Uplinks) != 1 {
		t.Fatalf("uplinks: %+v", v.Uplinks)
	}
	return v.Uplinks[0]
}

// TestE2EXDP sends the traffic of TestE2ETraffic through an uplink with XDP.
func TestE2EXDP(t *testing.T) {
	t.Parallel()
	h := upXDP(t, native(), 2)
	if v := h.uplinkXDP(t); v.XDP != "native" {
		t.Errorf("status: %+v", v)
	}
	for _, c := range h.Containers {
		if out := h.ethtool(t, c, "-k", "eth0"); !strings.Contains(out, "generic-receive-offload: on") || !strings.Contains(out, "tcp-segmentation-offload: on") {
			t.Errorf("%s: %s", c.Name, out)
		}
	}
	t.Run("ping", h.testPing)
	t.Run("bulk", h.testBulk)
	t.Run("udp", h.testUDP)
	t.Run("parallel", h.testParallel)
	t.Run("same source port", h.testSameSourcePort)
	h.assertBytesEqual(t)

	before := h.ports(t)
	sent := h.xdpCount(t, "redirect")
	h.echoes(t, 50)
	after := h.ports(t)
	sent = h.xdpCount(t, "redirect") - sent
	if fast := after["c1"].FastPackets - before["c1"].FastPackets; sent < 40 || fast < 90 {
		t.Errorf("of 50 answers XDP sent %d; %d packets of both directions were fast", sent, fast)
	}
	// tc forwards packets with a pending checksum, as this machine's own packets have.
	h.ethtool(t, h.Outside, "-K", "eth0", "tx", "on")
	sent = h.xdpCount(t, "redirect")
	h.echoes(t, 50)
	if got := h.xdpCount(t, "redirect"); got != sent {
		t.Errorf("XDP sent %d packets with half a checksum", got-sent)
	}
	h.assertBytesEqual(t)
}

// echoes sends n datagrams from c1 to a server and back, one after the other.
func (h *e2e) echoes(t *testing.T, n int) {
	t.Helper()
	s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
	defer s.Close()
	sock, err := h.Containers[0].ListenUDP(on(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	for i := range n {
		if err := lab.EchoUDPOn(h.Ctx, sock, s.Addr, fmt.Sprint("datagram ", i)); err != nil {
			t.Fatal(err)
		}
	}
	assertPeers(t, s, h.HostAddr(0))
}

// TestE2EXDPLeases: without leases XDP forwards nothing. With leases, a new rule of the
// host takes effect on what XDP forwards.
func TestE2EXDPLeases(t *testing.T) {
	t.Parallel()
	m := native()
	m.Up = append(m.Up, "--lease", "0")
	h := upXDP(t, m, 1)
	h.echoes(t, 20)
	if n := h.xdpCount(t, "redirect"); n != 0 {
		t.Errorf("XDP sent %d packets without a lease", n)
	}
	h.Must(t, "up", "--lease", "1")
	h.echoes(t, 20)
	if n := h.xdpCount(t, "redirect"); n == 0 {
		t.Error("XDP sent nothing")
	}

	s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
	sock, err := h.Containers[0].ListenUDP(on(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	if err := lab.EchoUDPOn(h.Ctx, sock, s.Addr, "before"); err != nil {
		t.Fatal(err)
	}
	if err := h.Host.NFT(h.Ctx, `
		table ip stop {
			chain f {
				type filter hook forward priority 0; policy accept;
				iifname "eth0" udp sport 7 drop
			}
		}
		`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(h.Ctx, 30*time.Second)
	defer cancel()
	buf := make([]byte, 64)
	err = lab.Poll(ctx, func() (bool, error) {
		if _, err := sock.WriteToUDPAddrPort([]byte("after"), s.Addr); err != nil {
			return false, err
		}
		_ = sock.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := sock.Read(buf)
		return err != nil, nil
	})
	if err != nil {
		t.Errorf("packets pass a rule that drops them: %v", err)
	}
}

// TestE2EXDPLife: XDP comes and goes with `up`. No kill and no `down` leaves anything
// of it.
func TestE2EXDPLife(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	testutil.RequireCommand(t, "ethtool")
	h.ethtool(t, h.Outside, "-K", "eth0", "tx", "off")
	before := h.snapshot(t)
	h.KillAt(t, "xdp", "up", "--xdp", "native")
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)

	h.KillAt(t, "xdp", "up", "--xdp", "native")
	h.Must(t, "up")
	if v := h.uplinkXDP(t); v.XDP != "off" || !strings.Contains(v.XDPWhy, "veth") {
		t.Errorf("auto on a veth: %+v", v)
	}
	c1 := h.Containers[0]
	h.Attach(t, c1, "c1")
	gro := func(want string) {
		t.Helper()
		if out := h.ethtool(t, c1, "-k", "eth0"); !strings.Contains(out, "generic-receive-offload: "+want) {
			t.Errorf("GRO inside is not %s: %s", want, out)
		}
	}
	gro("off")
	for range 2 {
		h.Must(t, "up", "--xdp", "native")
		gro("on")
		h.echoes(t, 20)
		if h.xdpCount(t, "redirect") == 0 {
			t.Error("XDP sent nothing")
		}
	}
	// After a container has turned GRO off, tc serves it from the next command on.
	h.ethtool(t, c1, "-K", "eth0", "gro", "off")
	h.Must(t, "flows", "flush")
	sent := h.xdpCount(t, "redirect")
	h.echoes(t, 20)
	if got := h.xdpCount(t, "redirect"); got != sent {
		t.Errorf("XDP sent %d packets to a container that takes none", got-sent)
	}
	h.Must(t, "up")
	gro("on")
	h.testDirectInXDP(t)
	r := h.Fastbr(t, "up", "--xdp", "auto")
	if v := h.uplinkXDP(t); v.XDP != "off" || r.Code != 0 || !strings.Contains(r.Stderr, "uplink eth0: XDP off: on a veth") {
		t.Errorf("auto: %+v, exit %d: %s", v, r.Code, r.Stderr)
	}
	gro("off")
	h.echoes(t, 5)
	h.Must(t, "up", "--xdp", "native")
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)
	h.testForeignXDP(t)
}

// testDirectInXDP sends from outside to a container's own address.
func (h *e2e) testDirectInXDP(t *testing.T) {
	t.Helper()
	c1 := h.Containers[0]
	if err := h.Outside.AddRoute(netip.PrefixFrom(c1.Addr, 32), h.HostAddr(0)); err != nil {
		t.Fatal(err)
	}
	direct, dropped := h.drops(t, "direct"), h.xdpCount(t, "drops")
	h.noPing(t, h.Outside, c1.Addr)
	h.waitDrops(t, "direct", direct, 1)
	if h.xdpCount(t, "drops") == dropped {
		t.Error("XDP has dropped nothing")
	}
}

// testForeignXDP: another program's XDP stays. `native` refuses and leaves nothing
// behind; `auto` and off do without XDP.
func (h *e2e) testForeignXDP(t *testing.T) {
	t.Helper()
	detach := foreignXDP(t, h.Host, "eth0")
	defer detach()
	before := h.snapshot(t)
	r := h.Fastbr(t, "up", "--xdp", "native")
	const want = "fastbr: uplink eth0: no native XDP: another XDP program is on it"
	if r.Code != 1 || !strings.Contains(r.Stderr, want) {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	h.assertAsBefore(t, before)
	h.Must(t, "up")
	if r := h.Fastbr(t, "up", "--xdp", "native"); r.Code != 1 || !strings.Contains(r.Stderr, want) {
		t.Errorf("a second up: exit %d: %s", r.Code, r.Stderr)
	}
	if v := h.uplinkXDP(t); v.XDP != "off" {
		t.Errorf("%+v", v)
	}
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)
}

// TestE2EXDPAuto: `auto` attaches XDP on a device whose driver runs XDP and keeps its
// offloads, such as a tap. It does not on the veth beside it. For a device that is made
// again it decides again.
func TestE2EXDPAuto(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{})
	sh := func(script string) {
		t.Helper()
		if _, err := h.Host.Run(h.Ctx, "sh", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	const plug = "ip tuntap add tap0 mode tap; ip addr add 203.0.113.9/24 dev tap0; ip link set tap0 up"
	want := func(mode, eth0, tap0 string) {
		t.Helper()
		var v ctl.StatusView
		h.JSON(t, &v, "status")
		got := map[string]string{}
		for _, u := range v.Uplinks {
			got[u.Device] = u.XDP
		}
		if v.XDP != mode || got["eth0"] != eth0 || got["tap0"] != tap0 {
			t.Errorf("XDP %s: %+v, want %s on eth0, %s on tap0", v.XDP, v.Uplinks, eth0, tap0)
		}
		out := h.Must(t, "check")
		for device, x := range got {
			if x = map[string]string{"native": "on", "off": "off"}[x]; !strings.Contains(out, x+" on "+device) {
				t.Errorf("check does not say %s on %s: %s", x, device, out)
			}
		}
	}
	sh(plug)
	r := h.Fastbr(t, "up", "--uplink", "eth0", "--uplink", "tap0")
	if r.Code != 0 || !strings.Contains(r.Stderr, "uplink tap0: XDP on") || strings.Contains(r.Stderr, "eth0: XDP") {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	want("auto", "off", "native")
	sh("ip link del tap0;" + plug)
	h.Must(t, "up")
	want("auto", "off", "native")
	h.Must(t, "up", "--xdp", "off")
	want("off", "off", "off")
	h.Must(t, "up", "--xdp", "auto")
	want("auto", "off", "native")
	h.Must(t, "up", "--uplink", "eth0")
	if out, err := h.Host.Run(h.Ctx, "ip", "link", "show", "tap0"); err != nil || strings.Contains(out, "xdp") {
		t.Errorf("tap0 is no uplink any more: %v, %s", err, out)
	}
}

// foreignXDP attaches another program's XDP to a device. The result detaches it.
func foreignXDP(t *testing.T, n *lab.Namespace, dev string) (detach func()) {
	t.Helper()
	index, err := n.Index(dev)
	if err != nil {
		t.Fatal(err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}}) // XDP_PASS
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prog.Close() }()
	var l link.Link
	if err := n.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPDriverMode})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return func() { _ = l.Close() }
}
