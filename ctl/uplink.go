package ctl

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/firewall"
	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// uplinks are the devices by which containers get outside.
type uplinks struct{ op *operation }

// maxUplinks is how many devices become uplinks by themselves. Beyond it the kernel
// translates, as by any device that is no uplink.
const maxUplinks = 64

// dummy is the kind of a device that leads nowhere, whatever its routes.
const dummy = "dummy"

// candidate is a device that may be an uplink.
type candidate struct {
	link.Device
	side bool // see uplink
}

// wanted resolves what was asked for to devices as they are now. A
// device without an IPv4 address is left out with a note: a later command
// picks it up. A named device that cannot be an uplink is an error, the first
// of which comes with all the others; one that was an uplink stays it.
//
// With AutoUplink, the only device of a network is one, too. vias are those of networks that
// are to come up.
func (us uplinks) wanted(names []string, vias ...string) (want []uplink, notes []string, broken error) {
	var candidates []candidate
	for _, name := range names {
		if name == AutoUplink {
			auto, autoNotes, err := us.auto()
			if err != nil {
				return nil, nil, err
			}
			candidates, notes = append(candidates, us.withVias(auto, vias)...), append(notes, autoNotes...)
			continue
		}
		d, err := us.named(name)
		if err == nil {
			candidates = append(candidates, candidate{d, false})
			continue
		}
		if broken == nil {
			broken = err
		}
		for _, u := range us.op.st.Uplinks {
			if u.Name == name && u.Index == d.Index {
				want = append(want, u)
			}
		}
	}
	for _, c := range candidates {
		addr, err := us.addr(c.Index)
		if err != nil {
			return nil, nil, fmt.Errorf("uplink %s: %w", c.Name, err)
		}
		switch {
		case addr.IsValid():
			want = append(want, uplink{Name: c.Name, Index: c.Index, Addr: addr, MTU: c.MTU, RawIP: c.RawIP, Side: c.side})
		case !c.side:
			notes = append(notes, fmt.Sprintf("uplink %s has no IPv4 address yet: the next command looks again", c.Name))
		}
	}
	return slices.CompactFunc(want, func(a, b uplink) bool { return a.Index == b.Index }), notes, broken
}

// withVias are the candidates with the only devices of networks, as far as they are fit.
func (us uplinks) withVias(candidates []candidate, vias []string) []candidate {
	for _, name := range us.op.st.networkNames() {
		vias = append(vias, us.op.st.Networks[name].Via)
	}
	for _, via := range vias {
		d, err := us.op.conn.ByName(via)
		if via == "" || err != nil || us.unfit(d) != "" {
			continue
		}
		if i := slices.IndexFunc(candidates, func(c candidate) bool { return c.Index == d.Index }); i >= 0 {
			candidates[i].side = false
		} else {
			candidates = append(candidates, candidate{d, false})
		}
	}
	return candidates
}

// addr is the address that the host has on a device. Without one, it is the address that
// the host uses along a route by the device: one of lo, for example. It is invalid if there
// is none outside fastbr's subnets.
func (us uplinks) addr(index int) (netip.Addr, error) {
	addrs, err := us.op.host.addrsOf(index)
	if err != nil || len(addrs) > 0 {
		return firstAddr(addrs), err
	}
	routes, err := us.op.host.allRoutes()
	if err != nil {
		return netip.Addr{}, err
	}
	r, leads := link.Leading(routes)[index]
	if !leads {
		return netip.Addr{}, nil
	}
	addr, err := us.op.conn.Source(index, r)
	for _, n := range us.op.st.Networks {
		if addr.IsValid() && n.Subnet.Contains(addr) {
			return netip.Addr{}, nil
		}
	}
	return addr, err
}

// firstAddr is the first address, invalid if there is none.
func firstAddr(addrs []netip.Prefix) netip.Addr {
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	return addrs[0].Addr()
}

// named looks a device up that was asked for by name; an unfit one is
// returned with the error.
func (us uplinks) named(name string) (link.Device, error) {
	d, err := us.op.conn.ByName(name)
	if errors.Is(err, link.ErrNotFound) {
		return d, fmt.Errorf("uplink %s: %w", name, link.ErrNotFound)
	} else if err != nil {
		return d, fmt.Errorf("uplink %w", err)
	}
	if reason := us.unfit(d); reason != "" {
		return d, fmt.Errorf("uplink %s: %s", name, reason)
	}
	return d, nil
}

// device is an uplink's device. The error wraps link.ErrNotFound if another has
// its name by now, or none.
func (us uplinks) device(u uplink) (link.Device, error) {
	d, err := us.op.host.device(u.Index)
	if err == nil && d.Name != u.Name {
		err = fmt.Errorf("uplink %s: %w", u.Name, link.ErrNotFound)
	}
	return d, err
}

// auto are the devices that lead outside: those of the default route, those that have been
// uplinks, and every other that a route of any table leads to.
func (us uplinks) auto() (out []candidate, notes []string, err error) {
	defaults, notes, err := us.defaults()
	if err != nil {
		return nil, nil, err
	}
	known := map[int]bool{}
	for _, d := range defaults {
		known[d.Index] = true
		out = append(out, candidate{d, false})
	}
	routes, err := us.op.host.allRoutes()
	if err != nil {
		return nil, nil, err
	}
	add := func(index int, side bool) error {
		if known[index] || len(out) >= maxUplinks {
			return nil
		}
		known[index] = true
		d, err := us.op.host.device(index)
		if errors.Is(err, link.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if us.unfit(d) == "" && d.Kind != dummy {
			out = append(out, candidate{d, side})
		}
		return nil
	}
	var errs []error
	for _, u := range us.op.st.Uplinks {
		errs = append(errs, add(u.Index, u.Side))
	}
	for _, index := range slices.Sorted(maps.Keys(link.Leading(routes))) {
		errs = append(errs, add(index, true))
	}
	slices.SortFunc(out, func(a, b candidate) int {
		switch {
		case a.side == b.side:
			return a.Index - b.Index
		case a.side:
			return 1
		}
		return -1
	})
	return out, notes, errors.Join(errs...)
}

// defaults are the devices of the default route.
func (us uplinks) defaults() (devices []link.Device, notes []string, err error) {
	routes, err := us.op.host.allRoutes()
	if err != nil {
		return nil, nil, err
	}
	indexes := link.DefaultDevices(routes)
	if len(indexes) == 0 {
		return nil, []string{"no default route: containers get outside by the host's other routes"}, nil
	}
	for _, index := range indexes {
		d, err := us.op.host.device(index)
		if errors.Is(err, link.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		if reason := us.unfit(d); reason != "" {
			notes = append(notes, fmt.Sprintf("the default route's device %s is not used as uplink: %s", d.Name, reason))
			continue
		}
		devices = append(devices, d)
	}
	return devices, notes, nil
}

// unfit says why a device cannot be an uplink, "" if it can.
func (us uplinks) unfit(d link.Device) string {
	switch {
	case d.Loopback:
		return "the loopback device leads nowhere"
	case !d.Ethernet && !d.RawIP:
		return "its packets begin neither with an Ethernet header nor with the IP header, as those of GRE, IPIP and SIT; gretap, WireGuard and tun devices serve"
	case strings.HasPrefix(d.Alias, ownerMark("")):
		return "it belongs to fastbr"
	case d.Master != 0:
		return "it is a port of another device: name that one"
	}
	return ""
}

// due tells whether there is an uplink of the default route now where none was: its route
// or its address has come later than the network.
func (us uplinks) due() bool {
	have := us.op.st.mainUplinks()
	if len(us.op.st.Networks) == 0 || slices.ContainsFunc(have, func(u uplink) bool { return !us.op.st.isVia(u.Name) }) {
		return false
	}
	want, _, err := us.wanted(us.op.st.Settings.Uplinks)
	return err == nil && slices.ContainsFunc(want, func(u uplink) bool {
		return !u.Side && !slices.ContainsFunc(have, func(h uplink) bool { return h.Index == u.Index })
	})
}

// sync makes the attached uplinks those that are wanted now. quiet: an
// uplink that is gone or has become unfit since `up` is a note.
func (us uplinks) sync(quiet bool) error {
	want, notes, err := us.wanted(us.op.st.Settings.Uplinks)
	if err != nil && !quiet {
		return err
	} else if err != nil {
		us.op.say("%v", err)
	}
	if !quiet {
		for _, n := range notes {
			us.op.say("%s", n)
		}
	}
	if len(want) == 0 || slices.Equal(want, us.op.st.Uplinks) {
		return nil // nothing better than what there is
	}
	if err := us.set(want); err != nil && !quiet {
		return err
	} else if err != nil {
		us.op.say("%v", firstLine(err)) // no reason to refuse a container
	}
	return nil
}

// set attaches want and detaches what is not in it. What cannot be attached
// is not recorded either, and what it was to replace stays. Killed in between, the
// record says more than is attached: faults compares.
func (us uplinks) set(want []uplink) error {
	old := us.op.st.Uplinks
	if slices.Equal(old, want) {
		return nil
	}
	us.op.st.Uplinks = append(slices.Clone(old), want...) // both are ours while we work
	if err := us.op.save(); err != nil {
		return err
	}
	if err := us.op.runner.passed("uplinks-record"); err != nil {
		return err
	}
	var failed []error
	left := slices.Clone(want)
	for _, u := range want {
		if slices.Contains(old, u) {
			continue
		}
		if err := us.attach(u); err != nil {
			is := func(x uplink) bool { return x.Index == u.Index }
			us.op.st.Uplinks = slices.DeleteFunc(us.op.st.Uplinks, is)
			if !u.Side {
				failed = append(failed, err)
				continue
			}
			us.op.say("%v", firstLine(err)) // the kernel translates what leaves by it
			left = slices.DeleteFunc(left, is)
			continue
		}
		us.op.say("uplink %s (%s)", u.Name, u.Addr)
		if conflict := us.conflict(u); conflict != "" {
			us.op.say("warning: %s", conflict)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return errors.Join(err, us.op.save())
	}
	for _, u := range old {
		if slices.ContainsFunc(want, func(w uplink) bool { return w.Index == u.Index }) {
			continue
		}
		if err := us.detach(u); err != nil {
			return err
		}
	}
	us.op.st.Uplinks = left
	return us.op.save()
}

// datapath is what the datapath knows of the uplink, but for Closed.
func (u uplink) datapath() datapath.Uplink {
	return datapath.Uplink{Ifindex: u.Index, Addr: u.Addr, MTU: u.MTU, RawIP: u.RawIP, Side: u.Side}
}

// attach makes a device an uplink. Whether a side uplink is opened is decided with all
// other devices.
func (us uplinks) attach(u uplink) error {
	if u.Side {
		if err := us.op.dp.AttachUplink(u.datapath()); err != nil {
			return fmt.Errorf("attaching uplink %s: %w", u.Name, err)
		}
		return nil
	}
	closed, err := us.op.hostconf.RecordClosed(hostconf.IPv4, u.Name)
	if err != nil {
		return fmt.Errorf("attaching uplink %s: %w", u.Name, err)
	}
	dp := u.datapath()
	dp.Closed = closed
	if err := us.op.dp.AttachUplink(dp); err != nil {
		return fmt.Errorf("attaching uplink %s: %w", u.Name, err)
	}
	return hostconf.IPv4.Open(u.Name)
}

// detach gives one up. Packets of containers that wait there for a
// neighbour's address would leave untranslated once the programs are gone.
func (us uplinks) detach(u uplink) error {
	if err := us.op.dp.CloseUplink(u.Index); err != nil {
		return fmt.Errorf("closing uplink %s: %w", u.Name, err)
	}
	if err := us.dropUnresolved(u); err != nil {
		return err
	}
	if err := us.op.dp.DetachUplink(u.Index); err != nil {
		return fmt.Errorf("detaching uplink %s: %w", u.Name, err)
	}
	if d, err := us.op.conn.ByName(u.Name); err == nil && d.Index != u.Index {
		return nil // another device of that name, which may be the next uplink
	}
	return us.op.hostconf.Close(hostconf.IPv4, u.Name)
}

// dropUnresolved drops the packets that wait at an uplink for a neighbour's address.
func (us uplinks) dropUnresolved(u uplink) error {
	err := us.op.conn.DropUnresolved(u.Index)
	if err != nil && !errors.Is(err, link.ErrNotFound) {
		return fmt.Errorf("uplink %s: %w", u.Name, err)
	}
	return nil
}

// detachAll gives all of them up.
func (us uplinks) detachAll() error {
	var errs []error
	if us.op.dp != nil {
		for _, u := range us.op.st.Uplinks {
			if err := us.detach(u); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	us.op.st.Uplinks = nil
	return us.op.save()
}

// current are the attached uplinks with the addresses they have now,
// which no command may have seen yet.
func (us uplinks) current() []uplink {
	uplinks := slices.Clone(us.op.st.Uplinks)
	for i, u := range uplinks {
		if addrs, err := us.op.host.addrsOf(u.Index); err == nil && len(addrs) > 0 {
			uplinks[i].Addr = addrs[0].Addr()
		}
	}
	return uplinks
}

// conflict says that an uplink's address has come to lie in a network's
// subnet, "" if it has not. The host and the other containers' flows are served
// all the same. An address of its own (/32) has no hosts beside it: flannel gives
// its device the first address of the node's pods.
func (us uplinks) conflict(u uplink) string {
	addrs, err := us.op.host.addrsOf(u.Index)
	if err == nil && slices.Contains(addrs, netip.PrefixFrom(u.Addr, 32)) {
		return ""
	}
	for _, name := range us.op.st.networkNames() {
		n := us.op.st.Networks[name]
		if n.Subnet.Contains(u.Addr) {
			return fmt.Sprintf("the address %s of uplink %s lies in subnet %s of network %s: its containers cannot reach the hosts beside it; "+
				"give the network another subnet ('fastbr down %s', 'fastbr up %s --subnet ...')", u.Addr, u.Name, n.Subnet, name, name, name)
		}
		for _, p := range n.sortedPorts() {
			for _, a := range n.beyond(p) {
				if a.Contains(u.Addr) {
					return fmt.Sprintf("the address %s of uplink %s lies in %s, which container %s may use: containers cannot reach the hosts beside it; "+
						"take it back ('fastbr port set %s --no-allowed-address')", u.Addr, u.Name, a, p.Name, p.Name)
				}
			}
		}
	}
	return ""
}

// add attaches the uplinks found before the first step.
func (us uplinks) add(uplinks []uplink) error {
	if len(uplinks) == 0 {
		return nil
	}
	return us.set(uplinks)
}

func (us uplinks) reattach() error {
	for _, u := range us.op.st.Uplinks {
		if d, err := us.op.host.device(u.Index); err != nil || d.Name != u.Name {
			continue // refresh finds what took its place
		}
		if err := us.attach(u); err != nil {
			return err
		}
	}
	return nil
}

// faults looks at the uplinks that are there; sync replaces the others. look tells of
// which side uplinks to look at the programs.
func (us uplinks) faults(look func(index int) bool) (out []fault) {
	for _, u := range us.op.st.Uplinks {
		if _, err := us.device(u); err != nil {
			continue
		}
		mend := func() error { return us.attach(u) }
		verify := us.op.dp.VerifyUplink
		if u.Side && !look(u.Index) {
			verify = us.op.dp.HasUplink
		}
		if err := verify(u.datapath()); err != nil {
			out = append(out, fault{fmt.Sprintf("uplink %s: %v", u.Name, err), mend})
		}
		if u.Side {
			continue
		}
		if what, is := closed(u.Name); is {
			out = append(out, fault{what, mend})
		}
	}
	return out
}

// notes tell of uplinks by which nothing leaves, for reasons that only the
// user can mend, and of devices that have become uplinks without being seen.
func (us uplinks) notes() (out []string) {
	note := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	attached := map[int]bool{}
	for _, u := range us.op.st.Uplinks {
		attached[u.Index] = true
		d, err := us.device(u)
		switch {
		case u.Side: // other routes may lead elsewhere
		case err != nil:
			note("uplink %s is gone: nothing leaves by it", u.Name)
		case d.Master != 0:
			note("uplink %s has become a port of another device, where its address is of no use: name that one ('fastbr up --no-network --uplink ...')", u.Name)
		case !d.Up:
			note("uplink %s is down: nothing leaves by it", u.Name)
		case !d.Carrier:
			note("uplink %s has no carrier: nothing leaves by it", u.Name)
		}
	}
	want, notes, err := us.wanted(us.op.st.Settings.Uplinks)
	if err != nil {
		notes = append(notes, err.Error())
	}
	if len(us.op.st.Uplinks) > 0 {
		out = append(out, notes...)
	}
	for _, u := range want {
		if !attached[u.Index] && !u.Side {
			note("%s is an uplink now (%s) and not attached yet: the next command that changes something does it", u.Name, u.Addr)
		}
	}
	return out
}

// mtu is what a new network gets: the smallest MTU of the named uplinks, or of those that
// the default route leads by, or that of its only device; 1500 without any.
func (us uplinks) mtu(uplinks []uplink, via string) int {
	if via != "" {
		uplinks = slices.DeleteFunc(slices.Clone(uplinks), func(u uplink) bool { return u.Name != via })
	} else if !us.op.others.excluded() {
		routes, _ := us.op.host.allRoutes() // known since the uplinks are
		defaults := link.DefaultDevices(routes)
		uplinks = slices.DeleteFunc(slices.Clone(uplinks), func(u uplink) bool { return !slices.Contains(defaults, u.Index) })
	}
	if len(uplinks) == 0 {
		return 1500
	}
	return slices.MinFunc(uplinks, func(a, b uplink) int { return a.MTU - b.MTU }).MTU
}

// uplinkKind is what the packets of an uplink begin with.
func uplinkKind(rawIP bool) string {
	if rawIP {
		return "raw ip"
	}
	return "ethernet"
}

// ownerMark is the ifalias of the devices of a network.
func ownerMark(network string) string { return "fastbr:" + network }

// others are the devices of the host that are no uplinks. Unless the uplinks were named,
// containers get outside by these, too, as behind docker0: the kernel translates what
// they send. So a VPN that comes up, or a second network card, needs no command and no
// process.
type others struct{ op *operation }

// wanted reports whether containers may leave by them.
func (o others) wanted() bool {
	return o.op.st.leads(true) && !o.excluded()
}

// excluded reports whether the uplinks were named, and so are the only ways out.
func (o others) excluded() bool { return !slices.Contains(o.op.st.Settings.Uplinks, AutoUplink) }

// ensure opens the host's devices and keeps the table. It tells the datapath that fastbr
// opens devices before it opens one.
func (o others) ensure() error {
	if err := o.open(); err != nil {
		return err
	}
	if err := o.op.hostconf.RaiseConntrackMax(int(o.op.st.Settings.FlowsMax)); err != nil {
		return err
	}
	return o.masquerade(o.op.firewall.exits())
}

// crowded says why connection tracking has no room for all sessions, "" if it has. With
// the table, the kernel makes an entry for each, and drops what it has no room for.
func (o others) crowded() (string, error) {
	sessions := int(o.op.st.Settings.FlowsMax)
	room, err := hostconf.ConntrackMax()
	if err != nil || room == 0 || room > sessions {
		return "", err
	}
	return fmt.Sprintf("net.netfilter.nf_conntrack_max is %d, too few beside --nat-flows %d: raise it on the host, or give fewer --nat-flows", room, sessions), nil
}

// masquerade keeps the table for h. Where conntrack has no room, there is no table. A
// kernel that cannot translate, and somebody else's table of that name, are no errors
// here: check reports them.
func (o others) masquerade(h firewall.Host) error {
	if full, err := o.crowded(); err != nil {
		return err
	} else if full != "" {
		h = firewall.Host{}
	}
	if err := o.write(h); !errors.Is(err, firewall.ErrNoNftables) && !errors.Is(err, firewall.ErrForeignTable) {
		return err
	}
	return nil
}

// write keeps the table for h, and ends the connections to SCTP ports that it leads
// nobody to any more.
func (o others) write(h firewall.Host) error {
	gone, err := firewall.Masquerade(h)
	return errors.Join(err, link.EndLed(unix.IPPROTO_SCTP, gone))
}

// lead keeps the table while pubs are published, or (gone) unpublished. Publishing SCTP
// ports fails where there can be no table. For other ports the table is only to be there,
// as it always is with a network that is translated.
func (o others) lead(pubs []*publication, gone bool) error {
	h := o.op.firewall.exits()
	if !slices.ContainsFunc(pubs, func(pub *publication) bool { return pub.Proto == protoSCTP }) {
		if gone || len(pubs) == 0 || o.op.st.leads(true) {
			return nil
		}
		return o.masquerade(h)
	}
	if !gone {
		full, err := o.crowded()
		if err == nil && full != "" {
			err = errors.New(full)
		}
		if err == nil {
			err = o.write(h)
		}
		if err != nil {
			return fmt.Errorf("publishing SCTP ports, which the kernel's NAT does: %w", err)
		}
		return nil
	}
	h.Published = nil
	for _, x := range o.op.publications.all() {
		if !slices.Contains(pubs, x.pub) {
			h.Published = append(h.Published, x.filtered())
		}
	}
	return o.masquerade(h)
}

// leave takes a network out that is going down.
func (o others) leave(n *network) error {
	h := o.op.firewall.exits()
	h.Networks = slices.DeleteFunc(h.Networks, func(x firewall.Network) bool { return x.Name == n.Name })
	if len(h.Networks) > 0 {
		return o.masquerade(h)
	}
	return o.undo()
}

func (o others) open() error {
	ours := o.op.checks.opened()
	open := o.wanted()
	if open {
		var err error
		if open, err = o.op.hostconf.CanOpenOthers(hostconf.IPv4, ours); err != nil {
			return err
		}
	}
	if !open {
		return errors.Join(o.op.hostconf.CloseOthers(hostconf.IPv4, ours), o.op.dp.SetOpened(false))
	}
	if err := o.op.dp.SetOpened(true); err != nil {
		return err
	}
	return o.op.hostconf.OpenOthers(hostconf.IPv4)
}

// undo takes everything back.
func (o others) undo() error {
	errs := []error{o.masquerade(firewall.Host{}), o.op.hostconf.CloseOthers(hostconf.IPv4, o.op.checks.opened())}
	if o.op.dp != nil {
		errs = append(errs, o.op.dp.SetOpened(false))
	}
	return errors.Join(errs...)
}

// finding says how containers leave by other devices.
func (o others) finding() FeatureView {
	v := FeatureView{Name: "other-devices", State: "ok", Detail: "the kernel translates what containers send by devices that are no uplinks"}
	if len(o.op.st.Networks) == 0 {
		return v
	}
	right, err := firewall.Masquerades(o.op.firewall.exits())
	full, roomErr := o.crowded()
	switch err = errors.Join(err, roomErr); {
	case full != "":
		v.State, v.Detail = "warning", "containers leave by uplinks only, and by TCP, UDP and ping: "+full
	case err != nil:
		v.State, v.Detail = "warning", "containers leave by uplinks only: "+err.Error()
	case !right:
		v.State, v.Detail = "warning", "the nft table \"ip fastbr\" is not as it should be: containers leave by uplinks only; "+
			"the next command that changes something mends it"
	case o.wanted() && !o.op.hostconf.OthersOpen(hostconf.IPv4):
		v.State, v.Detail = "warning", "ip_forward is 0 and somebody has opened single devices: answers come back by devices whose net.ipv4.conf.*.forwarding is 1"
	case o.excluded():
		v.Detail = "containers leave by no other device than the uplinks, which were named"
	default:
		if names, err := o.names(); err != nil {
			v.State, v.Detail = "warning", err.Error()
		} else if len(names) > 0 {
			v.Detail += ": " + strings.Join(names, ", ")
		}
	}
	return v
}

// names are those of the devices that lead outside and are no uplinks: no command has seen
// them yet, there are too many, or they cannot be uplinks.
func (o others) names() (out []string, err error) {
	routes, err := o.op.host.allRoutes()
	if err != nil {
		return nil, err
	}
	for index := range link.Leading(routes) {
		if slices.ContainsFunc(o.op.st.Uplinks, func(u uplink) bool { return u.Index == index }) {
			continue
		}
		d, err := o.op.host.device(index)
		if errors.Is(err, link.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		if !d.Loopback && d.Kind != dummy && !strings.HasPrefix(d.Alias, ownerMark("")) {
			out = append(out, d.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}
