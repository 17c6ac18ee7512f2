package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fastbr/fastbr/internal/lab"
)

const (
	// dropTime is after how long a connection counts as silently dropped.
	dropTime = 2 * time.Second
	// passTime is how long a connection that a filter lets through may take on a loaded
	// machine.
	passTime = 2 * time.Minute
)

// reaches asks a TCP echo server once. within is passTime or dropTime.
func (h *e2e) reaches(from *lab.Namespace, to netip.AddrPort, within time.Duration) error {
	ctx, cancel := context.WithTimeout(h.Ctx, within)
	defer cancel()
	return from.EchoTCP(ctx, netip.AddrPort{}, to, "let through?")
}

// blocked reports whether a filter lets no connection through.
func (h *e2e) blocked(from *lab.Namespace, to netip.AddrPort) bool {
	return h.reaches(from, to, dropTime) != nil
}

// resolves asks the gateway for c1, by UDP and by TCP.
func (h *e2e) resolves(from *lab.Namespace, within time.Duration) error {
	var errs []error
	for _, network := range []string{"udp", "tcp"} {
		errs = append(errs, from.Do(func() error {
			c, err := net.DialTimeout(network, on(h.gateway(), 53).String(), within)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			client := &dns.Client{Timeout: within}
			reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion("c1.", dns.TypeA), &dns.Conn{Conn: c})
			if err == nil && len(reply.Answer) == 0 {
				return errors.New("no address")
			}
			return err
		}))
	}
	return errors.Join(errs...)
}

// eventually waits until another process has done something.
func (h *e2e) eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, passTime)
	defer cancel()
	var last error
	if err := lab.Poll(ctx, func() (bool, error) { last = try(); return last == nil, nil }); err != nil {
		t.Errorf("waiting for %s: %v", what, errors.Join(err, last))
	}
}

// through checks that a container reaches outside and gets names from its gateway, and
// that clients reach a published port.
func (h *e2e) through(t *testing.T, when string, from *lab.Namespace, server, published netip.AddrPort) {
	t.Helper()
	for what, err := range map[string]error{"out": h.reaches(from, server, passTime), "to the published port": h.reaches(h.Outside, published, passTime)} {
		if err != nil {
			t.Errorf("%s, %s: %v", when, what, err)
		}
	}
	h.eventually(t, "names "+when, func() error { return h.resolves(from, pingPatience) })
}
