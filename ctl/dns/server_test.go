package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/fastbr/fastbr/ctl"
)

type zones []ctl.Zone

func (z zones) Zones() ([]ctl.Zone, error) { return z, nil }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func lab() zones {
	return zones{
		{Network: "lab", Gateway: addr("10.9.0.1"), Subnet: netip.MustParsePrefix("10.9.0.0/24"), Subnet6: netip.MustParsePrefix("2001:db8:9::/64"),
			Hosts:  map[string]netip.Addr{"web": addr("10.9.0.2"), "my.db": addr("10.9.0.3")},
			Hosts6: map[string]netip.Addr{"my.db": addr("2001:db8:9::3")}},
		{Network: "inner", Gateway: addr("10.8.0.1"), Subnet: netip.MustParsePrefix("10.8.0.0/24"), Internal: true,
			Hosts: map[string]netip.Addr{"secret": addr("10.8.0.2")}},
	}
}

// upstream is a resolver of the host that gives every name the same address.
func upstream(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	srv := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
			reply := new(dns.Msg).SetReply(req)
			reply.Answer = []dns.RR{&dns.A{Hdr: header(req.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, 53)}}
			_ = w.WriteMsg(reply)
		})}
	go func() { _ = srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown() })
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func TestQuestionsAreAnswered(t *testing.T) {
	s := NewServer(lab(), []netip.AddrPort{upstream(t)}, t.Logf)
	for _, c := range []struct {
		name, client, ask string
		qtype             uint16
		rcode             int
		want              string // of the only answer; "": no answer
	}{
		{"name", "10.9.0.9", "web.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"name in the network", "10.9.0.9", "web.lab.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"any case", "10.9.0.9", "WeB.Lab.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"name with a dot", "10.9.0.9", "my.db.", dns.TypeA, dns.RcodeSuccess, "10.9.0.3"},
		{"no IPv6 address", "10.9.0.9", "web.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"IPv6 address", "10.9.0.9", "My.db.lab.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:9::3"},
		{"IPv6 address without the network", "10.9.0.9", "my.db.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:9::3"},
		{"unknown in the network, IPv6", "10.9.0.9", "nobody.lab.", dns.TypeAAAA, dns.RcodeNameError, ""},
		{"name of an IPv6 address", "10.9.0.9", "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", dns.TypePTR, dns.RcodeSuccess, "my.db.lab."},
		{"free IPv6 address", "10.9.0.9", "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"part of an IPv6 address", "10.9.0.9", "8.b.d.0.1.0.0.2.ip6.arpa.", dns.TypePTR, dns.RcodeSuccess, "192.0.2.53"},
		{"unknown in the network", "10.9.0.9", "nobody.lab.", dns.TypeA, dns.RcodeNameError, ""},
		{"address", "10.9.0.9", "2.0.9.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "web.lab."},
		{"free address", "10.9.0.9", "9.0.9.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"elsewhere", "10.9.0.9", "example.org.", dns.TypeA, dns.RcodeSuccess, "192.0.2.53"},
		{"name of another network", "10.9.0.9", "secret.", dns.TypeA, dns.RcodeSuccess, "192.0.2.53"},
		{"internal network, own name", "10.8.0.9", "secret.inner.", dns.TypeA, dns.RcodeSuccess, "10.8.0.2"},
		{"internal network, elsewhere", "10.8.0.9", "example.org.", dns.TypeA, dns.RcodeRefused, ""},
		{"the host itself", "10.9.0.1", "web.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"no container", "192.0.2.1", "example.org.", dns.TypeA, dns.RcodeRefused, ""},
		{"network that has gone", "10.7.0.9", "web.", dns.TypeA, dns.RcodeRefused, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := new(dns.Msg).SetQuestion(c.ask, c.qtype)
			client := addr(c.client)
			gateway := netip.PrefixFrom(client, 24).Masked().Addr().Next()
			reply := s.reply(context.Background(), gateway, client, req, "udp")
			if reply.Rcode != c.rcode || reply.Id != req.Id {
				t.Errorf("%s, want %s:\n%v", dns.RcodeToString[reply.Rcode], dns.RcodeToString[c.rcode], reply)
			}
			got := ""
			for _, rr := range reply.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					got += rr.A.String()
				case *dns.AAAA:
					got += rr.AAAA.String()
				case *dns.PTR:
					got += rr.Ptr
				}
			}
			if got != c.want {
				t.Errorf("answered %q, want %q", got, c.want)
			}
		})
	}
}

func TestNoResolverIsAFailure(t *testing.T) {
	s := NewServer(lab(), nil, t.Logf)
	reply := s.reply(context.Background(), addr("10.9.0.1"), addr("10.9.0.2"), new(dns.Msg).SetQuestion("example.org.", dns.TypeA), "udp")
	if reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", reply)
	}
}

// TestClientDecidesNotGateway: whichever gateway it asks, a container learns
// what its own network knows. A container in an internal network learns nothing
// from another gateway.
func TestClientDecidesNotGateway(t *testing.T) {
	s := NewServer(lab(), []netip.AddrPort{upstream(t)}, t.Logf)
	ask := func(client, gateway, name string) *dns.Msg {
		return s.reply(context.Background(), addr(gateway), addr(client), new(dns.Msg).SetQuestion(name, dns.TypeA), "udp")
	}
	for _, name := range []string{"web.", "secret.", "example.org."} {
		if reply := ask("10.8.0.2", "10.9.0.1", name); reply != nil {
			t.Errorf("a container in an internal network asks another's gateway for %s and hears %v", name, reply)
		}
	}
	if reply := ask("10.9.0.2", "10.8.0.1", "secret.inner."); len(reply.Answer) != 1 || reply.Authoritative {
		t.Errorf("a container asks an internal network's gateway for a name there: %v, want the upstream's answer", reply)
	}
	if reply := ask("10.9.0.2", "10.8.0.1", "web."); len(reply.Answer) != 1 || !reply.Authoritative {
		t.Errorf("a container asks another gateway for its own network's name: %v", reply)
	}
}

// silence is a resolver of the host that answers only names that begin with
// "good".
func silence(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		if strings.HasPrefix(req.Question[0].Name, "good") {
			_ = w.WriteMsg(new(dns.Msg).SetReply(req))
		}
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = pc.Close() })
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// TestUnanswerableQuestionsHarmNobodyElse: one container asks more questions
// than may wait.
func TestUnanswerableQuestionsHarmNobodyElse(t *testing.T) {
	s := NewServer(lab(), []netip.AddrPort{silence(t)}, t.Logf)
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer cancel()
	ask := func(ctx context.Context, client, name string) int {
		return s.reply(ctx, addr("10.9.0.1"), addr(client), new(dns.Msg).SetQuestion(name, dns.TypeA), "udp").Rcode
	}
	for range asking {
		flood.Go(func() {
			for ctx.Err() == nil {
				ask(ctx, "10.9.0.2", "bad.example.")
			}
		})
	}
	for ask(ctx, "10.9.0.2", "good.example.") != dns.RcodeRefused {
		continue // fewer than may wait
	}
	for range 20 {
		if rcode := ask(ctx, "10.9.0.3", "good.example."); rcode != dns.RcodeSuccess {
			t.Errorf("another container's question: %s", dns.RcodeToString[rcode])
		}
		if rcode := ask(ctx, "10.9.0.2", "web.lab."); rcode != dns.RcodeSuccess {
			t.Errorf("a container's name, asked for by the flooder itself: %s", dns.RcodeToString[rcode])
		}
	}
}

func TestContainerConfigNamesWhoCanBeReached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	host := "nameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch example.org\n"
	if err := os.WriteFile(path, []byte(host), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path     string
		internal bool
		want     string
	}{
		{path, false, "nameserver 10.9.0.1\nnameserver 192.0.2.53\nsearch example.org\n"},
		{path, true, "nameserver 10.9.0.1\nsearch example.org\n"},
		{path + "-missing", false, "nameserver 10.9.0.1\n"},
	} {
		got, err := ContainerConfig(c.path, addr("10.9.0.1"), c.internal)
		if err != nil || got != c.want {
			t.Errorf("%s, internal %v: %q, %v, want %q", c.path, c.internal, got, err, c.want)
		}
	}
}
