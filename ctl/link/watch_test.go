package link_test

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/lab"
)

// watchIn subscribes inside a namespace; the test itself runs elsewhere.
func watchIn(t *testing.T, n *lab.Namespace) *link.Watcher {
	t.Helper()
	var w *link.Watcher
	if err := n.Do(func() (err error) { w, err = link.Watch(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// expect waits until all kinds of change in want were reported. It returns all
// that were reported.
func expect(t *testing.T, w *link.Watcher, want link.Change) link.Change {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var got link.Change
	for got&want != want {
		select {
		case <-w.Ready():
			got |= w.Take()
		case <-ctx.Done():
			t.Fatalf("changes %06b, want %06b", got, want)
		}
	}
	return got
}

// settle takes the changes that are still under way.
func settle(w *link.Watcher) {
	for {
		select {
		case <-w.Ready():
			w.Take()
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

func TestWatchReportsChanges(t *testing.T) {
	rootOnly(t)
	l, err := lab.New(t.Context(), lab.Options{Containers: 1, Private: []netip.Prefix{}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := watchIn(t, l.Host)
	route := netip.MustParsePrefix("192.0.2.99/32")
	run := func(n *lab.Namespace, argv ...string) {
		t.Helper()
		if _, err := n.Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		do   func() error
		want link.Change
	}{
		{"route", func() error { return l.Host.AddRoute(route, l.OutsideAddr(0)) }, link.RouteChange},
		{"address", func() error { return l.Host.AddAddr("eth0", netip.MustParsePrefix("198.51.100.9/24")) }, link.AddressChange},
		{"ruleset", func() error { return l.Host.NFT(t.Context(), "add table ip x") }, link.RulesetChange},
		{"flush", func() error { return l.Host.NFT(t.Context(), "flush ruleset") }, link.RulesetChange},
		{"device", func() error { return lab.Veth(l.Host, "v0", l.Containers[0], "eth0", 0) }, link.LinkChange},
		{"qdisc", func() error { run(l.Host, "tc", "qdisc", "add", "dev", "v0", "root", "pfifo"); return nil }, link.QueueingChange},
		{"rule", func() error { run(l.Host, "ip", "rule", "add", "from", "192.0.2.99", "table", "7"); return nil }, link.RouteChange},
		{"down", func() error { return l.Host.SetDown("eth0") }, link.DownChange},
	} {
		t.Run(c.name, func(t *testing.T) {
			settle(w)
			if err := c.do(); err != nil {
				t.Fatal(err)
			}
			expect(t, w, c.want)
		})
	}
}

func TestWatchSeesGatewayMove(t *testing.T) {
	rootOnly(t)
	l, err := lab.New(t.Context(), lab.Options{Private: []netip.Prefix{}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := watchIn(t, l.Host)
	ping := func() {
		t.Helper()
		if r, err := l.Host.Ping(t.Context(), l.Outside.Addr, lab.PingOptions{Count: 1}); err != nil || r.Received != 1 {
			t.Fatalf("ping: %+v %v", r, err)
		}
	}
	ping() // the gateway becomes known
	settle(w)
	// A neighbour that is no gateway may come and go.
	if _, err := l.Host.Run(t.Context(), "ip", "neigh", "add", "198.51.100.77", "lladdr", "02:00:00:00:00:77", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Host.Run(t.Context(), "ip", "neigh", "change", "198.51.100.77", "lladdr", "02:00:00:00:00:78", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if got := w.Take(); got&link.GatewayChange != 0 {
		t.Errorf("changes %06b for a neighbour that is no gateway", got)
	}
	settle(w)
	if _, err := l.Host.Run(t.Context(), "ip", "neigh", "replace", l.OutsideAddr(0).String(), "lladdr", "02:00:00:00:00:99", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	expect(t, w, link.GatewayChange)
}

func rootOnly(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: needs root")
	}
}
