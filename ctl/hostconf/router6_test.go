package hostconf

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// advertisedHost is a host whose address and default route its router has advertised.
func advertisedHost(t *testing.T) (*lab.Lab, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, lab.Options{IPv6: lab.Automatic, Uplinks: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, ctx
}

// sysctls reads or, with a value, writes settings of the host.
func sysctls(t *testing.T, l *lab.Lab, want map[string]string, when string) {
	t.Helper()
	for key, v := range want {
		if now, err := l.Host.Sysctl("net.ipv6.conf." + key); err != nil || now != v {
			t.Errorf("%s: %s is %s (%v), want %s", when, key, now, err, v)
		}
	}
}

// TestRouteSurvives: a host with an advertised route keeps it while a network is routed,
// whoever makes the host a router meanwhile, and afterwards. What was set before is set
// again, unless the host is still a router by somebody else's will.
func TestRouteSurvives(t *testing.T) {
	// Not beside the tests that run in parallel: it changes what IPv6 is.
	testutil.RequireRoot(t)
	l, ctx := advertisedHost(t)
	h := &Host{Record: &Record{}, Save: func() error { return nil }, Say: t.Logf}
	do := func(f func() error) {
		t.Helper()
		if err := l.Host.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	routed := func(when string) {
		t.Helper()
		if r, err := l.Host.Ping(ctx, l.Outside.Addr6, lab.PingOptions{Count: 1, Wait: 10 * time.Second}); err != nil || r.Received != 1 {
			t.Errorf("%s: the host has lost its default route: %+v, %v", when, r, err)
		}
	}
	forward := func(v string) {
		t.Helper()
		if err := l.Host.SetSysctl("net.ipv6.conf.all.forwarding", v); err != nil {
			t.Fatal(err)
		}
	}
	// An older kernel is one whose devices have no setting of their own.
	opens := false
	do(func() error { opens = IPv6.OpensDevices(); return nil })
	for _, leaf := range []string{"force_forwarding", "none"} {
		if leaf == "force_forwarding" && !opens {
			continue
		}
		was := IPv6
		IPv6.leaf = leaf
		t.Cleanup(func() { IPv6 = was })
		set := func() {
			t.Helper()
			do(func() error { return h.Set(Want{Router6: true, Advertised: []string{"eth0"}}) })
		}
		set()
		routed(leaf + ": up")
		router := map[bool]string{true: "0", false: "1"}[leaf == "force_forwarding"]
		sysctls(t, l, map[string]string{"all.forwarding": router, "eth0.accept_ra": "2"}, leaf+": up")
		for range 2 {
			forward("1")
			routed(leaf + ": somebody makes the host a router")
		}
		set()
		forward("0")
		set()
		routed(leaf + ": a command after that")
		do(h.Restore)
		routed(leaf + ": down")
		sysctls(t, l, map[string]string{"all.forwarding": "0", "default.forwarding": "0", "eth0.forwarding": "0", "eth0.accept_ra": "1", "default.accept_ra": "1"}, leaf+": down")

		set()
		forward("1") // by somebody else; where fastbr has done it, that is not to be seen
		do(h.Restore)
		routed(leaf + ": down on a router")
		if leaf == "force_forwarding" {
			sysctls(t, l, map[string]string{"all.forwarding": "1", "eth0.accept_ra": "2"}, leaf+": down on a router")
		}
		forward("0")
		if err := l.Host.SetSysctl("net.ipv6.conf.eth0.accept_ra", "1"); err != nil {
			t.Fatal(err)
		}

		// A manager of the network takes the route upon itself.
		set()
		if err := l.Host.SetSysctl("net.ipv6.conf.eth0.accept_ra", "0"); err != nil {
			t.Fatal(err)
		}
		set()
		do(h.Restore)
		sysctls(t, l, map[string]string{"eth0.accept_ra": "0"}, leaf+": a manager's")
		if err := l.Host.SetSysctl("net.ipv6.conf.eth0.accept_ra", "1"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnkept names the devices whose routes would go.
func TestUnkept(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	l, _ := advertisedHost(t)
	err := l.Host.Do(func() error {
		if got := Unkept([]string{"eth0", "eth1", "gone"}); !slices.Equal(got, []string{"eth0", "eth1"}) {
			t.Errorf("before: %v", got)
		}
		h := &Host{Record: &Record{}, Save: func() error { return nil }, Say: t.Logf}
		if err := h.Set(Want{Router6: true, Advertised: []string{"eth0"}}); err != nil {
			return err
		}
		if got := Unkept([]string{"eth0", "eth1"}); !slices.Equal(got, []string{"eth1"}) {
			t.Errorf("with one kept: %v", got)
		}
		return h.Restore()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenDevicesForward: what comes in by an opened device is forwarded, though the host
// is no router, and nothing else is.
func TestOpenDevicesForward(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	if _, err := os.Stat(conf6 + "default/force_forwarding"); err != nil {
		t.Skip("needs Linux 6.17")
	}
	l, ctx := advertisedHost(t)
	for i, o := range l.Outsides {
		if err := o.AddRoute(netip.PrefixFrom(l.Outsides[1-i].Addr6, 64).Masked(), l.HostAddr6(i)); err != nil {
			t.Fatal(err)
		}
	}
	h := &Host{Record: &Record{}, Save: func() error { return nil }, Say: t.Logf}
	reaches := func(want int, when string) {
		t.Helper()
		r, err := l.Outsides[0].Ping(ctx, l.Outsides[1].Addr6, lab.PingOptions{Count: 1, Wait: time.Duration(1+9*want) * time.Second})
		if err != nil || r.Received != want {
			t.Errorf("%s: %+v, %v, want %d answers", when, r, err, want)
		}
	}
	on := func(f func() error) {
		t.Helper()
		if err := l.Host.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	reaches(0, "closed")
	for _, device := range []string{"eth0", "eth1"} {
		on(func() error {
			closed, err := h.RecordClosed(IPv6, device)
			if !closed {
				t.Errorf("%s counts as open", device)
			}
			if err != nil {
				return err
			}
			return IPv6.Open(device)
		})
	}
	reaches(1, "opened")
	on(func() error { return h.Close(IPv6, "eth0") })
	reaches(0, "one closed again")
	on(h.Restore)
	on(func() error {
		if can, err := h.CanOpenOthers(IPv6, nil); !can || err != nil {
			t.Errorf("cannot open others: %v", err)
		}
		return h.OpenOthers(IPv6)
	})
	reaches(1, "all opened")
	// Somebody makes the host a router, and takes that back when fastbr has gone.
	on(func() error { return errors.Join(Write(Forward6, "1"), h.CloseOthers(IPv6, nil), Write(Forward6, "0")) })
	reaches(0, "all closed")
	sysctls(t, l, map[string]string{"eth0.force_forwarding": "0", "default.force_forwarding": "0", "all.forwarding": "0", "eth0.accept_ra": "1"}, "after all")
}
