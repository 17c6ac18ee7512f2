package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// onlyPublished lets nothing be forwarded but what belongs to a connection, or begins one
// whose destination conntrack translates, as firewalld and netavark do it.
const onlyPublished = `table ip strict {
chain early {
type filter hook prerouting priority raw;
tcp dport 8080 counter comment "early"
}
chain forward {
type filter hook forward priority 0; policy drop;
ct state invalid counter drop comment "invalid"
ct original ip daddr 198.51.100.1 meta l4proto tcp ct original proto-dst 8080 counter comment "original"
ct state established,related counter accept comment "established"
ct status dnat counter accept comment "dnat"
}
}`

// TestE2EPublishedIsDNAT: to the host's rules, and to conntrack, a published port is a port
// with DNAT, whether its packets are fast or slow. Rules and entries that vanish, and rules
// that keep packets from conntrack, interrupt nothing, and never let the host answer.
func TestE2EPublishedIsDNAT(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1})
		h.shortLease(t)
		web, tcp, udp := h.Containers[0], on(h.Host.Addr, 8080), on(h.Host.Addr, 5300)
		h.ServeTCP(t, web, on(web.Addr, 80))
		h.ServeUDP(t, web, on(web.Addr, 53))
		// conntrack knows these connections to the host, which refuses them.
		early := on(h.Outside.Addr, 45000)
		if err := h.Outside.EchoTCP(h.Ctx, early, tcp, "too early"); err == nil {
			t.Fatal("a port that is not published yet answers")
		}
		h.Must(t, "publish", "add", "8080:80", "c1")
		h.Must(t, "publish", "add", "5300-5301:53-54/udp", "c1")
		h.nft(t, onlyPublished)
		if err := h.Outside.EchoTCP(h.Ctx, early, tcp, "the host has refused this before"); err != nil {
			t.Error(err)
		}
		conn, err := h.Outside.DialTCP(h.Ctx, netip.AddrPort{}, tcp)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		sock, err := h.Outside.ListenUDP(on(netip.IPv4Unspecified(), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sock.Close() }()
		goesOn := func(when string) {
			t.Helper()
			if err := lab.Echo(h.Ctx, conn, "still there?"); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			h.comesToPass(t, sock, udp, true)
		}
		h.becomesFast(t, m, "c1", func() { goesOn("at first") })
		if err := lab.EchoBulk(h.Ctx, h.Outside, tcp, 4<<20); err != nil {
			t.Error(err)
		}
		if err := h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, udp, strings.Repeat("in fragments ", 400)); err != nil {
			t.Error(err)
		}
		h.assertErrorsPass(t)
		h.assertDNAT(t, conn)
		for _, change := range []func(){
			func() { h.mustRun(t, "conntrack", "-F") },
			func() { h.mustRun(t, "nft", "flush", "ruleset") },
			func() { h.Must(t, "up") },
			func() { h.nft(t, onlyPublished) },
			func() { h.mustRun(t, "conntrack", "-F") },
		} {
			change()
			goesOn("after a change")
			time.Sleep(5 * time.Second / 4) // a lease
			goesOn("after a change and a lease")
		}

		h.nft(t, "insert rule ip strict forward meta l4proto udp ct original proto-dst 5300 drop")
		h.comesToPass(t, sock, udp, false)
		h.nft(t, "flush chain ip strict forward; add rule ip strict forward ct status dnat accept")
		h.comesToPass(t, sock, udp, true)
		h.Must(t, "publish", "rm", "5300-5301")
		h.comesToPass(t, sock, udp, false)
		h.mustRun(t, "nft", "delete", "table", "ip", "strict")
		h.assertUntracked(t)
	})
}

// TestE2EPublishedOfRoutedIsDNAT: the same of a host where no network is translated.
func TestE2EPublishedOfRoutedIsDNAT(t *testing.T) {
	t.Parallel()
	h := upE2E(t, harness.Mode{Name: "fast", Leaky: true}, lab.Options{Containers: 1}, "--masquerade=false")
	web, tcp := h.Containers[0], on(h.Host.Addr, 8080)
	h.ServeTCP(t, web, on(web.Addr, 80))
	h.Must(t, "publish", "add", "8080:80", "c1")
	h.nft(t, onlyPublished)
	conn, err := h.Outside.DialTCP(h.Ctx, netip.AddrPort{}, tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	h.becomesFast(t, h.Mode, "c1", func() {
		if err := lab.Echo(h.Ctx, conn, "hello"); err != nil {
			t.Fatal(err)
		}
	})
	h.assertDNAT(t, conn)
}

func (h *e2e) nft(t *testing.T, ruleset string) {
	t.Helper()
	if err := h.Host.NFT(h.Ctx, ruleset); err != nil {
		t.Fatal(err)
	}
}

// mustRun runs a command on the host.
func (h *e2e) mustRun(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := h.Host.Run(h.Ctx, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// assertDNAT checks what the rules have seen, and what conntrack lists of a connection.
func (h *e2e) assertDNAT(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	for _, rule := range []string{"early", "original", "established", "dnat"} {
		if n, err := h.Host.RuleCounter(h.Ctx, rule); err != nil || n == 0 {
			t.Errorf("the rule %q has matched %d packets (%v)", rule, n, err)
		}
	}
	if n, err := h.Host.RuleCounter(h.Ctx, "invalid"); err != nil || n != 0 {
		t.Errorf("%d packets were INVALID (%v), want none", n, err)
	}
	client := conn.LocalAddr().(*net.TCPAddr)
	want := fmt.Sprintf("src=%s dst=%s sport=%d dport=8080 src=%s dst=%[1]s sport=80 dport=%[3]d",
		client.IP, h.Host.Addr, client.Port, h.Containers[0].Addr)
	if out := h.mustRun(t, "conntrack", "-L", "--dst-nat"); !strings.Contains(out, want) {
		t.Errorf("conntrack lists\n%s\nwant %s", out, want)
	}
}

// assertErrorsPass: who sends to a closed UDP socket is told so, inside and outside.
func (h *e2e) assertErrorsPass(t *testing.T) {
	t.Helper()
	web, published := h.Containers[0], on(h.Host.Addr, 5301)
	client, err := h.Outside.DialUDP(on(h.Outside.Addr, 46000), published)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	h.eventually(t, "the container's error", func() error { return refusedUDP(client) })

	server, err := web.DialUDP(on(web.Addr, 54), on(h.Outside.Addr, 46000))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if _, err := client.Write([]byte("is anybody there now?")); err != nil {
		t.Error(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(passTime))
	if _, err := server.Read(make([]byte, 64)); err != nil {
		t.Error(err)
	}
	_ = client.Close()
	h.eventually(t, "the client's error", func() error { return refusedUDP(server) })
}

// refusedUDP sends a datagram to a closed port. The error is nil if it is refused.
func refusedUDP(c *net.UDPConn) error {
	if _, err := c.Write([]byte("anybody there?")); errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := c.Read(make([]byte, 64)); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("reading: %w, want a refusal", err)
	}
	return nil
}

// assertUntracked reaches published ports whose packets rules keep from conntrack's entry.
func (h *e2e) assertUntracked(t *testing.T) {
	t.Helper()
	web := h.Containers[0]
	h.Must(t, "publish", "add", "8081-8082:80-81", "c1")
	h.Must(t, "publish", "add", "5302:53/udp", "c1")
	h.ServeTCP(t, web, on(web.Addr, 81))
	h.nft(t, `table ip untracked { chain early { type filter hook prerouting priority raw;
		tcp dport 8081 notrack
		udp dport 5302 notrack
		tcp dport 8082 ct zone set 5
	}
	}`)
	for _, port := range []uint16{8081, 8082} {
		ctx, cancel := context.WithTimeout(h.Ctx, harness.Deadline)
		defer cancel()
		if err := h.Outside.EchoTCP(ctx, netip.AddrPort{}, on(h.Host.Addr, port), "untracked"); err != nil {
			t.Errorf("port %d: %v", port, err)
		}
	}
	sock, err := h.Outside.ListenUDP(on(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	h.comesToPass(t, sock, on(h.Host.Addr, 5302), true)
}

// assertGuarded keeps clients from one of c's published ports by rules of DOCKER-USER that
// know it by what the client has asked for.
func (d *engine) assertGuarded(t *testing.T, c *lab.Namespace) {
	t.Helper()
	for _, port := range []uint16{80, 9007} {
		s := d.ServeTCP(t, c, on(c.Addr, port))
		defer s.Close()
	}
	host := d.HostAddr(0)
	for _, match := range [][]string{
		{"-p", "tcp", "-m", "conntrack", "--ctorigdstport", "8080"},
		{"-m", "conntrack", "--ctorigdst", host.String(), "--ctorigdstport", "8080", "--ctstate", "DNAT", "--ctdir", "ORIGINAL"},
	} {
		rule := append(match, "-j", "DROP")
		d.mustRun(t, append([]string{"iptables", "-I", "DOCKER-USER"}, rule...)...)
		if !d.blocked(d.Outside, on(host, 8080)) {
			t.Errorf("DOCKER-USER %v does not keep clients out", match)
		}
		if err := d.reaches(d.Outside, on(host, 9007), passTime); err != nil {
			t.Errorf("DOCKER-USER %v keeps clients of another port out: %v", match, err)
		}
		d.mustRun(t, append([]string{"iptables", "-D", "DOCKER-USER"}, rule...)...)
	}
	if err := d.reaches(d.Outside, on(host, 8080), passTime); err != nil {
		t.Errorf("without the rules: %v", err)
	}
}
