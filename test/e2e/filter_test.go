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
	// dropTime is after how long what a filter drops silently is taken for dropped.
	dropTime = 2 * time.Second
	// passTime is how long a loaded machine may take for what a filter lets through.
	passTime = 2 * time.Minute
)

// reaches asks a TCP echo server once. within is passTime or dropTime.
func (h *e2e) reaches(from *lab.Namespace, to netip.AddrPort, within time.Duration) error {
	ctx, cancel := context.WithTimeout(h.Ctx, within)
	defer cancel()
	return from.EchoTCP(ctx, netip.AddrPort{}, to, "let through?")
}

// blocked tells that a filter lets no connection through.
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

// eventually waits for what another process does when it gets to it.
func (h *e2e) eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, passTime)
	defer cancel()
	var last error
	if err := lab.Poll(ctx, func() (bool, error) { last = try(); return last == nil, nil }); err != nil {
		t.Errorf("waiting for %s: %v", what, errors.Join(err, last))
	}
}

// through wants a container to get out and to the gateway's names, and clients to get
// to a published port.
func (h *e2e) through(t *testing.T, when string, from *lab.Namespace, server, published netip.AddrPort) {
	t.Helper()
	for what, err := range map[string]error{"out": h.reaches(from, server, passTime), "to the published port": h.reaches(h.Outside, published, passTime)} {
		if err != nil {
			t.Errorf("%s, %s: %v", when, what, err)
		}
	}
	h.eventually(t, "names "+when, func() error { return h.resolves(from, pingPatience) })
}
