package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

// dialDNS connects from a container to a resolver.
func dialDNS(t *testing.T, from *lab.Namespace, network string, to netip.Addr) net.Conn {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = net.DialTimeout(network, on(to, 53).String(), pingPatience)
		return err
	})
	if err != nil {
		t.Fatalf("%s, %s to %v: %v", from.Name, network, to, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// askDNS asks for the address of a name.
func askDNS(t *testing.T, from *lab.Namespace, network string, to netip.Addr, name string) (*dns.Msg, error) {
	t.Helper()
	client := &dns.Client{Timeout: pingPatience}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: dialDNS(t, from, network, to)})
	return reply, err
}

// silentServer is a resolver outside that answers only for good.example, by UDP and
// TCP.
func (h *e2e) silentServer(t *testing.T) netip.AddrPort {
	t.Helper()
	at := on(h.Outside.Addr, 53)
	var udp net.PacketConn
	var tcp net.Listener
	err := h.Outside.Do(func() (err error) {
		if udp, err = net.ListenPacket("udp4", at.String()); err == nil {
			tcp, err = net.Listen("tcp4", at.String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		if req.Question[0].Name == "good.example." {
			_ = w.WriteMsg(new(dns.Msg).SetReply(req))
		}
	})
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		go func() { _ = srv.ActivateAndServe() }()
	}
	t.Cleanup(func() { _, _ = udp.Close(), tcp.Close() })
	return at
}

// TestE2EDNSFlood: one container has more unanswered questions and more connections
// than the resolver admits. Another container's names, names of the outside and the
// metrics stay available all the time.
func TestE2EDNSFlood(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	serve, at := h.serve(t, "--dns-upstream", h.silentServer(t).String())
	// As many file descriptors as a service often has.
	if err := unix.Prlimit(serve.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 1024}, nil); err != nil {
		t.Fatal(err)
	}
	c1, c2, gw := h.Containers[0], h.Containers[1], h.gateway()
	waitFor(t, h.Ctx, "names to be answered", func() bool {
		reply, err := askDNS(t, c2, "udp", gw, "c1.default.")
		return err == nil && len(reply.Answer) == 1
	})
	stop := make(chan struct{})
	flood := dialDNS(t, c1, "udp", gw)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			q, err := new(dns.Msg).SetQuestion(fmt.Sprintf("bad%d.example.", i), dns.TypeA).Pack()
			if err == nil {
				_, _ = flood.Write(q)
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	defer func() { close(stop); <-done }()
	// It reads its refusals. From then on all questions that may wait are its own.
	buf := make([]byte, 512)
	for range 100 {
		_ = flood.SetReadDeadline(time.Now().Add(pingPatience))
		if _, err := flood.Read(buf); err != nil {
			t.Fatalf("the flood is not refused: %v", err)
		}
	}
	for range 1100 {
		dialDNS(t, c1, "tcp", gw)
	}
	for _, network := range []string{"udp", "tcp"} {
		for name, answers := range map[string]int{"c1.default.": 1, "good.example.": 0} {
			for range 5 {
				reply, err := askDNS(t, c2, network, gw, name)
				if err != nil || reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != answers {
					t.Errorf("c2 asks by %s for %s: %v, %v", network, name, reply, err)
				}
			}
		}
	}
	dialMetrics := func() (c net.Conn, err error) {
		err = h.Host.Do(func() error {
			c, err = net.DialTimeout("tcp4", at.String(), pingPatience)
			return err
		})
		return c, err
	}
	for range 1100 {
		c, err := dialMetrics()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dialMetrics() }}, Timeout: pingPatience}
	a, err := client.Get("http://" + at.String() + "/metrics")
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	_ = a.Body.Close()
	if a.StatusCode != http.StatusOK {
		t.Errorf("metrics: status %d", a.StatusCode)
	}
}
