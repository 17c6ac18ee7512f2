package ctl

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/testutil"
)

// mutations are all operations of a Controller, and of its Engine, that change
// something, as a method's name. What each does here succeeds after mutationStage.
var mutations = map[string]func(ctx context.Context, c *Controller, free string) error{
	"Up": func(ctx context.Context, c *Controller, _ string) error {
		_, _, err := c.Up(ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
		return err
	},
	"NetworkCreate": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.NetworkCreate(ctx, "new", NetworkRequest{})
		return err
	},
	"NetworkRemove": func(ctx context.Context, c *Controller, _ string) error { return c.NetworkRemove(ctx, "other") },
	"Engine.NetworkDiscard": func(ctx context.Context, c *Controller, _ string) error {
		return c.Engine().NetworkDiscard(ctx, "other")
	},
	"Down": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.Down(ctx, "other")
		return err
	},
	"Attach": func(ctx context.Context, c *Controller, free string) error {
		_, err := c.Attach(ctx, AttachRequest{Target: free})
		return err
	},
	"Engine.Attach": func(ctx context.Context, c *Controller, free string) error {
		_, err := c.Engine().Attach(ctx, AttachRequest{Target: free}, true)
		return err
	},
	"Detach": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.Detach(ctx, "c1", "")
		return err
	},
	"Engine.Detach": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.Engine().Detach(ctx, false, func(Owner) bool { return true })
		return err
	},
	"Publish": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.Publish(ctx, PublishRequest{First: 8080, Last: 8080, Port: 80, Proto: "tcp", Name: "c1"})
		return err
	},
	"Unpublish": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.Unpublish(ctx, PublishRequest{First: 8000, Last: 8000})
		return err
	},
	"Settle": func(ctx context.Context, c *Controller, _ string) error { return c.Settle(ctx, InstanceRequest{}) },
	"SetPort": func(ctx context.Context, c *Controller, _ string) error {
		slow := true
		return c.SetPort(ctx, DefaultNetwork, "c1", PortSettings{Slow: &slow})
	},
	"Engine.EndpointCreate": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.Engine().EndpointCreate(ctx, EndpointRequest{Network: DefaultNetwork, Name: "e2", IP: netip.MustParseAddr("172.30.0.99")})
		return err
	},
	"Engine.EndpointJoin": func(ctx context.Context, c *Controller, free string) error {
		_, err := c.Engine().EndpointJoin(ctx, DefaultNetwork, "e1", free)
		return err
	},
	"Engine.EndpointPublish": func(ctx context.Context, c *Controller, _ string) error {
		return c.Engine().EndpointPublish(ctx, DefaultNetwork, "e1", func(map[string]string) ([]PublishRequest, error) {
			return []PublishRequest{{First: 8081, Last: 8081, Port: 80, Proto: "tcp"}}, nil
		})
	},
	"Engine.EndpointLeave": func(ctx context.Context, c *Controller, _ string) error {
		return c.Engine().EndpointLeave(ctx, DefaultNetwork, "e1")
	},
	"Engine.EndpointDelete": func(ctx context.Context, c *Controller, _ string) error {
		return c.Engine().EndpointDelete(ctx, DefaultNetwork, "e1")
	},
	"FlushFlows": func(ctx context.Context, c *Controller, _ string) error {
		_, err := c.FlushFlows(ctx)
		return err
	},
	"Reconcile": func(ctx context.Context, c *Controller, _ string) error { return c.Reconcile(ctx) },
	"Upgrade":   func(ctx context.Context, c *Controller, _ string) error { return c.Upgrade(ctx) },
}

// readings are all other operations, with the reason where one changes something.
var readings = map[string]string{
	"Bridges": "", "Check": "", "Flows": "", "Instance": "", "Names": "", "NetworkInspect": "", "NetworkList": "", "Ports": "",
	"Publications": "", "RunTarget": "", "Snapshot": "", "Status": "",
	"Engine": "", "Engine.Healthy": "", "Engine.Propose": "", "Engine.Verify": "", "Engine.NetworkCreate": "the Controller's",
	"DownAll": "nothing is left that could be looked after",
	"Revoke":  "called at every change of a route; Reconcile comes right after it",
}

// Whatever changes something mends the rest, too: every method is in
// one of the two lists, and those of the first are tried.
func TestEveryMutationLooksAgain(t *testing.T) {
	check := func(prefix string, methods reflect.Type) {
		for i := range methods.NumMethod() {
			name := prefix + methods.Method(i).Name
			_, reads := readings[name]
			if _, changes := mutations[name]; changes == reads {
				t.Errorf("%s is to be in one of the lists: does it change something?", name)
			}
		}
	}
	check("", reflect.TypeFor[*Controller]())
	check("Engine.", reflect.TypeFor[Engine]())
	for _, name := range slices.Sorted(maps.Keys(mutations)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.mutationStage(t)
			defer h.downAll(t)
			bridge, err := h.conn.ByName("fastbr0")
			if err != nil {
				t.Fatal(err)
			}
			gateway := netip.MustParsePrefix("172.30.0.1/16")
			if out, err := exec.Command("ip", "addr", "flush", "dev", "fastbr0").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := mutations[name](h.ctx, h.ctl(t), testutil.NewNetns(t).Path()); err != nil {
				t.Fatal(err)
			}
			if addrs, err := h.conn.Addrs(link.IPv4); err != nil || !slices.Contains(addrs[bridge.Index], gateway) {
				t.Errorf("the bridge has the addresses %v (%v), want %v", addrs, err, gateway)
			}
			if said := h.messages.String(); !strings.Contains(said, "bridge fastbr0 has lost its address 172.30.0.1/16: mended") {
				t.Errorf("said %q", said)
			}
		})
	}
}

// mutationStage has two networks, and on the first a port that publishes one, and
// an endpoint.
func (h *host) mutationStage(t *testing.T) {
	t.Helper()
	h.up(t)
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	c := h.ctl(t)
	_, err1 := c.NetworkCreate(h.ctx, "other", NetworkRequest{})
	_, err2 := c.Engine().EndpointCreate(h.ctx, EndpointRequest{Network: DefaultNetwork, Name: "e1", IP: netip.MustParseAddr("172.30.0.50")})
	_, err3 := c.Publish(h.ctx, PublishRequest{First: 8000, Last: 8000, Port: 80, Proto: "tcp", Name: "c1"})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	h.messages.Reset()
}
