package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"net"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// strictForward is the FORWARD chain of a careful administrator. Every rule has a
// counter.
func strictForward(bridge string) string {
	return fmt.Sprintf(`
		table ip strict {
			chain forward {
				type filter hook forward priority filter; policy drop;
				ct state invalid counter drop comment "invalid"
				ct state established,related counter accept comment "established"
				iifname %q ct state new counter accept comment "new"
			}
		}
		`, bridge)
}

// TestE2EStrictForward runs bulk traffic through a stateful firewall that sees only a
// few of the packets. The firewall must not find any of them invalid.
func TestE2EStrictForward(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		lease := "1s" // many renewals
		if m.Name == "slow" {
			lease = "0"
		}
		h := newE2E(t, m, lab.Options{Containers: 2})
		// Conntrack must also accept super-packets whose headers have no length.
		if err := errors.Join(h.Host.NFT(h.Ctx, strictForward("fastbr0")), h.Outside.SetGSO("eth0", lab.CableGSO)); err != nil {
			t.Fatal(err)
		}
		h.Must(t, append(append([]string{"up"}, m.Up...), "--lease", lease)...)
		c1 := h.Containers[0]
		h.Attach(t, c1, "c1")
		for _, reverse := range []bool{false, true} {
			ct := &conntrackWatch{h: h, sport: 33333}
			if err := ct.transfer(c1, reverse); err != nil {
				t.Errorf("reverse %v: %v", reverse, err)
			}
			if !ct.assured {
				t.Errorf("reverse %v: conntrack never called the connection ASSURED: %s", reverse, ct.last)
			}
			if !slices.ContainsFunc([]string{"TIME_WAIT", "LAST_ACK", "CLOSE ", "CLOSE_WAIT", "FIN_WAIT"}, func(s string) bool { return strings.Contains(ct.last, s) }) {
				t.Errorf("reverse %v: conntrack does not know that the connection has ended: %s", reverse, ct.last)
			}
		}
		if n, err := h.Host.RuleCounter(h.Ctx, "invalid"); err != nil || n != 0 {
			t.Errorf("%d packets were INVALID (%v), want none", n, err)
		}
		if n, err := h.Host.RuleCounter(h.Ctx, "new"); err != nil || n == 0 {
			t.Errorf("%d packets were NEW (%v), want some", n, err)
		}
	})
}

// conntrackWatch transfers data during several leases and watches conntrack meanwhile.
type conntrackWatch struct {
	h       *e2e
	sport   uint16
	assured bool
	last    string
}

func (w *conntrackWatch) look(ctx context.Context) error {
	out, err := w.h.Host.Run(ctx, "conntrack", "-L", "-p", "tcp", "--sport", fmt.Sprint(w.sport))
	w.last = strings.TrimSpace(out)
	w.assured = w.assured || strings.Contains(out, "ASSURED")
	return err
}

// transfer streams until conntrack has been read 30 times, then closes.
func (w *conntrackWatch) transfer(c1 *lab.Namespace, reverse bool) error {
	w.sport++
	s, err := w.h.Outside.ServeTCP(on(w.h.Outside.Addr, 7), func(c *net.TCPConn) {
		if reverse {
			_, _ = io.Copy(c, endless{})
		} else {
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
		}
	})
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := c1.DialTCP(w.h.Ctx, port(w.sport), s.Addr)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		var err error
		if reverse {
			_, err = io.Copy(io.Discard, struct{ io.Reader }{c})
		} else {
			_, err = io.Copy(c, endless{})
		}
		done <- err
	}()
	for range 30 {
		if err := w.look(w.h.Ctx); err != nil {
			return err
		}
		select {
		case err := <-done:
			return fmt.Errorf("the transfer ended early: %w", err)
		case <-time.After(100 * time.Millisecond): // three leases in all
		}
	}
	_ = c.Close()
	<-done
	return lab.Poll(w.h.Ctx, func() (bool, error) {
		err := w.look(w.h.Ctx)
		return !strings.Contains(w.last, "ESTABLISHED"), err
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestE2EDropRuleReachesFlow inserts a DROP rule during a transfer. New connections are
// stopped at once, and the running one when its lease has ended.
func TestE2EDropRuleReachesFlow(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		lease := "1s"
		if m.Name == "slow" {
			lease = "0"
		}
		h := upE2E(t, m, lab.Options{Containers: 1}, "--lease", lease)
		c1 := h.Containers[0]
		st := h.startUpload(t, c1)

		if err := h.Host.IPTables(h.Ctx, "-I", "FORWARD", "-d", h.Outside.Addr.String(), "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
		defer cancel()
		if c, err := c1.DialTCP(ctx, netip.AddrPort{}, st.server); err == nil {
			_ = c.Close()
			t.Error("a new connection passed the DROP rule")
		}
		// Stopped means that nothing arrives within a second, whatever the speed was
		// before.
		last, since := st.got.Load(), time.Now()
		waitFor(t, h.Ctx, "the running transfer to stop", func() bool {
			if now := st.got.Load(); now != last {
				last, since = now, time.Now()
			}
			return time.Since(since) > time.Second
		})
	})
}

// upload is a connection from a container to the outside that sends all the time.
type upload struct {
	server netip.AddrPort
	got    atomic.Int64 // bytes that have arrived
	ended  chan error   // why it has stopped sending
}

// startUpload returns when the stream runs. It ends with the test.
func (h *e2e) startUpload(t *testing.T, from *lab.Namespace) *upload {
	t.Helper()
	st := &upload{ended: make(chan error, 1)}
	s, err := h.Outside.ServeTCP(on(h.Outside.Addr, 7), func(c *net.TCPConn) {
		buf := make([]byte, 1<<16)
		for {
			n, err := c.Read(buf)
			st.got.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	st.server = s.Addr
	c, err := from.DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		_, err := io.Copy(c, endless{})
		st.ended <- err
	}()
	st.goesOn(t, h.Ctx, "at all")
	return st
}

// goesOn waits until more has arrived than could be under way.
func (st *upload) goesOn(t *testing.T, ctx context.Context, when string) {
	t.Helper()
	begin, from := time.Now(), st.got.Load()
	waitFor(t, ctx, "the transfer to go on "+when, func() bool { return st.got.Load() > from+1<<24 })
	t.Logf("%s, 16 MB took %v", when, time.Since(begin).Round(time.Millisecond))
	select {
	case err := <-st.ended:
		t.Errorf("the transfer ended %s: %v", when, err)
	default:
	}
}

func waitFor(t *testing.T, ctx context.Context, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := lab.Poll(ctx, func() (bool, error) { return cond(), nil }); err != nil {
		t.Errorf("waiting for %s: %v", what, err)
	}
}

// TestE2ESurvivesFlushAndKill flushes all nft rules and kills `fastbr serve` during a
// transfer. The transfer goes on. Its speed is logged, not checked.
func TestE2ESurvivesFlushAndKill(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		if err := h.Host.NFT(h.Ctx, strings.Replace(strictForward("fastbr0"), "policy drop", "policy accept", 1)); err != nil {
			t.Fatal(err)
		}
		serve := h.Cmd("serve", "--metrics", "127.0.0.1:9469")
		serve.Stderr = os.Stderr
		if err := serve.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = serve.Process.Kill() })
		if err := h.Host.WaitListen(h.Ctx, netip.MustParseAddrPort("127.0.0.1:9469")); err != nil {
			t.Fatal(err)
		}
		st := h.startUpload(t, h.Containers[0])
		if err := h.Host.NFT(h.Ctx, "flush ruleset"); err != nil {
			t.Fatal(err)
		}
		st.goesOn(t, h.Ctx, "after the flush")
		if err := serve.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = serve.Wait()
		st.goesOn(t, h.Ctx, "after the kill")
	})
}

// TestE2EForwardTurnsToDrop sets the policy after `up`, as dockerd does. The next
// command that changes something repairs that and says so. `down` removes the rules.
func TestE2EForwardTurnsToDrop(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		if err := h.Host.IPTables(h.Ctx, "-P", "FORWARD", "DROP"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
		defer cancel()
		s := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		if c, err := h.Containers[0].DialTCP(ctx, netip.AddrPort{}, s.Addr); err == nil {
			_ = c.Close()
			t.Fatal("FORWARD DROP lets a new connection pass: nothing to repair")
		}
		before := h.forwardRules(t)
		r := h.Fastbr(t, "detach", "c2")
		if r.Code != 0 || !strings.Contains(strings.ToLower(r.Stderr), "forward") {
			t.Errorf("detach: exit %d, said %q; want 0 and a word about FORWARD", r.Code, r.Stderr)
		}
		if err := h.Containers[0].EchoTCP(h.Ctx, netip.AddrPort{}, s.Addr, "after the repair"); err != nil {
			t.Error(err)
		}
		if rules := h.forwardRules(t); !strings.Contains(rules, "fastbr") {
			t.Errorf("no tagged rule in FORWARD:\n%s", rules)
		}
		h.Must(t, "down", "--all")
		if after := h.forwardRules(t); after != before {
			t.Errorf("FORWARD after down:\n%s\nbefore the repair:\n%s", after, before)
		}
	})
}

func (h *e2e) forwardRules(t *testing.T) string {
	t.Helper()
	out, err := h.Host.Run(h.Ctx, "iptables", "-w", "-S", "FORWARD")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestE2EConntrackKeepsUDP: an answered UDP flow lives as long in conntrack as in the
// NAT. conntrack's own timeout would be shorter, and a firewall that accepts only
// ESTABLISHED would then cut the flow.
func TestE2EConntrackKeepsUDP(t *testing.T) {
	t.Parallel()
	const (
		sport = 34567
		atNAT = 300 // seconds: ours
		atCT  = 120 // and conntrack's for an answered flow
	)
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 1})
		if err := h.Host.NFT(h.Ctx, strictForward("fastbr0")); err != nil {
			t.Fatal(err)
		}
		h.Must(t, append([]string{"up"}, m.Up...)...)
		c1 := h.Containers[0]
		h.Attach(t, c1, "c1")
		at := on(h.Outside.Addr, 5000)
		server, err := h.Outside.ServeUDPEcho(at)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		c, err := c1.ListenUDP(port(sport))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		for range 3 {
			if err := lab.EchoUDPOn(h.Ctx, c, at, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		out, err := h.Host.Run(h.Ctx, "conntrack", "-L", "-p", "udp", "--sport", fmt.Sprint(sport))
		if err != nil {
			t.Fatal(err)
		}
		var left int
		if _, err := fmt.Sscanf(out, "udp 17 %d", &left); err != nil || left <= atCT || left > atNAT {
			t.Errorf("conntrack keeps the flow for another %d s (%v), want %d: %s", left, err, atNAT, out)
		}
	})
}
