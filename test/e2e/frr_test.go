package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// frrDaemons is where Debian keeps FRR's daemons.
const frrDaemons = "/usr/lib/frr"

// ospfConf makes a host announce its containers' subnet on its links to other hosts.
// docs/hosts.md shows it.
const ospfConf = `router ospf
 ospf router-id ROUTER
interface fastbr0
 ip ospf area 0
 ip ospf passive
`

const ospfLink = `interface LINK
 ip ospf area 0
 ip ospf network point-to-point
 ip ospf dead-interval minimal hello-multiplier 4
`

// router is a host with one container, which FRR leads to the containers of others.
type router struct {
	*e2e
	number    int
	links     []string
	container *lab.Namespace
}

// TestE2EFRR: three hosts in a triangle announce their containers' subnets to each other
// by OSPF. Containers reach each other with their own addresses, on the fast path in both
// directions, and by the third host when a link is cut. No command of fastbr is needed
// for any of it.
func TestE2EFRR(t *testing.T) {
	t.Parallel()
	testutil.RequireCommand(t, filepath.Join(frrDaemons, "zebra"), filepath.Join(frrDaemons, "ospfd"))
	m := harness.Mode{Name: "fast", Leaky: true}
	h := newE2E(t, m, lab.Options{Containers: 3})
	rs := h.triangle(t)
	for _, r := range rs {
		r.start(t)
	}
	for _, from := range rs {
		for _, to := range rs {
			if from != to {
				from.assertFastTo(t, to)
			}
		}
	}

	// A running flow goes on when its link is cut, by way of the third host.
	a, between, b := rs[0], rs[1], rs[2]
	s := h.ServeUDP(t, b.container, on(b.container.Addr, 9090))
	sock, err := a.container.ListenUDP(on(a.container.Addr, 5000))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	a.becomesFast(t, m, "c", func() { a.comesToPass(t, sock, s.Addr, true) })
	if err := a.Host.SetDown("to3"); err != nil {
		t.Fatal(err)
	}
	a.comesToPass(t, sock, s.Addr, true)
	a.becomesFast(t, m, "c", func() { a.comesToPass(t, sock, s.Addr, true) })
	assertPeers(t, s, a.container.Addr)
	if out, err := a.Host.Run(h.Ctx, "ip", "route", "get", b.container.Addr.String()); err != nil || !strings.Contains(out, "dev to2") {
		t.Errorf("the route after the cut: %s, %v", out, err)
	}

	// A network without containers has no carrier, and is announced no more.
	between.Must(t, "detach", "c")
	waitFor(t, h.Ctx, "the route to a network without containers to go", func() bool {
		out, err := a.Host.Run(h.Ctx, "ip", "route", "show", "172.30.2.0/24")
		return err == nil && out == ""
	})
}

// triangle makes three hosts out of the rig's and two more, each linked to both others.
func (h *e2e) triangle(t *testing.T) []*router {
	t.Helper()
	rs := make([]*router, 3)
	for i := range rs {
		rs[i] = &router{e2e: h, number: i + 1, container: h.Containers[i]}
		if i > 0 {
			host, err := h.Add(fmt.Sprint("h", i+1))
			if err != nil {
				t.Fatal(err)
			}
			rs[i].e2e = &e2e{h.On(host)}
		}
	}
	link := 0
	for i, a := range rs {
		for _, b := range rs[i+1:] {
			da, db := fmt.Sprint("to", b.number), fmt.Sprint("to", a.number)
			if err := lab.Veth(a.Host, da, b.Host, db, 1500); err != nil {
				t.Fatal(err)
			}
			for side, end := range map[int]*router{1: a, 2: b} {
				dev := map[int]string{1: da, 2: db}[side]
				if err := end.Host.AddAddr(dev, netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(4*link + side)}), 30)); err != nil {
					t.Fatal(err)
				}
				end.links = append(end.links, dev)
			}
			link++
		}
	}
	return rs
}

// start brings up a network of the host's own, and FRR.
func (r *router) start(t *testing.T) {
	t.Helper()
	up := append([]string{"up", "--masquerade=false", "--subnet", fmt.Sprintf("172.30.%d.0/24", r.number)}, r.Mode.Up...)
	for _, dev := range r.links {
		up = append(up, "--uplink", dev)
	}
	r.Must(t, up...)
	t.Cleanup(func() { r.Must(t, "down", "--all") })
	r.shortLease(t)
	r.Attach(t, r.container, "c")

	dir := frrDir(t)
	conf := strings.ReplaceAll(ospfConf, "ROUTER", fmt.Sprint("192.0.2.", r.number))
	for _, dev := range r.links {
		conf += strings.ReplaceAll(ospfLink, "LINK", dev)
	}
	for name, text := range map[string]string{"zebra": "", "ospfd": conf} {
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	zserv := filepath.Join(dir, "zserv")
	r.daemon(t, dir, "zebra", zserv)
	waitFor(t, r.Ctx, "zebra's socket", func() bool {
		_, err := os.Stat(zserv)
		return err == nil
	})
	r.daemon(t, dir, "ospfd", zserv)
}

// daemon starts one of FRR's daemons.
func (r *router) daemon(t *testing.T, dir, name, zserv string) {
	t.Helper()
	file := filepath.Join(dir, name)
	c := r.Host.Exec(r.Ctx, filepath.Join(frrDaemons, name), "-f", file+".conf", "-i", file+".pid",
		"-z", zserv, "--vty_socket", dir, "-P", "0", "--log", "stdout")
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("%s of host %d: %s", name, r.number, log.String())
		}
	})
}

// frrDir is a directory for one host's daemons, which run as the user frr.
func frrDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fbfrr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	u, err := user.Lookup("frr")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid) // Linux: always a number
	if err := os.Chown(dir, uid, -1); err != nil {
		t.Fatal(err)
	}
	return dir
}

// assertFastTo sends from the host's container to another host's, which sees its own
// address. Both hosts forward by the fast path.
func (r *router) assertFastTo(t *testing.T, to *router) {
	t.Helper()
	s := r.ServeTCP(t, to.container, on(to.container.Addr, 80))
	defer s.Close()
	waitFor(t, r.Ctx, fmt.Sprintf("a route from host %d to host %d and back", r.number, to.number), func() bool {
		p, err := r.container.Ping(r.Ctx, to.container.Addr, lab.PingOptions{Count: 1})
		return err == nil && p.Received == 1
	})
	before := []uint64{r.ports(t)["c"].FastPackets, to.ports(t)["c"].FastPackets}
	if err := lab.EchoBulk(r.Ctx, r.container, s.Addr, 2<<20); err != nil {
		t.Errorf("host %d to host %d: %v", r.number, to.number, err)
	}
	for i, end := range []*router{r, to} {
		if n := end.ports(t)["c"].FastPackets - before[i]; n <= 20 {
			t.Errorf("host %d to host %d: host %d forwarded %d packets by the fast path", r.number, to.number, end.number, n)
		}
	}
	assertPeers(t, s, r.container.Addr)
}
