package ctl

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

func (h *host) endpoint(t *testing.T, name string) EndpointView {
	t.Helper()
	v, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: DefaultNetwork, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// giveBack is the way back.
func (h *host) giveBack(t *testing.T, peer string, from *testutil.Netns) {
	t.Helper()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	from.Do(t, func() {
		var d netlink.Link
		if d, err = netlink.LinkByName(peer); err == nil {
			err = netlink.LinkSetNsFd(d, int(here.Fd()))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (h *host) reconcile(t *testing.T) {
	t.Helper()
	if err := h.ctl(t).Reconcile(h.ctx); err != nil {
		t.Fatal(err)
	}
}

// portNames are the names of the ports of the default network.
func (h *host) portNames(t *testing.T) (out []string) {
	t.Helper()
	ports, err := h.ctl(t).Ports(h.ctx, DefaultNetwork)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		out = append(out, p.Name)
	}
	return out
}

// take moves an endpoint's container end as an engine does.
func (h *host) take(t *testing.T, peer string, to *testutil.Netns) {
	t.Helper()
	ns, err := os.Open(to.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	d, err := netlink.LinkByName(peer)
	if err == nil {
		err = netlink.LinkSetNsFd(d, int(ns.Fd()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestEndpointLife(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	if _, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: "nosuch", Name: "e1"}); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("endpoint of no network: %v", err)
	}
	request := NetworkRequest{ID: strings.Repeat("ab", 32), Bridge: "br-lab", Options: map[string]string{"k": "v"}}
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", request); err != nil {
		t.Fatal(err)
	}
	h.downAll(t) // as after a reboot: only the definition is left
	v, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: "lab", Name: "e1", IP: netip.MustParseAddr("192.168.0.9")})
	if err != nil {
		t.Fatal(err)
	}
	want := EndpointView{Peer: v.Peer, IP: netip.MustParsePrefix("192.168.0.9/20"), MAC: "02:42:c0:a8:00:09",
		Gateway: netip.MustParseAddr("192.168.0.1"), Options: v.Options}
	if v.Peer == "" || v.IP != want.IP || v.MAC != want.MAC || v.Gateway != want.Gateway || v.Options["k"] != "v" {
		t.Errorf("endpoint %+v, want %+v", v, want)
	}
	d, err := h.conn.ByName(v.Peer)
	if err != nil || d.MAC.String() != v.MAC || d.MTU != 1500 || d.Up {
		t.Errorf("the container's end %+v, %v", d, err)
	}
	inside := testutil.NewNetns(t)
	if j, err := h.ctl(t).Engine().EndpointJoin(h.ctx, "lab", "e1", inside.Path()); err != nil || j.Peer != v.Peer {
		t.Errorf("join: %+v, %v", j, err)
	}
	h.take(t, v.Peer, inside)
	if _, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: inside.Path(), Network: "lab"}); !errors.Is(err, ErrExists) {
		t.Errorf("attaching the engine's container once more: %v, want ErrExists", err)
	}
	for range 2 { // the second of each finds nothing
		err = errors.Join(h.ctl(t).Engine().EndpointLeave(h.ctx, "lab", "e1"), h.ctl(t).Engine().EndpointDelete(h.ctx, "lab", "e1"))
		if err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := h.ctl(t).Engine().NetworkDiscard(h.ctx, "lab"); err != nil {
			t.Error(err)
		}
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestDiscardTakesEndpointsAlong(t *testing.T) {
	h := newHost(t)
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", NetworkRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: "lab", Name: "e1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), Network: "lab", Name: "users"}); err != nil {
		t.Fatal(err)
	}
	if err := h.ctl(t).Engine().NetworkDiscard(h.ctx, "lab"); !errors.Is(err, ErrInUse) {
		t.Errorf("with a port of the user's: %v, want ErrInUse", err)
	}
	if ports, err := h.ctl(t).Ports(h.ctx, "lab"); err != nil || len(ports) != 1 || ports[0].Name != "users" {
		t.Errorf("ports %+v, %v", ports, err)
	}
	h.clear(t)
}

// TestAbandonedEndpointsGo lets an engine forget endpoints: some that it never
// took, and one in a container, whose address it gives to another.
func TestAbandonedEndpointsGo(t *testing.T) {
	h := newHost(t)
	h.up(t)
	h.endpoint(t, "idle")
	busy := h.endpoint(t, "busy")
	h.take(t, busy.Peer, testutil.NewNetns(t))
	h.reconcile(t)
	if got := h.portNames(t); !slices.Equal(got, []string{"idle", "busy"}) {
		t.Errorf("ports %v: an engine may still be at work", got)
	}
	again := EndpointRequest{Network: DefaultNetwork, Name: "busy2", IP: busy.IP.Addr()}
	if _, err := h.ctl(t).Engine().EndpointCreate(h.ctx, again); err != nil {
		t.Errorf("an address that the engine gives a second time: %v", err)
	}
	if got := h.portNames(t); !slices.Equal(got, []string{"idle", "busy2"}) {
		t.Errorf("ports %v, want busy2 in the place of busy", got)
	}
	h.take(t, h.endpoint(t, "alive").Peer, testutil.NewNetns(t))
	back, from := h.endpoint(t, "back"), testutil.NewNetns(t)
	h.take(t, back.Peer, from)
	h.reconcile(t)
	h.giveBack(t, back.Peer, from)
	h.reconcile(t)
	if got := h.portNames(t); !slices.Equal(got, []string{"idle", "busy2", "alive"}) {
		t.Errorf("ports %v: what is given back is done with", got)
	}
	h.opts.patience = -1
	h.reconcile(t)
	if got := h.portNames(t); !slices.Equal(got, []string{"alive"}) {
		t.Errorf("ports %v: nobody will come for those in the host's namespace", got)
	}
	h.downAll(t)
}

func TestEndpointPublishReplaces(t *testing.T) {
	h := newHost(t)
	h.up(t)
	h.endpoint(t, "e1")
	h.endpoint(t, "e2")
	publish := func(name string, rs ...PublishRequest) error {
		return h.ctl(t).Engine().EndpointPublish(h.ctx, DefaultNetwork, name, func(map[string]string) ([]PublishRequest, error) { return rs, nil })
	}
	web := PublishRequest{First: 8080, Last: 8089, Port: 80, Proto: "tcp"}
	if err := publish("e1", web, PublishRequest{First: 61000, Last: 61009, Port: 53, Proto: "udp", Any: true}); err != nil {
		t.Fatal(err)
	}
	// All or nothing: the second part is taken, so the first is not published.
	err := publish("e2", PublishRequest{First: 9000, Last: 9000, Port: 90, Proto: "tcp"}, PublishRequest{First: 8085, Last: 8085, Port: 90, Proto: "tcp"})
	if !errors.Is(err, ErrExists) {
		t.Errorf("a port taken twice: %v", err)
	}
	err = publish("e2", PublishRequest{First: 7000, Last: 7000, Port: 90, Proto: "tcp"}, PublishRequest{First: 7000, Last: 7000, Port: 91, Proto: "tcp"})
	if !errors.Is(err, ErrExists) {
		t.Errorf("a port twice in one request: %v", err)
	}
	if got := slices.Sorted(maps.Keys(h.fake(t).Published)); !slices.Equal(got, []uint16{8080, 61000}) {
		t.Errorf("published %v", got)
	}
	if err := publish("e2", PublishRequest{First: 61000, Last: 61009, Port: 53, Proto: "udp", Any: true}); err != nil {
		t.Error(err)
	}
	if err := publish("e1", web); err != nil {
		t.Errorf("publishing again: %v", err)
	}
	if got := slices.Sorted(maps.Keys(h.fake(t).Published)); !slices.Equal(got, []uint16{8080, 61001}) {
		t.Errorf("published %v", got)
	}
	for _, f := range []error{h.ctl(t).Engine().EndpointLeave(h.ctx, DefaultNetwork, "e1"), h.ctl(t).Engine().EndpointDelete(h.ctx, DefaultNetwork, "e2")} {
		if f != nil {
			t.Error(f)
		}
	}
	if got := h.fake(t).Published; len(got) != 0 {
		t.Errorf("published after all have left: %v", got)
	}
	h.downAll(t)
}

// TestEndpointKeepsItsInterfaceName until it is joined, by whichever process.
func TestEndpointKeepsItsInterfaceName(t *testing.T) {
	h := newHost(t)
	h.up(t)
	for name, want := range map[string]string{"e1": "", "e2": "wan0"} {
		if _, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: DefaultNetwork, Name: name, Ifname: want}); err != nil {
			t.Fatal(err)
		}
		if v, err := h.ctl(t).Engine().EndpointJoin(h.ctx, DefaultNetwork, name, "/nonexistent"); err != nil || v.Ifname != want {
			t.Errorf("%s: %+v, %v; want the name %q", name, v, err, want)
		}
	}
	if _, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: DefaultNetwork, Name: "e3", Ifname: "a/b"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a bad name: %v", err)
	}
	h.downAll(t)
}

// TestEndpointPublishesNothingInside: an engine asks for all ports of a container
// also of an internal network.
func TestEndpointPublishesNothingInside(t *testing.T) {
	h := newHost(t)
	internal := true
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", NetworkRequest{Internal: &internal}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ctl(t).Engine().EndpointCreate(h.ctx, EndpointRequest{Network: "lab", Name: "e1"}); err != nil {
		t.Fatal(err)
	}
	err := h.ctl(t).Engine().EndpointPublish(h.ctx, "lab", "e1", func(map[string]string) ([]PublishRequest, error) {
		return []PublishRequest{{First: 8080, Last: 8080, Port: 80, Proto: "tcp"}}, nil
	})
	if err != nil {
		t.Error(err)
	}
	if f := h.fake(t); len(f.Published) != 0 {
		t.Errorf("published %+v", f.Published)
	}
	if err := h.ctl(t).Engine().NetworkDiscard(h.ctx, "lab"); err != nil {
		t.Error(err)
	}
}
