package ctl

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/testutil"
)

// newDualHost makes a host with a network of both families, whose loopback device is up.
func newDualHost(t *testing.T) *host {
	t.Helper()
	needIPv6(t)
	h := newHost(t)
	if err := h.conn.SetUp(1, true); err != nil { // lo
		t.Fatal(err)
	}
	_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{Subnet6: netip.MustParsePrefix("2001:db8:9::/64")}, InstanceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A port is published by each family that the container has, unless the host address or the
// clients are of one only. Another publication may have the port of the other family.
func TestPublishByEachFamily(t *testing.T) {
	h := newDualHost(t)
	if _, _, err := h.ctl(t).Up(h.ctx, "four", NetworkRequest{}, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	both := h.attach(t, testutil.NewNetns(t).Path(), "both")
	_, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), Name: "old", Network: "four"})
	if err != nil {
		t.Fatal(err)
	}
	ip4, ip6 := netip.MustParsePrefix(both.IP).Addr(), netip.MustParsePrefix(both.IP6).Addr()
	clients4, clients6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:2::/48")
	loopback := netip.IPv6Loopback()
	at := func(host string, port uint16, name string) PublishRequest {
		a, err := ParseHostIP(host)
		if err != nil {
			t.Fatal(err)
		}
		return PublishRequest{HostIP: a, First: port, Last: port, Port: 80, Proto: "tcp", Name: name}
	}
	allow := func(r PublishRequest, four, six bool) PublishRequest {
		if four {
			r.Allow = clients4
		}
		if six {
			r.Allow6 = clients6
		}
		return r
	}
	// What the datapath knows of a port by a family, apart from what all here have in common.
	type to struct {
		host  netip.Addr
		allow netip.Prefix
	}
	all := to{}
	for what, x := range map[string]struct {
		r         PublishRequest
		four, six *to
		refused   error
	}{
		"every address":                      {at("", 8000, "both"), &all, &all, nil},
		"every IPv4 address":                 {at("0.0.0.0", 8001, "both"), &all, nil, nil},
		"every IPv6 address":                 {at("::", 8002, "both"), nil, &all, nil},
		"::1":                                {at("::1", 8003, "both"), nil, &to{host: loopback}, nil},
		"an IPv4-mapped address":             {at("::ffff:127.0.0.1", 8004, "both"), &to{host: netip.MustParseAddr("127.0.0.1")}, nil, nil},
		"IPv4 clients":                       {allow(at("", 8005, "both"), true, false), &to{allow: clients4}, nil, nil},
		"IPv6 clients":                       {allow(at("", 8006, "both"), false, true), nil, &to{allow: clients6}, nil},
		"clients of both":                    {allow(at("", 8007, "both"), true, true), &to{allow: clients4}, &to{allow: clients6}, nil},
		"IPv4 container":                     {at("", 8008, "old"), &all, nil, nil},
		"IPv4 container, every IPv6 address": {at("::", 8009, "old"), nil, nil, ErrInvalid},
		"IPv4 container, IPv6 clients":       {allow(at("", 8009, "old"), false, true), nil, nil, ErrInvalid},
		"IPv6 clients of an IPv4 address":    {allow(at("0.0.0.0", 8009, "both"), false, true), nil, nil, ErrInvalid},
		"IPv4 clients of an IPv6 address":    {allow(at("::", 8009, "both"), true, false), nil, nil, ErrInvalid},
		"an address of a link":               {at("fe80::1", 8009, "both"), nil, nil, ErrInvalid},
		"a group":                            {at("ff02::1", 8009, "both"), nil, nil, ErrInvalid},
		"an address of nobody here":          {at("2001:db8:ffff::1", 8009, "both"), nil, nil, errors.New("is no address of this host")},
	} {
		v, err := h.ctl(t).Publish(h.ctx, x.r)
		if x.refused != nil {
			if !errors.Is(err, x.refused) && (err == nil || !strings.Contains(err.Error(), x.refused.Error())) {
				t.Errorf("%s: %v, want %v", what, err, x.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		f := h.fake(t)
		for _, family := range []struct {
			want            *to
			have            map[uint16]datapath.Publication
			container, any  netip.Addr
			host, ip, allow string
		}{
			{x.four, f.Published, ip4, netip.IPv4Unspecified(), v.HostIP, v.IP, v.Allow},
			{x.six, f.Published6, ip6, netip.IPv6Unspecified(), v.HostIP6, v.IP6, v.Allow6},
		} {
			p, there := family.have[x.r.First]
			if there != (family.want != nil) {
				t.Errorf("%s: published to %s: %v", what, family.container, there)
			}
			if family.want == nil {
				if family.host+family.ip+family.allow != "" {
					t.Errorf("%s: view %+v", what, v)
				}
				continue
			}
			if p.HostAddr != family.want.host || p.Allow != family.want.allow || x.r.Name == "both" && p.Container != family.container {
				t.Errorf("%s: the datapath knows %+v", what, p)
			}
			host, clients := family.want.host, family.want.allow
			if !host.IsValid() {
				host = family.any
			}
			if !clients.IsValid() {
				clients = netip.PrefixFrom(family.any, 0)
			}
			if family.host != host.String() || family.ip != p.Container.String() || family.allow != clients.String() {
				t.Errorf("%s: view %+v", what, v)
			}
		}
	}
	for what, r := range map[string]PublishRequest{
		"both over both":                       at("", 8000, "old"),
		"IPv4 over both":                       at("127.0.0.1", 8000, "old"),
		"an address over all":                  at("::1", 8002, "both"),
		"all over an address":                  at("::", 8003, "both"),
		"both over clients by one family only": at("", 8006, "both"),
	} {
		if _, err := h.ctl(t).Publish(h.ctx, r); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "is published already, to both") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The other family's port is free.
	for what, r := range map[string]PublishRequest{"IPv6": at("::", 8008, "both"), "IPv4": at("0.0.0.0", 8003, "old")} {
		if _, err := h.ctl(t).Publish(h.ctx, r); err != nil {
			t.Errorf("%s beside the other family: %v", what, err)
		}
	}
	if local := h.fake(t).Local; !slices.Contains(local, loopback) || !slices.Contains(local, netip.MustParseAddr("2001:db8:9::1")) {
		t.Errorf("the host's addresses: %v", local)
	}

	if _, err := h.ctl(t).Unpublish(h.ctx, at("0.0.0.0", 8000, "")); !errors.Is(err, ErrNoPort) {
		t.Errorf("half of a publication: %v", err)
	}
	for _, host := range []string{"", "0.0.0.0", "::"} {
		port := map[string]uint16{"": 8000, "0.0.0.0": 8001, "::": 8002}[host]
		r := at(host, port, "")
		r.Port = 0
		if gone, err := h.ctl(t).Unpublish(h.ctx, r); err != nil || len(gone) != 1 {
			t.Errorf("removing %q: %v, %v", host, gone, err)
		}
		if f := h.fake(t); f.Published[port].First != 0 || f.Published6[port].First != 0 {
			t.Errorf("removing %q has left something", host)
		}
	}
}

// A socket of the host keeps the port of its own families from being published.
func TestPublishBesideSockets(t *testing.T) {
	h := newDualHost(t)
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	dual := func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) }), err)
	}
	for _, x := range []struct {
		network string
		control func(_, _ string, c syscall.RawConn) error
		taken   []string
	}{{"tcp4", nil, []string{"", "0.0.0.0"}}, {"tcp6", nil, []string{"", "::"}}, {"tcp6", dual, []string{"", "0.0.0.0", "::"}}} {
		ln, err := (&net.ListenConfig{Control: x.control}).Listen(h.ctx, x.network, ":9000")
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"", "0.0.0.0", "::"} {
			r := PublishRequest{First: 9000, Last: 9000, Port: 80, Proto: "tcp", Name: "c1"}
			if r.HostIP, err = ParseHostIP(host); err != nil {
				t.Fatal(err)
			}
			_, err := h.ctl(t).Publish(h.ctx, r)
			if want := slices.Contains(x.taken, host); want != errors.Is(err, ErrExists) || !want && err != nil {
				t.Errorf("a socket has the port of %q, and %q is published: %v", x.taken, host, err)
			}
			if err == nil {
				if _, err := h.ctl(t).Unpublish(h.ctx, r); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// In a network with PublishedOnly, clients use a container's own address by each family that
// is not translated, and an address of the host by the other.
func TestPublishAtOwnAddresses(t *testing.T) {
	n := func(own, own6 bool) *network {
		return &network{Definition: Definition{PublishedOnly: own || own6, Masquerade: !own, Routed6: own6, Subnet6: netip.MustParsePrefix("fd00::/64")}}
	}
	p := &port{IP: netip.MustParseAddr("172.30.0.2"), IP6: netip.MustParseAddr("fd00::2")}
	r := PublishRequest{First: 8080, Last: 8081, Port: 80, Proto: "tcp"}
	own := func(a netip.Addr) lead { return lead{a, 80, 81, true, a, netip.Prefix{}} }
	any4, any6 := lead{netip.IPv4Unspecified(), 8080, 8081, false, p.IP, netip.Prefix{}}, lead{netip.IPv6Unspecified(), 8080, 8081, false, p.IP6, netip.Prefix{}}
	for _, x := range []struct {
		own, own6 bool
		want      []lead
		first     uint16
	}{
		{false, false, []lead{any4, any6}, 8080},
		{true, false, []lead{own(p.IP), any6}, 8080},
		{false, true, []lead{any4, own(p.IP6)}, 8080},
		{true, true, []lead{own(p.IP), own(p.IP6)}, 80},
	} {
		pub := r.record(n(x.own, x.own6), p)
		if got := pub.leads(p); !slices.Equal(got, x.want) || pub.First != x.first {
			t.Errorf("own %v and %v: from %d, %+v, want %+v", x.own, x.own6, pub.First, got, x.want)
		}
		text, err := json.Marshal(pub)
		var back publication
		if err != nil || json.Unmarshal(text, &back) != nil || back != *pub {
			t.Errorf("%s, %v is read as %+v", text, err, back)
		}
	}
	r.HostIP = netip.MustParseAddr("2001:db8::1")
	if got := r.record(n(true, true), p).leads(p); !slices.Equal(got, []lead{own(p.IP6)}) {
		t.Errorf("an IPv6 address of the host: %+v", got)
	}
}

func TestParseClients(t *testing.T) {
	four, six := "192.0.2.0/24", "2001:db8::/32"
	for _, x := range []struct {
		texts  []string
		v4, v6 string
		refuse string
	}{
		{nil, "invalid Prefix", "invalid Prefix", ""},
		{[]string{four}, four, "invalid Prefix", ""},
		{[]string{six}, "invalid Prefix", six, ""},
		{[]string{six, four}, four, six, ""},
		{[]string{six, "2001:db8:1::/48"}, "", "", "one for IPv6"},
		{[]string{"2001:db8::1"}, "", "", "want a CIDR"},
		{[]string{"::ffff:192.0.2.0/120"}, "", "", "want a CIDR"},
	} {
		v4, v6, err := ParseClients(x.texts)
		if x.refuse != "" {
			if err == nil || !strings.Contains(err.Error(), x.refuse) {
				t.Errorf("%v: %v", x.texts, err)
			}
		} else if err != nil || v4.String() != x.v4 || v6.String() != x.v6 {
			t.Errorf("%v: %v, %v, %v", x.texts, v4, v6, err)
		}
	}
}
