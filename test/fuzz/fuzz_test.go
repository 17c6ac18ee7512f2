// Package fuzz sends frames of any content, with or without tags and virtio headers,
// from hostile containers and from outside. They pass through a host with the real
// binary. The package judges every frame that arrives anywhere. The seeds run with
// every test; `make fuzz` looks for more.
package fuzz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

func FuzzLabFast(f *testing.F) { fuzz(f, harness.Mode{Name: "fast"}) }

func FuzzLabSlow(f *testing.F) {
	fuzz(f, harness.Mode{Name: "slow", Up: []string{"--lease", "0"}})
}

func FuzzLabXDP(f *testing.F) { fuzz(f, harness.Mode{Name: "xdp", Up: []string{"--xdp", "native"}}) }

func fuzz(f *testing.F, m harness.Mode) {
	r := newRig(f, m)
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(r.fire)
}

// rig is a lab in which hostile parties send, honest parties talk, and every place is
// watched. A process has one.
type rig struct {
	*harness.Rig
	judge
	plain, virtio [shooters]*lab.Injector
	places        []place
	talks         []talk // repeated after every input
	connections   []talk // repeated after some inputs
	inputs        int
	shots         uint32
	fast          uint64 // packets of a2 that took the fast path
}

// place is where frames are judged.
type place struct {
	name string
	tap  *lab.Tap
	see  func(*judge, lab.Tapped) error
}

// talk is a conversation between honest parties. say returns once the other side has
// answered with the same text.
type talk struct {
	name string
	say  func(message []byte) error
}

// newRig builds the lab. The default network has a1, which is hostile, and a2, which
// has published a port. An internal network has b1, which is hostile, and b2. The host
// has two uplinks, and one device that is no uplink.
func newRig(tb testing.TB, m harness.Mode) *rig {
	tb.Helper()
	testutil.RequireCommand(tb, "ethtool", "nft", "ip")
	r := &rig{judge: *newJudge()}
	m.Leaky = true // the judge watches what leaves, and knows that gateways' addresses are the host's
	r.Rig = harness.New(tb, m, lab.Options{Containers: 2, Uplinks: 2})
	tb.Cleanup(r.Renew) // the cleanups run at the end of hours
	lan := r.add(tb, "n")
	check(tb, lab.Veth(r.Host, "lan0", lan, "eth0", 0))
	check(tb, r.Host.AddAddr("lan0", netip.PrefixFrom(lanIP, 24)))
	check(tb, lan.AddAddr("eth0", netip.PrefixFrom(n1IP, 24)))
	check(tb, lan.AddRoute(netip.Prefix{}, lanIP))
	check(tb, r.Host.SetSysctl("net.ipv4.conf.lan0.rp_filter", "1")) // else the host answers for it under any name
	for _, d := range []struct {
		n   *lab.Namespace
		dev string
		mac mac
	}{
		{r.Host, "eth0", host0MAC}, {r.Outsides[0], "eth0", o1MAC}, {r.Host, "eth1", host1MAC}, {r.Outsides[1], "eth0", o2MAC},
		{r.Host, "lan0", lanMAC}, {lan, "eth0", n1MAC},
	} {
		r.run(tb, d.n, "ip", "link", "set", d.dev, "address", net.HardwareAddr(d.mac[:]).String())
	}
	// Anybody outside may claim by ARP to be the next hop. fastbr cannot prevent that,
	// so the neighbours are permanent.
	for _, n := range []struct {
		n   *lab.Namespace
		dev string
		ip  netip.Addr
		mac mac
	}{{r.Host, "lan0", n1IP, n1MAC}, {r.Host, "eth0", o1IP, o1MAC}, {r.Host, "eth1", o2IP, o2MAC}, {r.Outsides[0], "eth0", host0IP, host0MAC}, {r.Outsides[1], "eth0", host1IP, host1MAC}} {
		r.run(tb, n.n, "ip", "neigh", "replace", n.ip.String(), "lladdr", net.HardwareAddr(n.mac[:]).String(), "dev", n.dev, "nud", "permanent")
	}
	check(tb, r.Host.NFT(r.Ctx, `table inet admin {
		chain forward { type filter hook forward priority 0; ip daddr `+forbidden.String()+` drop; }
		chain output { type filter hook output priority 0; ip daddr `+forbidden.String()+` drop; }
	}`))
	r.run(tb, r.Host, "ethtool", "-K", "eth0", "tx", "off") // eth0: the kernel fills in checksums of what leaves; eth1 leaves them to the device
	if m.Name == "xdp" {
		for _, o := range r.Outsides {
			r.run(tb, o, "ethtool", "-K", "eth0", "tx", "off") // whole checksums, as from a wire
		}
	}

	r.Must(tb, append([]string{"up", "--subnet", netA.String(), "--uplink", "eth0", "--uplink", "eth1", "--nat-flows", "8192"}, m.Up...)...)
	r.Must(tb, "up", "inner", "--subnet", netB.String(), "--bridge", "inner0", "--internal")
	hostile, victim := r.Containers[0], r.Containers[1]
	innerHostile, innerVictim := r.add(tb, "b1"), r.add(tb, "b2")
	r.Attach(tb, hostile, "a1")
	r.Attach(tb, victim, "a2")
	r.Attach(tb, innerHostile, "b1", "--network", "inner")
	r.Attach(tb, innerVictim, "b2", "--network", "inner")
	r.Must(tb, "publish", "add", fmt.Sprintf("%d:%d/udp", publishedPort, servicePort), "a2")
	r.Must(tb, "publish", "add", fmt.Sprintf("%d:%d/tcp", publishedPort, servicePort), "a2")
	r.run(tb, hostile, "ip", "link", "set", "eth0", "mtu", "9000") // its owner may do so

	for i, n := range []*lab.Namespace{a1: hostile, b1: innerHostile, o1: r.Outsides[0], o2: r.Outsides[1], n1: lan} {
		var err error
		r.plain[i], err = n.NewInjector("eth0")
		check(tb, err)
		tb.Cleanup(r.plain[i].Close)
		r.virtio[i], err = n.NewVirtioInjector("eth0")
		check(tb, err)
		tb.Cleanup(r.virtio[i].Close)
	}
	r.watch(tb, "a1", hostile, "eth0", (&container{a1, a1IP, a1MAC, a2IP, a2MAC, gwA, brAMAC, false, false}).see)
	r.watch(tb, "a2", victim, "eth0", (&container{a2, a2IP, a2MAC, a1IP, a1MAC, gwA, brAMAC, false, true}).see)
	r.watch(tb, "b1", innerHostile, "eth0", (&container{b1, b1IP, b1MAC, b2IP, b2MAC, gwB, brBMAC, true, false}).see)
	r.watch(tb, "b2", innerVictim, "eth0", (&container{b2, b2IP, b2MAC, b1IP, b1MAC, gwB, brBMAC, true, false}).see)
	r.watch(tb, "o1", r.Outsides[0], "eth0", (&outside{o1, o1MAC, host0MAC, false}).see)
	r.watch(tb, "o2", r.Outsides[1], "eth0", (&outside{o2, o2MAC, host1MAC, false}).see)
	r.watch(tb, "n1", lan, "eth0", (&outside{n1, n1MAC, lanMAC, true}).see)
	r.watch(tb, "the host's end of the default network", r.Host, ctl.DefaultBridge, (&bridge{netA, gwA, false}).see)
	r.watch(tb, "the host's end of the internal network", r.Host, "inner0", (&bridge{netB, gwB, true}).see)

	r.converse(tb, hostile, victim, innerHostile, innerVictim)
	r.settle(tb, true)
	r.fast = r.fastPackets(tb)
	return r
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (r *rig) add(tb testing.TB, name string) *lab.Namespace {
	tb.Helper()
	n, err := r.Add(name)
	check(tb, err)
	return n
}

func (r *rig) run(tb testing.TB, n *lab.Namespace, args ...string) {
	tb.Helper()
	_, err := n.Run(r.Ctx, args...)
	check(tb, err)
}

func (r *rig) watch(tb testing.TB, name string, n *lab.Namespace, dev string, see func(*judge, lab.Tapped) error) {
	tb.Helper()
	tap, err := n.NewTap(dev)
	check(tb, err)
	tb.Cleanup(tap.Close)
	r.places = append(r.places, place{name, tap, see})
}

// converse begins the conversations of the honest parties, and flows of the hostile
// parties that their frames may meet.
func (r *rig) converse(tb testing.TB, hostile, victim, innerHostile, innerVictim *lab.Namespace) {
	tb.Helper()
	any4, out := netip.IPv4Unspecified(), r.Outsides[0]
	echoAt, public := netip.AddrPortFrom(any4, echoPort), netip.AddrPortFrom(host0IP, publishedPort)
	answerUDP(tb, hostile, echoAt)
	answerUDP(tb, innerHostile, echoAt)
	for _, a := range []netip.Addr{gwA, gwB, host0IP} {
		answerUDP(tb, r.Host, netip.AddrPortFrom(a, echoPort))
	}
	for i, o := range r.Outsides {
		answerUDP(tb, o, netip.AddrPortFrom([]netip.Addr{server1, server3}[i], echoPort))
	}
	r.ServeTCP(tb, out, echoAt)
	r.ServeTCP(tb, hostile, echoAt)
	answerUDP(tb, victim, netip.AddrPortFrom(any4, servicePort))
	r.ServeTCP(tb, victim, netip.AddrPortFrom(any4, servicePort))

	udp := func(name string, n *lab.Namespace, from netip.AddrPort, to netip.AddrPort) talk {
		c, err := n.ListenUDP(from)
		check(tb, err)
		tb.Cleanup(func() { _ = c.Close() })
		return talk{name, func(b []byte) error { return sayUDP(c, to, b) }}
	}
	tcp := func(name string, n *lab.Namespace, from, to netip.AddrPort) talk {
		c, err := n.DialTCP(r.Ctx, from, to)
		check(tb, err)
		tb.Cleanup(func() { _ = c.Close() })
		return talk{name, func(b []byte) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return lab.Echo(ctx, c, string(b))
		}}
	}
	at := netip.AddrPortFrom
	r.talks = []talk{
		udp("a2 to outside", victim, at(any4, victimPort), at(server1, echoPort)),
		udp("outside to the published port", out, at(server2, 5000), public),
		udp("a2 to its own published port", victim, at(any4, 20005), public),
		udp("the host to outside", r.Host, at(any4, 0), at(server1, echoPort)),
		udp("a2 to a1", victim, at(any4, 20006), at(a1IP, echoPort)),
		udp("b2 to b1", innerVictim, at(any4, victimPort), at(b1IP, echoPort)),
	}
	r.connections = []talk{
		tcp("a2's connection to outside", victim, at(any4, victimPort), at(server1, echoPort)),
		tcp("a connection to the published port", out, at(server2, 5000), public),
		tcp("a2's connection to its own published port", victim, at(any4, 20005), public),
		tcp("a2's connection to a1", victim, at(any4, 20006), at(a1IP, echoPort)),
	}
	// The hostile parties' own flows, which they may break. They only have to send a
	// datagram now and then.
	for i, to := range []netip.AddrPort{at(server1, echoPort), at(server3, echoPort), public} {
		c, err := hostile.ListenUDP(at(any4, ownPort+20*uint16(i)))
		check(tb, err)
		tb.Cleanup(func() { _ = c.Close() })
		r.connections = append(r.connections, talk{"a1's own", func(b []byte) error {
			_, _ = c.WriteToUDPAddrPort(b, to)
			return nil
		}})
	}
	c, err := hostile.DialTCP(r.Ctx, at(netip.Addr{}, ownPort), at(server1, echoPort))
	check(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
}

// answered is how an answer begins. Nobody answers an answer, so two servers do not
// talk forever.
const answered = "re: "

// answerUDP answers each datagram with its own text, until the test ends.
func answerUDP(tb testing.TB, n *lab.Namespace, at netip.AddrPort) {
	tb.Helper()
	c, err := n.ListenUDP(at)
	check(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err == nil && !bytes.HasPrefix(buf[:n], []byte(answered)):
				_, _ = c.WriteToUDPAddrPort(append([]byte(answered), buf[:n]...), from)
			}
		}
	}()
}

// patience is how long an honest message may take on a loaded machine.
const patience = 60 * time.Second

// sayUDP sends a message until it is answered by its receiver. It ignores other
// datagrams.
func sayUDP(c *net.UDPConn, to netip.AddrPort, message []byte) error {
	buf := make([]byte, 2048)
	for begin := time.Now(); ; {
		if _, err := c.WriteToUDPAddrPort(message, to); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				return err
			}
			if bytes.Equal(buf[:n], append([]byte(answered), message...)) && from.Port() == to.Port() && from.Addr().Unmap() == to.Addr() {
				return nil
			}
		}
		if time.Since(begin) > patience {
			return fmt.Errorf("no echo from %v", to)
		}
	}
}

// fire sends the shots of an input and judges what comes of them.
func (r *rig) fire(t *testing.T, input []byte) {
	all := decode(input, r.shots, r.mark)
	r.shots += uint32(len(all))
	for _, s := range all {
		r.tell(s)
		// The kernel refuses some frames: for example, the lengths in a header
		// disagree.
		if s.hdr != nil {
			_ = r.virtio[s.from].SendVirtio(*s.hdr, s.frame)
		} else {
			_ = r.plain[s.from].Send(s.frame)
		}
	}
	r.inputs++
	r.settle(t, r.inputs%16 == 0)
	if r.inputs%1000 == 0 {
		r.stillFast(t)
	}
	if t.Failed() {
		var b strings.Builder
		for _, s := range all {
			fmt.Fprintf(&b, "\n%v", s)
		}
		t.Logf("input %d of this lab:%s", r.inputs, b.String())
	}
}

// settle lets the honest parties talk. Their packets come after everything that was
// sent before. Then it judges what every place has seen.
func (r *rig) settle(tb testing.TB, connections bool) {
	tb.Helper()
	talks := r.talks
	if connections {
		talks = append(talks[:len(talks):len(talks)], r.connections...)
	}
	for i, k := range talks {
		message := append(binary.BigEndian.AppendUint64([]byte("honest"), uint64(r.inputs)), byte(i))
		if err := k.say(append(message, k.name...)); err != nil {
			tb.Errorf("%s: %v", k.name, err)
		}
	}
	for _, p := range r.places {
		told := 0
		err := p.tap.Drain(func(f lab.Tapped) {
			if err := p.see(&r.judge, f); err != nil && told < 5 {
				told++
				tb.Errorf("at %s: %v: %x", p.name, err, f.Frame[:min(len(f.Frame), 300)])
			}
		})
		if err != nil {
			tb.Errorf("%s: %v", p.name, err)
		}
	}
}

// stillFast checks that a2's packets take the fast path, unless the mode has none.
func (r *rig) stillFast(tb testing.TB) {
	tb.Helper()
	now := r.fastPackets(tb)
	if slow := r.Mode.Name == "slow"; slow == (now > r.fast) {
		tb.Errorf("%d packets of a2's were fast since the last look, slow mode: %v", now-r.fast, slow)
	}
	r.fast = now
}

func (r *rig) fastPackets(tb testing.TB) uint64 {
	tb.Helper()
	r.Renew()
	var list []ctl.PortView
	r.JSON(tb, &list, "port", "ls")
	for _, p := range list {
		if p.Name == "a2" {
			return p.FastPackets
		}
	}
	tb.Fatal("a2 is not listed")
	return 0
}
