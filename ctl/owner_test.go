package ctl

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"testing"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/testutil"
)

// owned is a request of an engine for a network of its own.
func owned(target, container, ifname string) AttachRequest {
	return AttachRequest{Target: target, Network: "cni0", Name: container, Ifname: ifname,
		Owner: &Owner{Engine: "cni", Network: "net1", Container: container, Ifname: ifname}}
}

// attachOwned is an engine's attach with a publication, to the default network.
func attachOwned(ctx context.Context, c *Controller, target string) error {
	r := owned(target, "c1", "eth0")
	r.Network, r.Publish = DefaultNetwork, []PublishRequest{{First: 8080, Last: 8081, Port: 80, Proto: "tcp"}}
	_, err := c.Attach(ctx, r)
	return err
}

func (h *host) upEngine(t *testing.T) NetworkRequest {
	t.Helper()
	r := NetworkRequest{Bridge: "cni0", Subnet: netip.MustParsePrefix("10.88.0.0/16")}
	if _, _, err := h.ctl(t).Up(h.ctx, "cni0", r, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOwnedPortBringsRoutesAndPublications(t *testing.T) {
	h := newHost(t)
	expect := h.upEngine(t)
	target := testutil.NewNetns(t)
	r := owned(target.Path(), "c1", "eth0")
	r.Expect = expect
	r.Routes = []Route{{Dst: netip.MustParsePrefix("192.0.2.0/24")}, {Dst: netip.MustParsePrefix("198.51.100.0/24"), Metric: 7}}
	r.Publish = []PublishRequest{{First: 8080, Last: 8081, Port: 80, Proto: "tcp"}}
	res, err := h.ctl(t).Attach(h.ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bridge != "cni0" || res.BridgeMAC != "02:42:0a:58:00:01" || res.PortMAC == "" {
		t.Errorf("attach = %+v", res)
	}
	if f := h.fake(t); f.Published[8080].Port != 80 || f.Published[8080].Last != 8081 {
		t.Errorf("published = %+v", f.Published)
	}
	want := Expectation{Target: target.Path(), Routes: r.Routes, Publish: r.Publish}
	if got, err := h.ctl(t).Engine().Verify(h.ctx, *r.Owner, want); err != nil || !reflect.DeepEqual(got, res) {
		t.Errorf("verify = %+v, %v, want %+v", got, err, res)
	}
	for what, other := range map[string]func(*Expectation){
		"a route that is not there": func(e *Expectation) {
			e.Routes = append(e.Routes[:2:2], Route{Dst: netip.MustParsePrefix("0.0.0.0/0")})
		},
		"a publication that is not there":   func(e *Expectation) { e.Publish[0].First++ },
		"a publication to another port":     func(e *Expectation) { e.Publish[0].Port++ },
		"a publication of another protocol": func(e *Expectation) { e.Publish[0].Proto = "udp" },
		"a limit that was never asked for":  func(e *Expectation) { e.Bandwidth.In.Rate = 1e6 },
		"a publication that the programs do not know": func(*Expectation) {
			f := h.fake(t)
			delete(f.Published, 8080)
			if err := f.save(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		want := Expectation{Target: target.Path(), Routes: r.Routes, Publish: slices.Clone(r.Publish)}
		other(&want)
		if _, err := h.ctl(t).Engine().Verify(h.ctx, *r.Owner, want); !errors.Is(err, ErrBroken) {
			t.Errorf("verify with %s = %v, want ErrBroken", what, err)
		}
	}
	if _, err := h.ctl(t).Engine().Detach(h.ctx, false, func(o Owner) bool { return o == *r.Owner }); err != nil {
		t.Fatal(err)
	}
	if f := h.fake(t); len(f.Published) != 0 || len(f.Ports) != 0 {
		t.Errorf("left: %+v, %+v", f.Published, f.Ports)
	}
}

func TestOwnedPortsAreToldApart(t *testing.T) {
	h := newHost(t)
	h.up(t)
	h.upEngine(t)
	target := testutil.NewNetns(t)
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	for _, ifname := range []string{"eth0", "eth1"} { // one namespace, one name, two ports
		if _, err := h.ctl(t).Attach(h.ctx, owned(target.Path(), "c1", ifname)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.ctl(t).Attach(h.ctx, owned(target.Path(), "c1", "eth1")); !errors.Is(err, ErrExists) {
		t.Errorf("the same again = %v, want ErrExists", err)
	}
	gone, err := h.ctl(t).Engine().Detach(h.ctx, true, func(o Owner) bool { return o.Ifname == "eth0" })
	if err != nil || len(gone) != 1 {
		t.Errorf("gone = %v, %v", gone, err)
	}
	ports, err := h.ctl(t).Ports(h.ctx, "")
	if err != nil || len(ports) != 2 {
		t.Errorf("ports = %+v, %v", ports, err)
	}
	// The last port takes along a network that nobody has defined.
	if _, err := h.ctl(t).Engine().Detach(h.ctx, true, func(Owner) bool { return true }); err != nil {
		t.Error(err)
	}
	if _, err := h.ctl(t).NetworkInspect(h.ctx, "cni0"); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("the engine's network = %v, want ErrNoNetwork", err)
	}
	if ports, err := h.ctl(t).Ports(h.ctx, ""); err != nil || len(ports) != 1 {
		t.Errorf("ports = %+v, %v", ports, err)
	}
}

// TestOnePublicationForAllNetworks: an engine asks each network for all ports of
// a container.
func TestOnePublicationForAllNetworks(t *testing.T) {
	h := newHost(t)
	h.up(t)
	h.upEngine(t)
	target := testutil.NewNetns(t).Path()
	if err := attachOwned(h.ctx, h.ctl(t), target); err != nil {
		t.Fatal(err)
	}
	r := owned(target, "c1", "eth1")
	r.Publish = []PublishRequest{{First: 8080, Last: 8081, Port: 80, Proto: "tcp"}, {First: 9090, Last: 9090, Port: 90, Proto: "tcp"}}
	if _, err := h.ctl(t).Attach(h.ctx, r); err != nil {
		t.Fatal(err)
	}
	if all, err := h.ctl(t).Publications(h.ctx); err != nil || len(all) != 2 || all[0].Network != DefaultNetwork || all[1].Network != "cni0" {
		t.Errorf("publications = %+v, %v", all, err)
	}
	if err := attachOwnedAs(h, t, "c2"); !errors.Is(err, ErrExists) {
		t.Errorf("the same ports for another container = %v, want ErrExists", err)
	}
}

func attachOwnedAs(h *host, t *testing.T, container string) error {
	r := owned(testutil.NewNetns(t).Path(), container, "eth0")
	r.Publish = []PublishRequest{{First: 8080, Last: 8081, Port: 80, Proto: "tcp"}}
	_, err := h.ctl(t).Attach(h.ctx, r)
	return err
}

func TestProposedSubnetsDiffer(t *testing.T) {
	h := newHost(t)
	seen := map[netip.Prefix]string{}
	for _, name := range []string{"podman1", "podman2", "podman3"} {
		def, err := h.ctl(t).Engine().Propose(h.ctx, name, NetworkRequest{Bridge: name})
		if err != nil || seen[def.Subnet] != "" || !def.Gateway.IsValid() {
			t.Errorf("%s: %+v, %v; so far: %v", name, def, err, seen)
		}
		seen[def.Subnet] = name
	}
	if out, err := h.ctl(t).NetworkList(h.ctx); err != nil || len(out) != 2 {
		t.Errorf("proposing made networks: %+v, %v", out, err)
	}
}

func TestAttachExpects(t *testing.T) {
	h := newHost(t)
	r := owned(testutil.NewNetns(t).Path(), "c1", "eth0")
	if _, err := h.ctl(t).Attach(h.ctx, r); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("attach = %v, want ErrNoNetwork", err)
	}
	r.Expect = h.upEngine(t)
	r.Expect.Subnet = netip.MustParsePrefix("10.89.0.0/16")
	if _, err := h.ctl(t).Attach(h.ctx, r); !errors.Is(err, ErrDiffers) {
		t.Errorf("attach = %v, want ErrDiffers", err)
	}
}

func TestVerifyAndHealthyFindWhatBroke(t *testing.T) {
	h := newHost(t)
	if err := h.ctl(t).Engine().Healthy(h.ctx, ""); !errors.Is(err, ErrUnfit) {
		t.Errorf("nothing up and no place for pins: %v, want ErrUnfit", err)
	}
	h.upEngine(t)
	target := testutil.NewNetns(t)
	r := owned(target.Path(), "c1", "eth0")
	res, err := h.ctl(t).Attach(h.ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	verify := func() error {
		_, err := h.ctl(t).Engine().Verify(h.ctx, *r.Owner, Expectation{Target: target.Path()})
		return err
	}
	if err := errors.Join(verify(), h.ctl(t).Engine().Healthy(h.ctx, "cni0")); err != nil {
		t.Fatal(err)
	}
	d, err := h.conn.ByName(res.Port)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.conn.SetUp(d.Index, false); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{verify(), h.ctl(t).Engine().Healthy(h.ctx, "")} {
		if !errors.Is(err, ErrBroken) {
			t.Errorf("device down: %v, want ErrBroken", err)
		}
	}
	if err := h.conn.SetUp(d.Index, true); err != nil {
		t.Fatal(err)
	}
	f := h.fake(t)
	delete(f.Ports, d.Index)
	if err := f.save(); err != nil {
		t.Fatal(err)
	}
	if err := verify(); !errors.Is(err, ErrBroken) {
		t.Errorf("detached: %v, want ErrBroken", err)
	}
	other := *r.Owner
	other.Container = "c2"
	if _, err := h.ctl(t).Engine().Verify(h.ctx, other, Expectation{Target: target.Path()}); !errors.Is(err, ErrNoPort) {
		t.Errorf("unknown container: %v, want ErrNoPort", err)
	}
}

func TestHealthyTellsAFullNetwork(t *testing.T) {
	h := newHost(t)
	r := NetworkRequest{Subnet: netip.MustParsePrefix("10.88.0.0/30")}
	if _, _, err := h.ctl(t).Up(h.ctx, "small", r, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), Network: "small"}); err != nil {
		t.Fatal(err)
	}
	if err := h.ctl(t).Engine().Healthy(h.ctx, "small"); err == nil || errors.Is(err, ErrBroken) {
		t.Errorf("full network: %v", err)
	}
}

func TestShapedPortTurnsSlowWithTheNextCommand(t *testing.T) {
	h := newHost(t)
	h.up(t)
	res := h.attach(t, testutil.NewNetns(t).Path(), "c1")
	d, err := h.conn.ByName(res.Port)
	if err != nil {
		t.Fatal(err)
	}
	tc := exec.Command("tc", "qdisc", "add", "dev", res.Port, "root", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "50ms")
	if out, err := tc.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.attach(t, testutil.NewNetns(t).Path(), "c2")
	if f := h.fake(t); !f.Ports[d.Index].Slow {
		t.Errorf("port = %+v, want slow", f.Ports[d.Index])
	}
}

// TestBandwidth: the limits are on the host's side, CHECK finds each that is
// gone, and nothing is left after the port, however it went.
func TestBandwidth(t *testing.T) {
	h := newHost(t)
	h.upEngine(t)
	target := testutil.NewNetns(t)
	r := owned(target.Path(), "c1", "eth0")
	r.Bandwidth = Bandwidth{In: Limit{Rate: 1e6}, Out: Limit{Rate: 2e6, Burst: 1e6}}
	want := Expectation{Target: target.Path(), Bandwidth: r.Bandwidth}
	for what, spoil := range map[string]func(port, ifb string) []string{
		"limit in": func(port, _ string) []string { return []string{"tc", "qdisc", "del", "dev", port, "root"} },
		"redirect": func(port, _ string) []string { return []string{"tc", "qdisc", "del", "dev", port, "ingress"} },
		"limit out": func(_, ifb string) []string {
			return []string{"tc", "qdisc", "change", "dev", ifb, "handle", "1:", "root", "tbf", "rate", "3mbit", "burst", "10kb", "latency", "50ms"}
		},
		"down":    func(_, ifb string) []string { return []string{"ip", "link", "set", ifb, "down"} },
		"device":  func(_, ifb string) []string { return []string{"ip", "link", "del", ifb} },
		"nothing": nil,
	} {
		res, err := h.ctl(t).Attach(h.ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		ifb := "ifb" + res.Port[len("veth"):]
		d, err := h.conn.ByName(res.Port)
		if err != nil || !h.fake(t).Ports[d.Index].Slow {
			t.Errorf("%s: port = %+v, %v, want it slow", what, h.fake(t).Ports[d.Index], err)
		}
		if _, err := h.ctl(t).Engine().Verify(h.ctx, *r.Owner, want); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if spoil != nil {
			argv := spoil(res.Port, ifb)
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", argv, err, out)
			}
			if _, err := h.ctl(t).Engine().Verify(h.ctx, *r.Owner, want); !errors.Is(err, ErrBroken) {
				t.Errorf("%s gone: verify = %v, want ErrBroken", what, err)
			}
		}
		if _, err := h.ctl(t).Engine().Detach(h.ctx, false, func(o Owner) bool { return o == *r.Owner }); err != nil {
			t.Error(err)
		}
		if _, err := h.conn.ByName(ifb); !errors.Is(err, link.ErrNotFound) {
			t.Errorf("%s: %s is left: %v", what, ifb, err)
		}
	}
	for _, b := range []Bandwidth{{In: Limit{Burst: 1}}, {Out: Limit{Rate: 999}}} {
		r.Bandwidth = b
		if _, err := h.ctl(t).Attach(h.ctx, r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", b, err)
		}
	}
}

// TestRaisingIsOneOperation: a network that comes up with a port is gone again if
// the port cannot be, and one without ports that differs is made anew with it.
func TestRaisingIsOneOperation(t *testing.T) {
	h := newHost(t)
	h.up(t)
	target := testutil.NewNetns(t).Path()
	raise := func(c *Controller, subnet string) error {
		r := owned(target, "c1", "eth0")
		r.Publish = []PublishRequest{{First: 8080, Last: 8080, Port: 80, Proto: "tcp"}}
		r.Expect = NetworkRequest{Bridge: "cni0", Subnet: netip.MustParsePrefix(subnet)}
		_, err := c.Engine().Attach(h.ctx, r, false)
		return err
	}
	before := h.traces(t)
	steps := h.steps(t, func(c *Controller) {
		if err := raise(c, "10.88.0.0/16"); err != nil {
			t.Fatal(err)
		}
	})
	gone := func() {
		t.Helper()
		if _, err := h.ctl(t).Engine().Detach(h.ctx, true, func(Owner) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	gone()
	for _, name := range []string{steps[0], steps[len(steps)/2], steps[len(steps)-1]} {
		if err := raise(h.ctl(t, name), "10.88.0.0/16"); err == nil {
			t.Fatalf("broken at %s: no error", name)
		}
		if after := h.traces(t); after != before {
			t.Errorf("broken at %s: before:\n%s\nafter:\n%s", name, before, after)
		}
	}
	h.upEngine(t)
	if err := raise(h.ctl(t), "10.89.0.0/16"); err != nil {
		t.Errorf("another subnet of a network without ports: %v", err)
	}
	if gw := netip.MustParseAddr("10.89.0.1"); !slices.Contains(h.fake(t).Local, gw) {
		t.Errorf("a publication is reached by %v, want %s among them", h.fake(t).Local, gw)
	}
	if err := raise(h.ctl(t), "10.88.0.0/16"); !errors.Is(err, ErrDiffers) {
		t.Errorf("another subnet of a network with a port = %v, want ErrDiffers", err)
	}
	if err := raise(h.ctl(t), "10.88.0.1/16"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a subnet that is none = %v, want ErrInvalid", err)
	}
	r := owned(target, "c2", "eth1")
	r.Network = "cni1"
	if _, err := h.ctl(t).Engine().Attach(h.ctx, r, true); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("a network that must be known = %v, want ErrNoNetwork", err)
	}
	gone()
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
