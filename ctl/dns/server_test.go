package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/dns"

	"github.com/fastbr/fastbr/ctl"
)

type zones []ctl.Zone

func (z zones) Zones() ([]ctl.Zone, error) { return z, nil }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func lab() zones {
	return zones{
		{Network: "lab", Gateway: addr("10.9.0.1"), Subnet: netip.MustParsePrefix("10.9.0.0/24"),
			Hosts: map[string]netip.Addr{"web": addr("10.9.0.2"), "my.db": addr("10.9.0.3")}},
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
		name, gateway, ask string
		qtype              uint16
		rcode              int
		want               string // of the only answer; "": none
	}{
		{"name", "10.9.0.1", "web.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"name in the network", "10.9.0.1", "web.lab.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"any case", "10.9.0.1", "WeB.Lab.", dns.TypeA, dns.RcodeSuccess, "10.9.0.2"},
		{"name with a dot", "10.9.0.1", "my.db.", dns.TypeA, dns.RcodeSuccess, "10.9.0.3"},
		{"no IPv6 address", "10.9.0.1", "web.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"unknown in the network", "10.9.0.1", "nobody.lab.", dns.TypeA, dns.RcodeNameError, ""},
		{"address", "10.9.0.1", "2.0.9.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "web.lab."},
		{"free address", "10.9.0.1", "9.0.9.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"elsewhere", "10.9.0.1", "example.org.", dns.TypeA, dns.RcodeSuccess, "192.0.2.53"},
		{"name of another network", "10.9.0.1", "secret.", dns.TypeA, dns.RcodeSuccess, "192.0.2.53"},
		{"internal network, own name", "10.8.0.1", "secret.inner.", dns.TypeA, dns.RcodeSuccess, "10.8.0.2"},
		{"internal network, elsewhere", "10.8.0.1", "example.org.", dns.TypeA, dns.RcodeRefused, ""},
		{"network that has gone", "10.7.0.1", "web.", dns.TypeA, dns.RcodeRefused, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := new(dns.Msg).SetQuestion(c.ask, c.qtype)
			reply := s.reply(context.Background(), addr(c.gateway), req, "udp")
			if reply.Rcode != c.rcode || reply.Id != req.Id {
				t.Errorf("%s, want %s:\n%v", dns.RcodeToString[reply.Rcode], dns.RcodeToString[c.rcode], reply)
			}
			got := ""
			for _, rr := range reply.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					got += rr.A.String()
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
	reply := s.reply(context.Background(), addr("10.9.0.1"), new(dns.Msg).SetQuestion("example.org.", dns.TypeA), "udp")
	if reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", reply)
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
