package ctl

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/fastbr/fastbr/ctl/link"
)

// verifier compares what is there with what was made. It changes nothing.
type verifier struct{ op *operation }

// Expectation is what an engine thinks it has.
type Expectation struct {
	Target    string // the container's namespace
	Routes    []Route
	Publish   []PublishRequest
	Bandwidth Bandwidth
	Allowed   Allowed
}

// Verify says whether an engine's port is as it was made: the device, its
// limits, the programs and what they know of it and of the published ports, and
// inside the target the device, its address and the routes. It changes nothing.
// The error wraps ErrNoPort, or ErrBroken with what is wrong.
func (e Engine) Verify(ctx context.Context, o Owner, want Expectation) (res AttachResult, err error) {
	err = e.c.instance.read(ctx, func(op *operation) error {
		n, p := op.ports.owned(o)
		if p == nil {
			return tagged(ErrNoPort, fmt.Sprintf("container %s has no %s on network %s", o.Container, o.Ifname, o.Network))
		}
		if err := op.verifier.port(n, p); err != nil {
			return err
		}
		if p.Bandwidth != want.Bandwidth {
			return broken("%s has other bandwidth limits than asked for", p.Name)
		}
		if !reflect.DeepEqual(p.allowed(), Allowed{}.plus(want.Allowed)) {
			return broken("%s may use other addresses than asked for", p.Name)
		}
		if err := op.bandwidths.verify(n, p); err != nil {
			return err
		}
		if err := op.verifier.publications(n, p, want.Publish); err != nil {
			return err
		}
		if err := op.verifier.inside(n, p, want.Target, want.Routes); err != nil {
			return err
		}
		res, err = op.ports.result(n, p)
		return err
	})
	return res, err
}

// Healthy says whether the instance can take a port of a network ("": of any)
// and running containers are served. An error wraps ErrBroken if those are
// not; any other means that no port can be attached. A container that has lost
// its own device, which it can delete, is nobody else's trouble. It changes nothing.
func (e Engine) Healthy(ctx context.Context, network string) error {
	return e.c.instance.read(ctx, func(op *operation) error {
		if len(op.st.Networks) == 0 {
			return op.checks.fitNow()
		}
		if err := op.verifier.datapath(); err != nil {
			return err
		}
		for _, name := range op.st.networkNames() {
			n := op.st.Networks[name]
			for _, p := range n.sortedPorts() {
				if _, there := op.verifier.device(n, p); !there || p.Pending {
					continue // gone with the container's end: its own affair
				}
				if err := op.verifier.port(n, p); err != nil {
					return err
				}
			}
		}
		if n := op.st.Networks[network]; n != nil {
			return op.ports.roomFor(n)
		}
		return nil
	})
}

func broken(format string, args ...any) error { return tagged(ErrBroken, fmt.Sprintf(format, args...)) }

func (v verifier) datapath() error {
	if v.op.dp == nil {
		return broken("the pinned datapath is gone: run 'fastbr up' to load it again")
	}
	if err := v.op.dp.VerifyGuard(); err != nil {
		return broken("%v", err)
	}
	if f := v.op.st.Fragments; f != nil && !v.op.reassembly.sound(f) {
		return broken("the namespace that puts fragments in order is gone: run 'fastbr up' to make it again")
	}
	for _, u := range v.op.st.Uplinks {
		if _, err := v.op.uplinks.device(u); err != nil {
			continue // it has gone; the next command looks for another
		}
		if err := v.op.dp.VerifyUplink(u.datapath()); err != nil {
			return broken("uplink %s: %v", u.Name, err)
		}
		if v.op.st.uplinkXDP(u.Index).On {
			if err := v.op.dp.VerifyXDP(u.Index); err != nil {
				return broken("uplink %s: %v", u.Name, err)
			}
		}
	}
	return nil
}

// device is the host end of a port, if it is there.
func (v verifier) device(n *network, p *port) (d link.Device, there bool) {
	d, err := v.op.conn.ByIndex(p.Index)
	return d, err == nil && d.Name == p.Port && d.Alias == ownerMark(n.Name)
}

func (v verifier) port(n *network, p *port) error {
	d, there := v.device(n, p)
	switch {
	case !there:
		return broken("device %s is gone", p.Port)
	case d.Master != n.Index:
		return broken("device %s is not a port of %s any more", p.Port, n.Bridge)
	case !d.Up:
		return broken("device %s is down", p.Port)
	case v.op.dp == nil:
		return v.datapath()
	}
	if err := v.op.dp.VerifyPort(p.datapath(n)); err != nil {
		return broken("%s: %v", p.Port, err)
	}
	return nil
}

// publications wants what a container asked for to be recorded, of
// whichever port of its, and known to the programs.
func (v verifier) publications(n *network, p *port, rs []PublishRequest) error {
	all := v.op.publications.all()
	for _, r := range rs {
		if r.Lenient && len(r.record(n, p).leads(p)) == 0 {
			continue // it was left out
		}
		at := slices.IndexFunc(all, func(x published) bool { return r.madeFor(*p.Owner, x) })
		if at < 0 {
			return broken("%s is published no more", r)
		}
		for _, pub := range all[at].port.toDatapath([]*publication{all[at].pub}) {
			if err := v.op.dp.VerifyPublication(pub); err != nil {
				return broken("%s: %v", r, err)
			}
		}
	}
	return nil
}

func (v verifier) inside(n *network, p *port, target string, routes []Route) error {
	ns, err := link.OpenTarget(target)
	if err != nil {
		return broken("%v", err)
	}
	defer ns.Close()
	inside, err := link.OpenIn(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	d, err := inside.ByName(p.Ifname)
	switch {
	case ns.ID() != p.Netns || err != nil:
		return broken("%s has no device %s of ours", target, p.Ifname)
	case !bytes.Equal(d.MAC, p.MAC.HardwareAddr):
		return broken("%s in %s has the MAC address %s, which is not let through: it was given %s", p.Ifname, target, d.MAC, p.MAC)
	case !d.Up:
		return broken("%s in %s is down", p.Ifname, target)
	}
	for _, want := range p.addresses(n) {
		addrs, err := inside.Addrs(link.FamilyOf(want.Addr()))
		if err != nil || !slices.Contains(addrs[d.Index], want) {
			return broken("%s in %s has lost its address %s", p.Ifname, target, want)
		}
	}
	return verifyRoutes(inside, target, routes)
}

func verifyRoutes(inside *link.Conn, target string, routes []Route) error {
	have, err := inside.Routes(link.IPv4)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(routes, func(r Route) bool { return r.Dst.Addr().Is6() }) {
		more, err := inside.Routes(link.IPv6)
		if err != nil {
			return err
		}
		have = append(have, more...)
	}
	for _, r := range routes {
		if !slices.ContainsFunc(have, func(h link.Route) bool {
			return h.Dst == r.Dst && (!r.Gateway.IsValid() || h.Gateway == r.Gateway)
		}) {
			return broken("%s has lost its route to %s", target, r.Dst)
		}
	}
	return nil
}
