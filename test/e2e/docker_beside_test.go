package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2EBesideDockersBridge: containers of Docker's own bridge and of fastbr reach each
// other's published ports, by each address of the host. So projects can move over one at a
// time. By its own address, fastbr's container is not reached.
func TestE2EBesideDockersBridge(t *testing.T) {
	t.Parallel()
	d := newEngine(t, lab.Options{})
	d.docker(t, "network", "create", "-d", d.driver, "--subnet", "10.77.0.0/24", "web")
	ours := d.start(t, "ours", "web", "-p", "8080:80", "-p", "5300:53/udp")
	theirs := d.start(t, "theirs", "bridge", "-p", "9080:80", "-p", "9300:53/udp")
	d.eventually(t, "docker0 is an uplink", func() error { return d.isUplink(t, "docker0") })
	for _, way := range []struct {
		from, to *lab.Namespace
		tcp, udp uint16
	}{{theirs, ours, 8080, 5300}, {ours, theirs, 9080, 9300}} {
		tcp, udp := d.ServeTCP(t, way.to, on(way.to.Addr, 80)), d.ServeUDP(t, way.to, on(way.to.Addr, 53))
		for _, host := range []netip.Addr{d.HostAddr(0), netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("10.77.0.1")} {
			what := fmt.Sprintf("%s by %s", way.from.Name, host)
			if err := d.reaches(way.from, on(host, way.tcp), passTime); err != nil {
				t.Errorf("TCP from %s: %v", what, err)
			}
			if err := way.from.EchoUDP(d.Ctx, netip.AddrPort{}, on(host, way.udp), "x"); err != nil {
				t.Errorf("UDP from %s: %v", what, err)
			}
			if err := lab.EchoBulk(d.Ctx, way.from, on(host, way.tcp), 4<<20); err != nil {
				t.Errorf("bulk from %s: %v", what, err)
			}
		}
		if way.to == ours && !d.blocked(way.from, tcp.Addr) { // the reverse is Docker's to decide
			t.Errorf("%s reaches %v itself", way.from.Name, tcp.Addr)
		}
		for _, s := range []*lab.Server{tcp, udp} {
			if slices.Contains(seenBy(s), ours.Addr) {
				t.Errorf("%v saw the address of fastbr's container", s.Addr)
			}
		}
	}
	// Docker's own traffic is what it was.
	s := d.ServeTCP(t, d.Outside, on(d.Outside.Addr, 7))
	if err := d.reaches(theirs, s.Addr, passTime); err != nil {
		t.Errorf("out of Docker's bridge: %v", err)
	}
	assertPeers(t, s, d.HostAddr(0))
	if err := d.reaches(d.Outside, on(d.HostAddr(0), 9080), passTime); err != nil {
		t.Errorf("into Docker's bridge: %v", err)
	}
	d.mustPing(t, d.Host, theirs.Addr, lab.PingOptions{})
	d.docker(t, "rm", "-f", "ours", "theirs")
	d.docker(t, "network", "rm", "web")
}
