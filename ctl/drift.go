package ctl

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
)

// fault is something of ours that another program or an admin has changed since it was
// made. The devices are ours as docker0 is Docker's: whatever the reason, they are put
// right, and the user is told.
type fault struct {
	what string
	mend func() error
}

// nextMends follows what a reader tells of a fault.
const nextMends = ": the next command that changes something mends it"

// faults finds what is not as it was made. It changes nothing. With thorough,
// each port is compared with what the datapath knows of it, and the programs of
// each side uplink are looked at; else a lost pin is seen, which takes one listing for all of them.
func (rep repair) faults(thorough bool) ([]fault, error) {
	if rep.op.dp == nil {
		return nil, nil // recover loads it again, and all that was attached with it
	}
	devices, err := rep.op.host.shaped()
	if err != nil {
		return nil, err
	}
	var out []fault
	if err := rep.op.dp.VerifyGuard(); err != nil {
		out = append(out, fault{err.Error(), rep.op.dp.AttachGuard})
	}
	unpinned, err := rep.op.dp.Unpinned(rep.op.st.attached())
	if err != nil {
		return nil, err
	}
	look := func(index int) bool { return thorough || slices.Contains(unpinned, index) }
	out = append(out, rep.op.uplinks.faults(look)...)
	out = append(out, rep.op.stands.faults()...)
	members, err := rep.op.host.bridgePorts()
	if err != nil {
		return nil, err
	}
	for _, name := range rep.op.st.networkNames() {
		n := rep.op.st.Networks[name]
		if n.Pending {
			continue
		}
		found, err := rep.bridgeFaults(n)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
		for _, p := range n.sortedPorts() {
			if _, there := devices[p.Index]; there && !p.Pending { // recover forgets what is gone
				out = append(out, rep.portFaults(n, p, members, look(p.Index))...)
			}
		}
	}
	ways, err := rep.op.vias.faults()
	return append(out, ways...), err
}

// bridgeFaults looks at the bridge of a network.
func (rep repair) bridgeFaults(n *network) (out []fault, err error) {
	d, err := rep.op.host.device(n.Index)
	if errors.Is(err, link.ErrNotFound) {
		return nil, nil // recover makes it again
	} else if err != nil {
		return nil, err
	}
	note := func(mend func() error, format string, args ...any) {
		out = append(out, fault{"bridge " + n.Bridge + " " + fmt.Sprintf(format, args...), mend})
	}
	// The kernel forgets the neighbours and routes of a device that goes down, loses its
	// last address or changes its MAC address.
	anew := func(do func() error) func() error {
		return func() error { return errors.Join(do(), rep.addNeighbours(n)) }
	}
	if mac := ipam.MAC(n.Gateway); d.MAC.String() != mac.String() {
		note(anew(func() error { return rep.op.conn.SetMAC(n.Index, mac) }), "has the MAC address %s instead of %s", d.MAC, mac)
	}
	if !d.Up {
		note(anew(func() error { return rep.op.conn.SetUp(n.Index, true) }), "is down")
	}
	if n.hasIPv6() {
		if lacks := hostconf.LacksIPv6(n.Bridge); lacks != "" {
			note(anew(func() error { return rep.op.networks.configureIPv6(n) }), "has the IPv6 setting %s", lacks)
		}
		if d.Snooping {
			note(func() error { return rep.op.conn.ShapeBridge(n.Index, false) }, "has multicast snooping on, which can cut off IPv6")
		}
	}
	addrs, err := rep.op.host.allAddrsOf(n.Index)
	if err != nil {
		return nil, err
	}
	for _, a := range n.addresses() {
		if !slices.Contains(addrs, a) {
			note(anew(func() error { return rep.op.conn.AddAddr(n.Index, a) }), "has lost its address %s", a)
		}
	}
	lost, err := rep.lostRoutes(n)
	if err != nil {
		return nil, err
	}
	if len(out) == 0 { // else they come back with it
		for _, r := range lost {
			note(func() error { return rep.op.conn.AddRoute(r) }, "has lost its route to %s via %s", r.Dst, r.Gateway)
		}
	}
	if !n.hasIPv6() && !hostconf.IsQuiet(n.Bridge) {
		note(func() error { return rep.quietNetwork(n) }, "has been given IPv6")
	}
	for _, f := range n.forwards() {
		if what, is := closed(f, n.Bridge); is {
			out = append(out, fault{what, func() error { return f.Open(n.Bridge) }})
		}
	}
	return out, nil
}

// lostRoutes are those to what ports are allowed outside the subnet that are not there.
func (rep repair) lostRoutes(n *network) (lost []link.Route, err error) {
	ports := n.sortedPorts()
	if len(n.beyond(ports...)) == 0 {
		return nil, nil
	}
	have, err := rep.op.conn.Routes(link.IPv4)
	for _, p := range ports {
		for _, r := range n.routes(p) {
			if !p.Pending && !slices.ContainsFunc(have, func(o link.Route) bool { return o.Table == unix.RT_TABLE_MAIN && r.Same(o) }) {
				lost = append(lost, r)
			}
		}
	}
	return lost, err
}

// quietNetwork takes IPv6 from a bridge again, and from its ports: who turns it on
// mostly does so for all devices at once.
func (rep repair) quietNetwork(n *network) error {
	errs := []error{hostconf.QuietIPv6(n.Bridge)}
	for _, p := range n.Ports {
		errs = append(errs, hostconf.QuietIPv6(p.Port))
	}
	return errors.Join(errs...)
}

// addNeighbours tells the kernel of every port's addresses again.
func (rep repair) addNeighbours(n *network) error {
	for _, p := range n.sortedPorts() {
		if err := rep.op.ports.addNeighbours(n, p); err != nil {
			return err
		}
		if err := rep.op.ports.addRoutes(n, p); err != nil {
			return err
		}
	}
	return nil
}

// closed tells whether the kernel would not forward what comes in by a device.
func closed(f hostconf.Family, device string) (what string, is bool) {
	path := f.Forwarding(device)
	v, err := hostconf.Read(path)
	return fmt.Sprintf("%s is 0: nothing is forwarded from %s", hostconf.Name(path), device), err == nil && v == "0"
}

// portFaults looks at the host end of a port, and with programs at what the
// datapath knows of it.
func (rep repair) portFaults(n *network, p *port, members map[int]link.BridgePort, programs bool) (out []fault) {
	m := members[p.Index]
	if m.Master != n.Index {
		// What has no master is not in the listing: up or not, it is raised.
		return []fault{{fmt.Sprintf("%s is not a port of %s any more", p.Port, n.Bridge), func() error { return rep.reattach(n, p) }}}
	}
	if !m.Up {
		out = append(out, fault{p.Port + " is down", func() error { return rep.op.conn.SetUp(p.Index, true) }})
	}
	if !programs {
		return out
	}
	if err := rep.op.dp.VerifyPort(p.datapath(n)); err != nil {
		out = append(out, fault{fmt.Sprintf("%s: %v", p.Port, err), func() error { return rep.op.ports.tell(n, p) }})
	}
	return out
}

// mend puts right what is not as it was made. quiet: what cannot be is a note.
func (rep repair) mend(quiet bool) error {
	faults, err := rep.faults(rep.op.thorough)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range faults {
		if err := f.mend(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.what, err))
			continue
		}
		rep.op.say("%s: mended", f.what)
	}
	if len(faults) > 0 {
		rep.op.host.forget()
	}
	if err := errors.Join(errs...); err != nil && quiet {
		rep.op.say("%v", firstLine(err))
	} else {
		return err
	}
	return nil
}

// findings are what `check` says of it.
func (rep repair) findings() []FeatureView {
	if len(rep.op.st.Networks) == 0 {
		return nil
	}
	out := []FeatureView{}
	for _, note := range rep.notes() {
		out = append(out, FeatureView{Name: "as-made", State: "warning", Detail: note})
	}
	if len(out) == 0 {
		out = append(out, FeatureView{Name: "as-made", State: "ok", Detail: "bridges, ports, uplinks and programs are as they should be"})
	}
	return out
}

// notes are what `status` says of it.
func (rep repair) notes() []string {
	faults, err := rep.faults(true)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, f := range faults {
		out = append(out, f.what+nextMends)
	}
	for _, name := range rep.op.st.networkNames() {
		if missing, err := rep.op.missesAddress(rep.op.st.Networks[name].Definition); err == nil && missing != "" {
			out = append(out, missing+": nothing leaves until it is there")
		}
		out = append(out, rep.op.vias.notes(rep.op.st.Networks[name])...)
	}
	return append(out, rep.op.uplinks.notes()...)
}
