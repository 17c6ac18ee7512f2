package link_test

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/lab"
)

// TestProxies: an entry is membership in the group in which others ask for the address,
// though the kernel is not told to answer.
func TestProxies(t *testing.T) {
	rootOnly(t)
	l, err := lab.New(t.Context(), lab.Options{IPv6: lab.Static, Private: []netip.Prefix{}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	index, err := l.Host.Index("eth0")
	if err != nil {
		t.Fatal(err)
	}
	p := link.Proxy{Index: index, Addr: netip.MustParseAddr("2001:db8:1::ab:cdef")}
	member := func() bool {
		out, err := l.Host.Run(t.Context(), "ip", "-6", "maddr", "show", "dev", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out, "ff02::1:ffab:cdef")
	}
	err = l.Host.Do(func() error {
		c, err := link.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		for _, twice := range []bool{false, true} {
			if err := link.AddProxies(c, []link.Proxy{p, {Index: 9999, Addr: p.Addr}}); err != nil {
				return err
			}
			list, err := link.Proxies(c)
			if err != nil || !list[p] || !slices.Equal(slices.Collect(maps.Keys(list)), []link.Proxy{p}) || !member() {
				t.Errorf("twice %v: entries %v, %v, member %v", twice, list, err, member())
			}
		}
		for range 2 {
			if err := link.DeleteProxies(c, []link.Proxy{p}); err != nil {
				return err
			}
		}
		list, err := link.Proxies(c)
		if err != nil || len(list) != 0 || member() {
			t.Errorf("after deleting: %v, %v, member %v", list, err, member())
		}
		// The user's own stays.
		if _, err := l.Host.Run(t.Context(), "ip", "-6", "neigh", "add", "proxy", p.Addr.String(), "dev", "eth0"); err != nil {
			return err
		}
		if err := errors.Join(link.AddProxies(c, []link.Proxy{p}), link.DeleteProxies(c, []link.Proxy{p})); err != nil {
			return err
		}
		if list, err := link.Proxies(c); err != nil || len(list) != 1 || list[p] || !member() {
			t.Errorf("the user's own: %v, %v, member %v", list, err, member())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
