package e2e

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/fastbr/fastbr/internal/lab"
)

// nameServer is a resolver outside that gives its own address for every name.
func (h *e2e) nameServer(t *testing.T) netip.AddrPort {
	t.Helper()
	at := on(h.Outside.Addr, 53)
	var pc net.PacketConn
	err := h.Outside.Do(func() (err error) {
		pc, err = net.ListenPacket("udp4", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		reply := new(dns.Msg).SetReply(req)
		if q := req.Question[0]; q.Qtype == dns.TypeA {
			reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass},
				A: h.Outside.Addr.AsSlice()}}
		}
		_ = w.WriteMsg(reply)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = pc.Close() })
	return at
}

// TestE2ENames asks, as a program in a container does, for names of other containers
// and for names of the outside.
func TestE2ENames(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	h.serve(t, "--dns-upstream", h.nameServer(t).String())
	h.Must(t, "network", "create", "quiet", "--dns=false")
	hosts := func(network, name string) string {
		return strings.Fields(h.Must(t, "run", "--network", network, "--", "getent", "ahostsv4", name) + " none")[0]
	}
	c1 := h.Containers[0].Addr.String()
	// The first answer shows that serve has found the network.
	waitFor(t, h.Ctx, "names to be answered", func() bool {
		return h.Fastbr(t, "run", "--", "getent", "ahostsv4", "c1").Code == 0
	})
	for name, want := range map[string]string{
		"c1": c1, "c1.default": c1, "C1": c1, "www.example.org": h.Outside.Addr.String(),
	} {
		if got := hosts("default", name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if r := h.Fastbr(t, "run", "--", "getent", "ahostsv4", "nobody.default"); r.Code == 0 {
		t.Errorf("a name that nobody has is %s", r.Stdout)
	}
	// A run has the name that it was given, and an /etc/resolv.conf of its own.
	own := h.Must(t, "run", "--name", "job", "--", "sh", "-c", "getent ahostsv4 job.default; cat /etc/resolv.conf")
	if !strings.HasPrefix(own, "172.30.0.") || !strings.Contains(own, "nameserver "+h.gateway().String()+"\n") {
		t.Errorf("inside a run named job: %s", own)
	}
	host := h.Must(t, "run", "--network", "host", "--", "cat", "/etc/resolv.conf")
	if quiet := h.Must(t, "run", "--network", "quiet", "--", "cat", "/etc/resolv.conf"); quiet != host {
		t.Errorf("without names /etc/resolv.conf is %q, want the host's %q", quiet, host)
	}
	if strings.Contains(host, h.gateway().String()) {
		t.Errorf("the host's resolv.conf was changed: %s", host)
	}
}
