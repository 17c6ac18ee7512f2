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
// device without an address of a family that is used is left out with a note: a later
// command picks it up. A named device that cannot be an uplink is an error, the first
// of which comes with all the others; one that was an uplink stays it.
//
// With AutoUplink, the only device of a network is one, too. coming are networks that are to
// come up.
func (us uplinks) wanted(names []string, coming ...*network) (want []uplink, notes []string, broken error) {
	six := us.op.st.leads6() || slices.ContainsFunc(coming, func(n *network) bool { return n.leads6() })
	var candidates []candidate
	for _, name := range names {
		if name == AutoUplink {
			auto, autoNotes, err := us.auto(six)
			if err != nil {
				return nil, nil, err
			}
			candidates, notes = append(candidates, us.withVias(auto, coming)...), append(notes, autoNotes...)
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
		u := uplink{Name: c.Name, Index: c.Index, MTU: c.MTU, RawIP: c.RawIP, Side: c.side}
		family := "IPv4"
		var err error
		if u.Addr, err = us.addr(c.Index); err == nil && six {
			family = "IP"
			u.Addr6, err = us.addr6(c.Index)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("uplink %s: %w", c.Name, err)
		}
		switch {
		case u.Addr.IsValid() || u.Addr6.IsValid():
			want = append(want, u)
		case !c.side:
			notes = append(notes, fmt.Sprintf("uplink %s has no %s address yet: the next command looks again", c.Name, family))
		}
	}
	return slices.CompactFunc(want, func(a, b uplink) bool { return a.Index == b.Index }), notes, broken
}

// withVias are the candidates with the only devices of networks, as far as they are fit.
func (us uplinks) withVias(candidates []candidate, coming []*network) []candidate {
	var vias []string
	for _, n := range coming {
		vias = append(vias, n.Via)
	}
	for _, name := range us.op.st.networkNames() {
		vias = append(vias, us.op.st.Networks[name].Via)
	}
	for _, via := range vias {
		if via == "" {
			continue
		}
		d, err := us.op.conn.ByName(via)
		if err != nil || us.unfit(d) != "" {
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

// addr is the IPv4 address that the host has on a device, or uses along a route by it.
func (us uplinks) addr(index int) (netip.Addr, error) {
	addrs, err := us.op.host.addrsOf(link.IPv4, index)
	if err != nil || len(addrs) > 0 {
		return firstAddr(addrs), err
	}
	return us.addrAlong(link.IPv4, index)
}

// addr6 is the global IPv6 address that the host has on a device, the one that it was known
// by as long as it is there, or uses along a route by the device.
func (us uplinks) addr6(index int) (netip.Addr, error) {
	addrs, err := us.op.host.addrsOf(link.IPv6, index)
	if err != nil {
		return netip.Addr{}, err
	}
	global := slices.DeleteFunc(slices.Clone(addrs), func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	for _, u := range us.op.st.Uplinks {
		if u.Index == index && slices.ContainsFunc(global, func(p netip.Prefix) bool { return p.Addr() == u.Addr6 }) {
			return u.Addr6, nil
		}
	}
	if len(global) > 0 {
		return firstAddr(global), nil
	}
	return us.addrAlong(link.IPv6, index)
}

// addrAlong is the address that the host uses along a route by a device that has none: one
// of lo, for example. It is invalid if there is none outside fastbr's subnets.
func (us uplinks) addrAlong(f link.Family, index int) (netip.Addr, error) {
	routes, err := us.op.host.allRoutes(f)
	if err != nil {
		return netip.Addr{}, err
	}
	r, leads := link.Leading(routes)[index]
	if !leads {
		return netip.Addr{}, nil
	}
	addr, err := us.op.conn.Source(index, r)
	if err != nil || link.FamilyOf(addr) != f || f == link.IPv6 && addr.IsLinkLocalUnicast() {
		return netip.Addr{}, err
	}
	for _, n := range us.op.st.Networks {
		if slices.ContainsFunc(n.subnets(), func(s netip.Prefix) bool { return s.Contains(addr) }) {
			return netip.Addr{}, nil
		}
	}
	return addr, nil
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
// uplinks, and every other that a route of any table leads to. With six, IPv6's routes
// count like those of IPv4.
func (us uplinks) auto(six bool) (out []candidate, notes []string, err error) {
	defaults, notes, err := us.defaults(six)
	if err != nil {
		return nil, nil, err
	}
	known := map[int]bool{}
	for _, d := range defaults {
		known[d.Index] = true
		out = append(out, candidate{d, false})
	}
	routes, err := us.routes(six)
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
	for _, of := range routes {
		for _, index := range slices.Sorted(maps.Keys(link.Leading(of))) {
			errs = append(errs, add(index, true))
		}
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

// routes are the host's, by family.
func (us uplinks) routes(six bool) (out [][]link.Route, err error) {
	families := []link.Family{link.IPv4}
	if six {
		families = append(families, link.IPv6)
	}
	for _, f := range families {
		of, err := us.op.host.allRoutes(f)
		if err != nil {
			return nil, err
		}
		out = append(out, of)
	}
	return out, nil
}

// defaults are the devices of the default route, or of both.
func (us uplinks) defaults(six bool) (devices []link.Device, notes []string, err error) {
	routes, err := us.routes(six)
	if err != nil {
		return nil, nil, err
	}
	var indexes []int
	for _, of := range routes {
		for _, index := range link.DefaultDevices(of) {
			if !slices.Contains(indexes, index) {
				indexes = append(indexes, index)
			}
		}
	}
	slices.Sort(indexes)
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
	if len(want) == 0 { // nothing better than what there is
		if us.op.st.leads6() {
			return nil
		}
		want = slices.Clone(us.op.st.Uplinks)
		for i := range want {
			want[i].Addr6 = netip.Addr{}
		}
	}
	if slices.Equal(want, us.op.st.Uplinks) {
		return nil
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
		us.op.say("uplink %s (%s)", u.Name, u.addrs())
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

// addrs are the host's addresses on the uplink, for a sentence.
func (u uplink) addrs() string {
	var out []netip.Addr
	for _, a := range []netip.Addr{u.Addr, u.Addr6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return strings.Join(texts(out), ", ")
}

// datapath is what the datapath knows of the uplink, but for Closed and Closed6.
func (u uplink) datapath() datapath.Uplink {
	return datapath.Uplink{Ifindex: u.Index, Addr: u.Addr, Addr6: u.Addr6, MTU: u.MTU, RawIP: u.RawIP, Side: u.Side}
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
	dp := u.datapath()
	var err error
	if dp.Closed, err = us.op.hostconf.RecordClosed(hostconf.IPv4, u.Name); err == nil && u.Addr6.IsValid() {
		dp.Closed6, err = us.op.hostconf.RecordClosed(hostconf.IPv6, u.Name)
	}
	if err == nil && !u.Addr6.IsValid() {
		err = us.op.hostconf.Close(hostconf.IPv6, u.Name) // while the programs know that it is closed
	}
	if err == nil {
		err = us.op.dp.AttachUplink(dp)
	}
	if err != nil {
		return fmt.Errorf("attaching uplink %s: %w", u.Name, err)
	}
	if !u.Addr6.IsValid() {
		return hostconf.IPv4.Open(u.Name)
	}
	return errors.Join(hostconf.IPv4.Open(u.Name), hostconf.IPv6.Open(u.Name), us.op.stands.ensure())
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
	if err := us.op.stands.leave(u); err != nil {
		return err
	}
	if d, err := us.op.conn.ByName(u.Name); err == nil && d.Index != u.Index {
		return nil // another device of that name, which may be the next uplink
	}
	return errors.Join(us.op.hostconf.Close(hostconf.IPv4, u.Name), us.op.hostconf.Close(hostconf.IPv6, u.Name))
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
		if addrs, err := us.op.host.addrsOf(link.IPv4, u.Index); err == nil && len(addrs) > 0 {
			uplinks[i].Addr = addrs[0].Addr()
		}
		if !u.Addr6.IsValid() {
			continue
		}
		if addr, err := us.addr6(u.Index); err == nil && addr.IsValid() {
			uplinks[i].Addr6 = addr
		}
	}
	return uplinks
}

// conflict says that an uplink's address has come to lie in a network's
// subnet, "" if it has not. The host and the other containers' flows are served
// all the same. An address of its own (/32, /128) has no hosts beside it: flannel gives
// its device the first address of the node's pods.
func (us uplinks) conflict(u uplink) string {
	lies := []netip.Addr{u.Addr, u.Addr6}
	if addrs, err := us.op.host.allAddrsOf(u.Index); err == nil {
		lies = slices.DeleteFunc(lies, func(a netip.Addr) bool { return slices.Contains(addrs, netip.PrefixFrom(a, a.BitLen())) })
	}
	for _, name := range us.op.st.networkNames() {
		n := us.op.st.Networks[name]
		for _, a := range lies {
			for _, subnet := range []netip.Prefix{n.Subnet, n.Subnet6} {
				if subnet.Contains(a) {
					return fmt.Sprintf("the address %s of uplink %s lies in subnet %s of network %s: its containers cannot reach the hosts beside it; "+
						"give the network another subnet ('fastbr down %s', 'fastbr up %s --subnet ...')", a, u.Name, subnet, name, name, name)
				}
			}
		}
		for _, p := range n.sortedPorts() {
			for _, a := range n.beyond(p) {
				if slices.Contains(lies, u.Addr) && a.Contains(u.Addr) {
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
		if what, is := closed(hostconf.IPv4, u.Name); is {
			out = append(out, fault{what, mend})
		}
		if what, is := closed(hostconf.IPv6, u.Name); is && u.Addr6.IsValid() {
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
			note("%s is an uplink now (%s) and not attached yet: the next command that changes something does it", u.Name, u.addrs())
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
		routes, _ := us.op.host.allRoutes(link.IPv4) // known since the uplinks are
		defaults := link.DefaultDevices(routes)
		uplinks = slices.DeleteFunc(slices.Clone(uplinks), func(u uplink) bool { return !slices.Contains(defaults, u.Index) })
	}
	if len(uplinks) == 0 {
		return 1500
	}
	return slices.MinFunc(uplinks, func(a, b uplink) int { return a.MTU - b.MTU }).MTU
}

// stands are the neighbours for which the host stands on its uplinks: containers whose
// addresses are of an uplink's own subnet (--nd-proxy). The datapath answers for them. The
// kernel's entries only make the uplink a member of their multicast groups, so that the
// network card and the switch let the questions through.
type stands struct{ op *operation }

// wanted are the entries for ports on uplinks.
func (s stands) wanted(ports []*port, uplinks []uplink) []link.Proxy {
	return s.possible(ports, slices.DeleteFunc(slices.Clone(uplinks), func(u uplink) bool { return !u.Addr6.IsValid() }))
}

// possible are those, and what is left of the time when an uplink had an address.
func (s stands) possible(ports []*port, uplinks []uplink) (out []link.Proxy) {
	for _, u := range uplinks {
		for _, p := range ports {
			if !u.RawIP && p.IP6.IsValid() {
				out = append(out, link.Proxy{Index: u.Index, Addr: p.IP6})
			}
		}
	}
	return out
}

// ports are all ports for which the host stands.
func (s stands) ports() (out []*port) {
	for _, name := range s.op.st.networkNames() {
		if n := s.op.st.Networks[name]; n.NDProxy {
			out = append(out, n.sortedPorts()...)
		}
	}
	return out
}

// missing are the entries that are not there.
func (s stands) missing() (out []link.Proxy, err error) {
	want := s.wanted(s.ports(), s.op.st.mainUplinks())
	if len(want) == 0 {
		return nil, nil
	}
	have, err := link.Proxies(s.op.conn)
	return slices.DeleteFunc(want, func(p link.Proxy) bool { _, there := have[p]; return there }), err
}

// ensure adds what is missing.
func (s stands) ensure() error { return s.add(s.ports()) }

// add adds the entries for ports. The user's own stay what they are.
func (s stands) add(ports []*port) error {
	want := s.wanted(ports, s.op.st.mainUplinks())
	if len(want) == 0 {
		return nil
	}
	return link.AddProxies(s.op.conn, want)
}

// join adds the entries of a new port.
func (s stands) join(n *network, p *port) error {
	if !n.NDProxy {
		return nil
	}
	return s.add([]*port{p})
}

// part removes the entries of ports.
func (s stands) part(n *network, ports []*port) error {
	if !n.NDProxy {
		return nil
	}
	return link.DeleteProxies(s.op.conn, s.possible(ports, s.op.st.mainUplinks()))
}

// leave removes the entries on an uplink.
func (s stands) leave(u uplink) error {
	return link.DeleteProxies(s.op.conn, s.possible(s.ports(), []uplink{u}))
}

// fits says why the host cannot stand for a new network on its uplinks, nil if it can.
func (s stands) fits(n *network, uplinks []uplink) error {
	if !n.NDProxy {
		return nil
	}
	routes, err := s.op.host.allRoutes(link.IPv6)
	if err != nil {
		return err
	}
	part := func(r link.Route) bool {
		return r.Connected && r.Dst.Bits() < n.Subnet6.Bits() && r.Dst.Overlaps(n.Subnet6) &&
			slices.ContainsFunc(uplinks, func(u uplink) bool { return !u.Side && !u.RawIP && u.Index == r.Index })
	}
	if !slices.ContainsFunc(routes, part) {
		return tagged(ErrInvalid, fmt.Sprintf("--nd-proxy: subnet %s is no part of the subnet of an uplink, where others ask for its addresses: choose another", n.Subnet6))
	}
	return nil
}

// faults are missing entries, by uplink.
func (s stands) faults() []fault {
	missing, err := s.missing()
	if err != nil || len(missing) == 0 {
		return nil
	}
	return []fault{{fmt.Sprintf("the host does not stand for %s and %d other containers on its uplinks", missing[0].Addr, len(missing)-1), s.ensure}}
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

// wanted6 is the same for IPv6, translated or not: for IPv6 the host becomes no router.
func (o others) wanted6() bool { return o.op.st.leads6() && !o.excluded() }

// excluded reports whether the uplinks were named, and so are the only ways out.
func (o others) excluded() bool { return !slices.Contains(o.op.st.Settings.Uplinks, AutoUplink) }

// ensure opens the host's devices and keeps the table. It tells the datapath that fastbr
// opens devices before it opens one.
func (o others) ensure() error {
	if err := o.open(); err != nil {
		return err
	}
	sessions := len(o.op.firewall.families()) * int(o.op.st.Settings.FlowsMax)
	if err := o.op.hostconf.RaiseConntrackMax(sessions); err != nil {
		return err
	}
	return o.each(func(f *firewall.Family) error { return o.masquerade(o.op.firewall.exits(f)) })
}

// each does something for each family that networks have.
func (o others) each(do func(*firewall.Family) error) error {
	var errs []error
	for _, f := range o.op.firewall.families() {
		errs = append(errs, do(f))
	}
	return errors.Join(errs...)
}

// crowded says why connection tracking has no room for all sessions of a family, "" if it
// has. With the table, the kernel makes an entry for each, and drops what it has no room for.
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
		h = firewall.Host{Family: h.Family}
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
	return o.each(func(f *firewall.Family) error { return o.leadIn(f, pubs, gone) })
}

// leadIn is lead in a family.
func (o others) leadIn(f *firewall.Family, pubs []*publication, gone bool) error {
	h := o.op.firewall.exits(f)
	if !slices.ContainsFunc(pubs, func(pub *publication) bool { return pub.Proto == protoSCTP }) {
		if gone || len(pubs) == 0 || slices.ContainsFunc(h.Networks, func(n firewall.Network) bool { return n.Masquerade && !n.Internal }) {
			return nil
		}
		return o.masquerade(h)
	}
	if !gone && slices.ContainsFunc(h.Published, func(p firewall.Publication) bool { return p.Proto == protoSCTP }) {
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
			h.Published = append(h.Published, x.filtered(f)...)
		}
	}
	return o.masquerade(h)
}

// leave takes a network out that is going down.
func (o others) leave(n *network) error {
	if !o.op.st.leads6But(n) {
		if err := o.close6(); err != nil {
			return err
		}
	}
	if len(o.op.st.Networks) == 1 {
		return o.undo()
	}
	return o.each(func(f *firewall.Family) error {
		h := o.op.firewall.exits(f)
		h.Networks = slices.DeleteFunc(h.Networks, func(x firewall.Network) bool { return x.Name == n.Name })
		return o.masquerade(h)
	})
}

// close6 closes the devices that fastbr has opened for IPv6: the programs that judge what is
// forwarded there go with the last network that has it.
func (o others) close6() error {
	errs := []error{o.op.hostconf.CloseOthers(hostconf.IPv6, o.op.checks.opened6())}
	for _, u := range o.op.st.mainUplinks() {
		errs = append(errs, o.op.hostconf.Close(hostconf.IPv6, u.Name))
	}
	return errors.Join(errs...)
}

// open lets the kernel forward what comes in by any device, or not. The datapath knows
// first that fastbr opens devices.
func (o others) open() error {
	four, err := o.opens(hostconf.IPv4, o.wanted(), o.op.checks.opened())
	if err != nil {
		return err
	}
	six, err := o.opens(hostconf.IPv6, o.wanted6(), o.op.checks.opened6())
	if err != nil {
		return err
	}
	err = o.op.dp.SetOpened(four, six)
	if err == nil && four {
		err = o.op.hostconf.OpenOthers(hostconf.IPv4)
	}
	if err == nil && six {
		err = o.op.hostconf.OpenOthers(hostconf.IPv6)
	}
	return err
}

// opens reports whether all devices are to be open in a family. If not, it closes those that
// fastbr has opened. ours are the devices that are open in any case.
func (o others) opens(f hostconf.Family, wanted bool, ours []string) (bool, error) {
	if wanted && f.OpensDevices() {
		if can, err := o.op.hostconf.CanOpenOthers(f, ours); can || err != nil {
			return can, err
		}
	}
	return false, o.op.hostconf.CloseOthers(f, ours)
}

// undo takes everything back.
func (o others) undo() error {
	errs := []error{o.removeTables(), o.op.hostconf.CloseOthers(hostconf.IPv4, o.op.checks.opened())}
	if o.op.dp != nil {
		errs = append(errs, o.op.dp.SetOpened(false, false))
	}
	return errors.Join(errs...)
}

// removeTables removes the tables of both families.
func (o others) removeTables() error {
	err := o.masquerade(firewall.Host{Family: firewall.IPv4})
	if hostconf.HasIPv6() {
		err = errors.Join(err, o.masquerade(firewall.Host{Family: firewall.IPv6}))
	}
	return err
}

// finding says how containers leave by other devices.
func (o others) finding() FeatureView {
	v := FeatureView{Name: "other-devices", State: "ok", Detail: "the kernel translates what containers send by devices that are no uplinks"}
	if len(o.op.st.Networks) == 0 {
		return v
	}
	wrong, err := o.wrong()
	full, roomErr := o.crowded()
	switch err = errors.Join(err, roomErr); {
	case full != "":
		v.State, v.Detail = "warning", "containers leave by uplinks only, and by TCP, UDP and ping: "+full
	case err != nil:
		v.State, v.Detail = "warning", "containers leave by uplinks only: "+err.Error()
	case len(wrong) > 0:
		v.State, v.Detail = "warning", strings.Join(wrong, "; ")+": containers leave by uplinks only"+nextMends
	case o.wanted() && !o.op.hostconf.OthersOpen(hostconf.IPv4):
		v.State, v.Detail = "warning", "ip_forward is 0 and somebody has opened single devices: answers come back by devices whose net.ipv4.conf.*.forwarding is 1"
	case o.wanted6() && !o.op.hostconf.OthersOpen(hostconf.IPv6):
		v.State, v.Detail = "warning", "net.ipv6.conf.all.forwarding is 0 and somebody has opened single devices: answers by IPv6 come back by devices whose net.ipv6.conf.*.force_forwarding is 1"
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

// wrong names the tables that are not as they should be.
func (o others) wrong() (out []string, err error) {
	err = o.each(func(f *firewall.Family) error {
		right, err := firewall.Masquerades(o.op.firewall.exits(f))
		if err == nil && !right {
			out = append(out, fmt.Sprintf("the nft table %q is not as it should be", f.Table()))
		}
		return err
	})
	return out, err
}

// names are those of the devices that lead outside and are no uplinks: no command has seen
// them yet, there are too many, or they cannot be uplinks.
func (o others) names() (out []string, err error) {
	families, err := o.op.uplinks.routes(o.op.st.leads6())
	if err != nil {
		return nil, err
	}
	indexes := map[int]bool{}
	for _, routes := range families {
		for index := range link.Leading(routes) {
			indexes[index] = true
		}
	}
	for index := range indexes {
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
