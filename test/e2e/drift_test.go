package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// notes are the notes of `status`, as one text.
func (h *e2e) notes(t *testing.T) string {
	t.Helper()
	var v ctl.StatusView
	h.JSON(t, &v, "status")
	return strings.Join(v.Notes, "\n")
}

// onHost runs commands on the lab's host.
func (h *e2e) onHost(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if _, err := h.Host.Run(h.Ctx, strings.Fields(c)...); err != nil {
			t.Fatal(err)
		}
	}
}

// index is the ifindex of a device of the host.
func (h *e2e) index(t *testing.T, device string) int {
	t.Helper()
	out, err := h.Host.Run(h.Ctx, "cat", "/proc/net/igmp") // lists every device that is up
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && strings.TrimSuffix(f[1], ":") == device {
			n, err := strconv.Atoi(f[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no device %s in:\n%s", device, out)
	return 0
}

// unpin removes the pins that match, as a careless rm does.
func (h *e2e) unpin(t *testing.T, pattern string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(h.BPFFS, "fastbr", "*", "links", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no pin %s (%v)", pattern, err)
	}
	for _, p := range paths {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

// TestE2EUplinkWithoutItsProgram removes an uplink's egress program for IPv4 behind fastbr's
// back. From then on no packet of a container leaves by it, which the lab watches; that for
// IPv6, which has stayed, does not make up for it. `status` says why, and the next command
// that changes something mends it.
func TestE2EUplinkWithoutItsProgram(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2, IPv6: lab.Static}, "--subnet", "2001:db8:77::/64", "--masquerade6=false")
		if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", "2001:db8:77::/64", "via", h.HostAddr6(0).String()); err != nil {
			t.Fatal(err)
		}
		c := h.Containers[1] // none of its flows has begun
		h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{})
		h.mustPing(t, h.Host, h.Outside.Addr, lab.PingOptions{})

		before := h.drops(t, "no_uplink")
		h.unpin(t, strconv.Itoa(h.index(t, "eth0"))+"-out")
		// The kernel detaches a program some time after its last pin is gone.
		out, err := c.DialUDP(netip.AddrPort{}, on(h.Outside.Addr, 9))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		waitFor(t, h.Ctx, "the guard to see that the program is gone", func() bool {
			_, _ = out.Write([]byte("out"))
			return h.drops(t, "no_uplink") > before
		})
		h.noPing(t, c, h.Outside.Addr)
		h.mustPing(t, h.Host, h.Outside.Addr, lab.PingOptions{}) // the guard does not concern the host's own packets
		h.mustPing(t, c, h.Outside.Addr6, lab.PingOptions{})
		h.AssertNoLeak(t)
		if n := h.notes(t); !strings.Contains(n, "uplink eth0: link") {
			t.Errorf("status says %q", n)
		}

		r := h.Fastbr(t, "publish", "add", "8080:80", "c1")
		if r.Code != 0 || !strings.Contains(r.Stderr, "uplink eth0") {
			t.Errorf("publish add: exit %d, said %q; want the uplink's name", r.Code, r.Stderr)
		}
		if n := h.notes(t); strings.Contains(n, "uplink eth0") {
			t.Errorf("status after mending: %q", n)
		}
		h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{})
	})
}

// TestE2EUplinkOnATakenSlot: an uplink's ifindex falls on the slot of a port.
func TestE2EUplinkOnATakenSlot(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		far, err := h.Add("far")
		if err != nil {
			t.Fatal(err)
		}
		if err := lab.Veth(far, "eth0", h.Host, "tmp0", 1500); err != nil {
			t.Fatal(err)
		}
		index := h.index(t, h.ports(t)["c1"].Port) + datapath.MaxDevices
		// A device keeps its ifindex for life, so the pair is made again with the
		// wanted one.
		h.onHost(t, "ip link del tmp0", "ip link add wan0 index "+strconv.Itoa(index)+" type veth peer name eth0 netns "+far.Name)
		err = errors.Join(h.Host.SetUp("wan0"), far.SetUp("eth0"),
			h.Host.AddAddr("wan0", netip.MustParsePrefix("203.0.113.1/24")), far.AddAddr("eth0", netip.MustParsePrefix("203.0.113.2/24")),
			h.Watch("wan0", far, "eth0"))
		if err != nil {
			t.Fatal(err)
		}
		s := h.ServeUDP(t, far, on(netip.MustParseAddr("203.0.113.2"), 7))
		h.Must(t, "up", "--uplink", "eth0", "--uplink", "wan0")
		for _, what := range []string{"beside the port", "again"} {
			for range 3 {
				ctx, cancel := context.WithTimeout(h.Ctx, pingPatience)
				if err := h.Containers[0].EchoUDP(ctx, port(20000), s.Addr, what); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				cancel()
			}
			h.Must(t, "up")
		}
		assertPeers(t, s, netip.MustParseAddr("203.0.113.1"))
		if n := h.notes(t); strings.Contains(n, "wan0") {
			t.Errorf("status says %q", n)
		}
		h.AssertNoLeak(t)
		last := len(h.Captures) - 1 // `down` gives the device back, so what it carries then does not count
		h.Captures[last].Close()
		h.Captures = h.Captures[:last]
	})
}

// TestE2EUplinkAttachKilled kills a command after it has recorded an uplink and before
// it has attached the programs. `status` says so, and the next command attaches them.
func TestE2EUplinkAttachKilled(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	h.onHost(t, "ip route del default")
	h.Must(t, "up")
	h.Attach(t, h.Containers[0], "c1")
	h.onHost(t, "ip route add default via "+h.OutsideAddr(0).String())
	h.KillAt(t, "uplinks-record", "publish", "add", "8080:80", "c1")
	if n := h.notes(t); !strings.Contains(n, "uplink eth0") {
		t.Errorf("status says %q", n)
	}
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{}) // the kernel translates
	h.Must(t, "publish", "add", "8081:80", "c1")
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{})
	if n := h.notes(t); strings.Contains(n, "uplink eth0") {
		t.Errorf("status after mending: %q", n)
	}
}

// drift is a change that another program or an admin makes to something of fastbr's.
type drift struct {
	name  string
	spoil func(t *testing.T, h *e2e)
	says  string // what `status` says then
	event bool   // the kernel notifies serve of it, which mends it at once
}

// drifts are all the changes that fastbr mends, on a lab with a container c1.
func drifts() []drift {
	host := func(command string) func(*testing.T, *e2e) {
		return func(t *testing.T, h *e2e) {
			h.onHost(t, strings.ReplaceAll(command, "VETH", h.ports(t)["c1"].Port))
		}
	}
	return []drift{
		{"port leaves the bridge", host("ip link set VETH nomaster"), "is not a port of fastbr0 any more", true},
		{"port goes down", host("ip link set VETH down"), " is down", true},
		{"bridge goes down", host("ip link set fastbr0 down"), "bridge fastbr0 is down", true},
		{"bridge loses its address", host("ip addr flush dev fastbr0"), "bridge fastbr0 has lost its address 172.30.0.1/16", true},
		{"bridge has another MAC address", host("ip link set fastbr0 address 02:00:00:00:00:77"), "bridge fastbr0 has the MAC address 02:00:00:00:00:77", true},
		{"bridge forwards nothing", host("sysctl -q net.ipv4.conf.fastbr0.forwarding=0"), "net.ipv4.conf.fastbr0.forwarding is 0", true},
		{"uplink forwards nothing", host("sysctl -q net.ipv4.conf.eth0.forwarding=0"), "net.ipv4.conf.eth0.forwarding is 0", true},
		{"IPv6 comes to all devices", host("sysctl -q net.ipv6.conf.all.disable_ipv6=0"), "bridge fastbr0 has been given IPv6", true},
		{"port loses a program", func(t *testing.T, h *e2e) {
			h.unpin(t, strconv.Itoa(h.index(t, h.ports(t)["c1"].Port))+"-in")
		}, "-in is not pinned", false},
		{"uplink loses a program", func(t *testing.T, h *e2e) { h.unpin(t, strconv.Itoa(h.index(t, "eth0"))+"-in") }, "uplink eth0: link", false},
		{"guard goes", func(t *testing.T, h *e2e) { h.unpin(t, "guard") }, "link guard is not pinned", false},
	}
}

// TestE2EDriftIsMended makes every change that fastbr mends. `status` names it, and
// `up`, any other command that changes something, or serve by itself mends it. First
// each change is mended alone, by `up` and by another command in turn. Then all are
// mended together, by each of them, and `check` names every one.
func TestE2EDriftIsMended(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	c1, c2 := h.Containers[0], h.Containers[1]
	commands := [][]string{{"up"}, {"flows", "flush"}}
	whole := func(t *testing.T, spoiled []drift, how string) {
		t.Helper()
		n := h.notes(t)
		for _, d := range spoiled {
			if strings.Contains(n, d.says) {
				t.Errorf("%s: status after %s: %q", d.name, how, n)
			}
		}
		once := lab.PingOptions{Count: 1}
		h.mustPing(t, c1, h.Outside.Addr, once)
		h.mustPing(t, c1, h.gateway(), once)
		h.mustPing(t, c2, c1.Addr, once)
	}
	mend := func(t *testing.T, command []string, spoiled ...drift) {
		t.Helper()
		for _, d := range spoiled {
			d.spoil(t, h)
		}
		n, c := h.notes(t), ""
		if len(spoiled) > 1 {
			c = h.Must(t, "check")
		}
		r := h.Fastbr(t, command...)
		if r.Code != 0 {
			t.Errorf("%v: exit %d, said %q", command, r.Code, r.Stderr)
		}
		for _, d := range spoiled {
			if !strings.Contains(n, d.says) {
				t.Errorf("%s: status says %q, want %q", d.name, n, d.says)
			}
			if len(spoiled) > 1 && !strings.Contains(c, d.says) {
				t.Errorf("%s: check says nothing of it:\n%s", d.name, c)
			}
			if !slices.ContainsFunc(strings.Split(r.Stderr, "\n"), func(line string) bool {
				return strings.Contains(line, d.says) && strings.Contains(line, ": mended")
			}) {
				t.Errorf("%s: %v said %q", d.name, command, r.Stderr)
			}
		}
		whole(t, spoiled, command[0])
	}
	for i, d := range drifts() {
		mend(t, commands[i%2], d)
	}
	all := drifts()
	slices.Reverse(all) // programs are found through devices that are up
	for _, command := range commands {
		mend(t, command, all...)
	}
	h.serve(t)
	for _, d := range drifts() {
		if !d.event {
			continue
		}
		d.spoil(t, h)
		waitFor(t, h.Ctx, "serve to mend: "+d.name, func() bool { return !strings.Contains(h.notes(t), d.says) })
		whole(t, []drift{d}, "serve")
	}
}

// TestE2EStatusTellsOfUplinks has `status` say why nothing leaves.
func TestE2EStatusTellsOfUplinks(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2})
	for _, c := range []struct {
		name, spoil, says, mend string
	}{
		{"uplink down", "ip link set eth0 down", "uplink eth0 is down", "ip link set eth0 up"},
		{"uplink enslaved", "ip link set eth0 master foreign0", "uplink eth0 has become a port of another device", "ip link set eth0 nomaster"},
		{"the default route moves", "ip link add wan0 type veth peer name wan1;ip addr add 192.0.2.99/32 dev wan0;ip link set wan0 up;ip link set wan1 up;" +
			"ip route replace default dev wan0", "wan0 is an uplink now", "true"},
	} {
		if c.name == "uplink enslaved" {
			h.onHost(t, "ip link add foreign0 type bridge")
		}
		h.onHost(t, strings.Split(c.spoil, ";")...)
		if n := h.notes(t); !strings.Contains(n, c.says) {
			t.Errorf("%s: status says %q, want %q", c.name, n, c.says)
		}
		if out := h.Must(t, "check"); !strings.Contains(out, c.says) {
			t.Errorf("%s: check says nothing of it:\n%s", c.name, out)
		}
		h.onHost(t, c.mend)
		h.Must(t, "flows", "flush")
		if n := h.notes(t); strings.Contains(n, c.says) {
			t.Errorf("%s: status after mending: %q", c.name, n)
		}
	}
	if err := h.Host.NFT(h.Ctx, "table inet admin { chain strict { type filter hook forward priority 0; policy drop; }\n}"); err != nil {
		t.Fatal(err)
	}
	if n := h.notes(t); !strings.Contains(n, "inet admin strict") {
		t.Errorf("status says %q, want the chain that drops", n)
	}
	h.Must(t, "flows", "flush")
	if n := h.notes(t); strings.Contains(n, "inet admin strict") {
		t.Errorf("status after mending: %q", n)
	}
}
