package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
)

// forwarding reads net.ipv4.conf.DEVICE.forwarding of the lab's host.
func (h *e2e) forwarding(t *testing.T, device string) (v string) {
	t.Helper()
	out, err := h.Host.Run(h.Ctx, "sysctl", "-n", "net/ipv4/conf/"+device+"/forwarding")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h *e2e) setForward(t *testing.T, v string) {
	t.Helper()
	if err := h.Host.SetSysctl("net.ipv4.ip_forward", v); err != nil {
		t.Fatal(err)
	}
}

// routesThrough gives two outsides routes to each other through the host.
func (h *e2e) routesThrough(t *testing.T) (from *lab.Namespace, to netip.Addr) {
	t.Helper()
	near, far := h.Outsides[0], h.Outsides[1]
	if err := near.AddRoute(netip.PrefixFrom(far.Addr, 32), h.HostAddr(0)); err != nil {
		t.Fatal(err)
	}
	if err := far.AddRoute(netip.PrefixFrom(h.OutsideAddr(0), 32), h.HostAddr(1)); err != nil {
		t.Fatal(err)
	}
	return near, far.Addr
}

// TestE2EHostIsNoRouter: a host that was no router is none after `up`, between any of
// its devices, until somebody sets ip_forward. Containers have their way out all the
// time, and `down` restores what `up` has found.
func TestE2EHostIsNoRouter(t *testing.T) {
	t.Parallel()
	for i, uplinks := range [][]string{{"--uplink", "eth0"}, {"--uplink", "eth0", "--uplink", "eth1"}} {
		m := e2eModes()[i]
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, m, lab.Options{Containers: 1, Uplinks: 2})
			h.setForward(t, "0")
			near, far := h.routesThrough(t)
			h.noPing(t, near, far)
			h.Must(t, append(append([]string{"up"}, m.Up...), uplinks...)...)
			c := h.Containers[0]
			h.Attach(t, c, "c1")
			h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{})
			before := h.drops(t, "isolated")
			h.noPing(t, near, far)
			h.waitDrops(t, "isolated", before, 1)
			if r := h.Fastbr(t, "check"); !strings.Contains(r.Stdout, "only containers' packets are forwarded, by fastbr0, eth0") {
				t.Errorf("check says %s", r.Stdout)
			}
			// Another program wants a router: dockerd, which finds 0.
			h.setForward(t, "1")
			h.mustPing(t, near, far, lab.PingOptions{})
			h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{})
			if r := h.Fastbr(t, "check"); !strings.Contains(r.Stdout, "this host is a router") {
				t.Errorf("check says %s", r.Stdout)
			}
			// It sets 0 again, which closes all devices, ours too.
			h.setForward(t, "0")
			for _, device := range []string{"fastbr0", "eth0"} {
				if r := h.Fastbr(t, "status"); !strings.Contains(r.Stdout, "net.ipv4.conf."+device+".forwarding is 0") {
					t.Errorf("status says %s", r.Stdout)
				}
			}
			h.Must(t, "up")
			h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{})
			h.noPing(t, near, far)
			h.Must(t, "down", "--all")
			if got := h.forwarding(t, "all") + h.forwarding(t, "eth0") + h.forwarding(t, "eth1"); got != "000" {
				t.Errorf("forwarding of all, eth0, eth1 after down: %s", got)
			}
		})
	}
}

// TestE2EHostIsARouter: a host that was a router stays one, while fastbr is up and
// afterwards.
func TestE2EHostIsARouter(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]map[string]string{
		"ip_forward": {"all": "1"},
		// As systemd-networkd does for IPv4Forwarding= of a link.
		"by devices": {"all": "0", "eth0": "1", "eth1": "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2})
			for _, device := range []string{"all", "eth0", "eth1"} {
				if v := before[device]; v != "" {
					if err := h.Host.Do(func() error {
						return os.WriteFile("/proc/sys/net/ipv4/conf/"+device+"/forwarding", []byte(v), 0)
					}); err != nil {
						t.Fatal(err)
					}
				}
			}
			near, far := h.routesThrough(t)
			h.Must(t, "up", "--uplink", "eth0")
			h.Attach(t, h.Containers[0], "c1")
			h.mustPing(t, near, far, lab.PingOptions{})
			h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{})
			h.Must(t, "down", "--all")
			h.mustPing(t, near, far, lab.PingOptions{})
		})
	}
}

// TestE2ERouterBesideUs: another engine sets ip_forward while fastbr is up. It stays
// set after `down`, for the devices that fastbr had opened, too.
func TestE2ERouterBesideUs(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2})
	h.setForward(t, "0")
	near, far := h.routesThrough(t)
	h.Must(t, "up", "--uplink", "eth0")
	h.setForward(t, "1")
	h.Must(t, "down", "--all")
	h.mustPing(t, near, far, lab.PingOptions{})
	// A routed network needs a router. That need ends with the network.
	h.setForward(t, "0")
	h.Must(t, "up", "--uplink", "eth0", "--masquerade=false")
	if v := h.forwarding(t, "all"); v != "1" {
		t.Errorf("ip_forward is %s for a network that is not translated", v)
	}
	h.Must(t, "down", "--all")
	if got := h.forwarding(t, "all") + h.forwarding(t, "eth0"); got != "00" {
		t.Errorf("forwarding of all, eth0 after down: %s", got)
	}
}
