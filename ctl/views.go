package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// reading is an operation with the devices that there are and the counters.
type reading struct {
	op      *operation
	devices map[int]bool
	stats   map[int]datapath.Counters
}

// look reads everything that views are made of. The error wraps ErrNotUp if
// nothing is up.
func (op *operation) look() (*reading, error) {
	op.host.forget() // what an operation has just changed
	devices, err := op.host.shaped()
	if err != nil {
		return nil, err
	}
	r := &reading{op: op, devices: devices}
	if op.dp == nil {
		return r, nil
	}
	if r.stats, err = op.dp.Stats(op.st.indexes()...); err != nil {
		return nil, fmt.Errorf("reading the counters: %w", err)
	}
	return r, nil
}

// exists reports whether there is a device.
func (r *reading) exists(index int) bool {
	_, ok := r.devices[index]
	return ok
}

// up reports whether the network is whole, not between two states.
func (r *reading) up(n *network) bool {
	return n != nil && !n.Pending && r.exists(n.Index)
}

// anyUp is ErrNotUp if no network is up.
func (r *reading) anyUp() error {
	for _, n := range r.op.st.Networks {
		if r.up(n) {
			return nil
		}
	}
	return errNothingUp()
}

// portView is ok only for a port that exists now.
func (r *reading) portView(n *network, p *port) (PortView, bool) {
	if p.Pending || !r.exists(p.Index) {
		return PortView{}, false
	}
	v := PortView{Name: p.Name, Port: p.Port, Network: n.Name, MAC: p.MAC.String(),
		IP: netip.PrefixFrom(p.IP, n.Subnet.Bits()).String(), IP6: prefixText(p.IP6, n.Subnet6), AllowedAddresses: texts(p.AllowedAddrs), AllowedMACs: texts(p.AllowedMACs)}
	count(&v, r.stats[p.Index])
	return v, true
}

func (r *reading) ports(n *network) []PortView {
	out := make([]PortView, 0, len(n.Ports))
	for _, p := range n.sortedPorts() {
		if v, ok := r.portView(n, p); ok {
			out = append(out, v)
		}
	}
	return out
}

func (r *reading) uplinkPorts() []PortView {
	out := []PortView{}
	for _, u := range r.op.st.Uplinks {
		d, err := r.op.uplinks.device(u)
		if err != nil {
			continue
		}
		v := PortView{Name: u.Name, Port: u.Name, MAC: d.MAC.String(), AllowedAddresses: []string{}, AllowedMACs: []string{}}
		if addrs, err := r.op.host.allAddrsOf(u.Index); err == nil {
			v.IP, v.IP6 = withPrefix(u.Addr, addrs), withPrefix(u.Addr6, addrs)
		}
		count(&v, r.stats[u.Index])
		out = append(out, v)
	}
	return out
}

// withPrefix is an address with the prefix length that it has among a device's, or else as
// one of its own; "" if it is invalid.
func withPrefix(a netip.Addr, addrs []netip.Prefix) string {
	if !a.IsValid() {
		return ""
	}
	for _, p := range addrs {
		if p.Addr() == a {
			return p.String()
		}
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}

// count fills in the counters.
func count(v *PortView, c datapath.Counters) {
	v.Paths = PortPaths{
		RXFastPackets: c.RX.FastPackets, RXFastBytes: c.RX.FastBytes, RXSlowPackets: c.RX.SlowPackets, RXSlowBytes: c.RX.SlowBytes,
		TXFastPackets: c.TX.FastPackets, TXFastBytes: c.TX.FastBytes, TXSlowPackets: c.TX.SlowPackets, TXSlowBytes: c.TX.SlowBytes,
	}
	v.RXPackets, v.RXBytes = c.RX.FastPackets+c.RX.SlowPackets, c.RX.FastBytes+c.RX.SlowBytes
	v.TXPackets, v.TXBytes = c.TX.FastPackets+c.TX.SlowPackets, c.TX.FastBytes+c.TX.SlowBytes
	v.FastPackets, v.SlowPackets = c.RX.FastPackets+c.TX.FastPackets, c.RX.SlowPackets+c.TX.SlowPackets
	v.Drops = map[string]uint64{}
	for reason, n := range c.Drops {
		v.Drops[string(reason)] = n
	}
}

func (r *reading) network(n *network) NetworkView {
	v := definedView(n.Definition)
	v.MTU, v.Up, v.Ports = n.MTU, r.up(n), r.ports(n)
	for _, p := range v.Ports {
		v.Totals.RXPackets += p.RXPackets
		v.Totals.RXBytes += p.RXBytes
		v.Totals.TXPackets += p.TXPackets
		v.Totals.TXBytes += p.TXBytes
	}
	return v
}

// definedView is a network that is defined but not up.
func definedView(d Definition) NetworkView {
	nat := d.natPolicy()
	options := d.Options
	if options == nil {
		options = map[string]string{}
	}
	return NetworkView{ID: d.ID, Name: d.Name, Driver: "fastbr", Scope: "local", Bridge: d.Bridge, Subnet: d.Subnet.String(),
		Gateway: d.Gateway.String(), IPv6: d.ipv6(), Subnet6: d.subnet6(), Gateway6: addrText(d.Gateway6), MTU: d.MTU, Masquerade: d.Masquerade,
		Masquerade6: d.Subnet6.IsValid() && !d.Routed6, NDProxy: d.NDProxy, Internal: d.Internal, DNS: !d.NoDNS, SNATAddress: addrText(d.SNATAddress), SNATAddress6: addrText(d.SNATAddress6), Via: d.Via, PublishedOnly: d.PublishedOnly, NoMasquerade: texts(d.NoMasquerade), Options: options, Ports: []PortView{},
		NAT: NATPolicy{string(nat.Mapping), string(nat.Filtering), string(nat.OnExhaustion)}}
}

// addrText is an address, or "" if there is none.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// prefixText is an address with its subnet's length, or "" if there is none.
func prefixText(a netip.Addr, subnet netip.Prefix) string {
	if !a.IsValid() {
		return ""
	}
	return netip.PrefixFrom(a, subnet.Bits()).String()
}

// builtIn are the modes that need no bridge, under names docker users know.
// Their ids are fixed: there is one of each everywhere.
func builtIn() []NetworkView {
	mode := func(name, driver, digit string) NetworkView {
		return NetworkView{ID: strings.Repeat(digit, 64), Name: name, Driver: driver, Scope: "local", Up: true, IPv6: IPv6Off, NoMasquerade: []string{}, Options: map[string]string{}, Ports: []PortView{}}
	}
	return []NetworkView{mode("host", "host", "0"), mode("none", "null", "f")}
}

// view is the view of one network inside a mutating operation.
func (nets networks) view(n *network) (NetworkView, error) {
	r, err := nets.op.look()
	if err != nil {
		return NetworkView{}, err
	}
	return r.network(n), nil
}

// looking runs f on a reading. An uplink that has appeared since there was none
// is taken up before: so much does every command for an instance.
func (c *Controller) looking(ctx context.Context, f func(*reading) error) error {
	due := false
	look := func(op *operation) error {
		r, err := op.look()
		if err != nil {
			return err
		}
		return f(r)
	}
	err := c.instance.read(ctx, func(op *operation) error {
		if due = op.uplinks.due(); due {
			return nil
		}
		return look(op)
	})
	if err != nil || !due {
		return err
	}
	if err := c.Reconcile(ctx); err != nil {
		c.instance.say("looking for an uplink: %v", err)
	}
	return c.instance.read(ctx, look)
}

// NetworkList returns every network, up or defined, and the built-in modes,
// sorted by name.
func (c *Controller) NetworkList(ctx context.Context) (out []NetworkView, err error) {
	err = c.looking(ctx, func(r *reading) error {
		out, err = r.networks()
		return err
	})
	return out, err
}

func (r *reading) networks() ([]NetworkView, error) {
	byName := map[string]NetworkView{}
	defs, err := r.op.defs.all()
	if err != nil {
		return nil, err
	}
	for _, d := range defs {
		byName[d.Name] = definedView(d)
	}
	for _, n := range r.op.st.Networks {
		if !n.Pending {
			byName[n.Name] = r.network(n)
		}
	}
	for _, v := range builtIn() {
		byName[v.Name] = v
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b NetworkView) int { return strings.Compare(a.Name, b.Name) }), nil
}

// NetworkInspect returns one network. The error wraps ErrNoNetwork.
func (c *Controller) NetworkInspect(ctx context.Context, name string) (NetworkView, error) {
	all, err := c.NetworkList(ctx)
	if err != nil {
		return NetworkView{}, err
	}
	for _, v := range all {
		if v.Name == name || len(name) >= 4 && strings.HasPrefix(v.ID, name) {
			return v, nil
		}
	}
	return NetworkView{}, tagged(ErrNoNetwork, "no network "+name)
}

// Ports returns the ports of one network, or with "" of all, and then the
// uplinks too. The error wraps ErrNotUp or ErrNoNetwork.
func (c *Controller) Ports(ctx context.Context, networkName string) (out []PortView, err error) {
	err = c.looking(ctx, func(r *reading) error {
		out = []PortView{}
		if networkName != "" {
			n, err := r.op.networks.find(networkName)
			if err != nil {
				return err
			}
			out = r.ports(n)
			return r.explain(out)
		}
		if err := r.anyUp(); err != nil {
			return err
		}
		for _, name := range r.op.st.networkNames() {
			out = append(out, r.ports(r.op.st.Networks[name])...)
		}
		out = append(out, r.uplinkPorts()...)
		return r.explain(out)
	})
	return out, err
}

// Snapshot reads everything a scrape needs; zero, without an error, when
// nothing is up.
func (c *Controller) Snapshot(ctx context.Context) (snap Snapshot, err error) {
	err = c.looking(ctx, func(r *reading) error {
		if r.anyUp() != nil || r.op.dp == nil {
			return nil
		}
		snap.Up = true
		for _, name := range r.op.st.networkNames() {
			if n := r.op.st.Networks[name]; r.up(n) {
				snap.Networks = append(snap.Networks, r.network(n))
			}
		}
		snap.Uplinks = r.uplinkPorts()
		nat, err := r.op.dp.NATStats()
		if err != nil {
			return fmt.Errorf("reading the NAT figures: %w", err)
		}
		snap.NAT = NATView{Flows: nat.Flows, FlowsOf: nat.FlowsOf, FlowsMax: nat.FlowsMax, PortOverloads: nat.PortOverloads,
			PortRemaps: nat.PortRemaps, PortsReclaimed: nat.PortsReclaimed, EarlyDrops: nat.EarlyDrops,
			PortTries: nat.PortTries, PortsNotFound: nat.PortsNotFound, Refused: map[string]uint64{}}
		for reason, v := range nat.Refused {
			snap.NAT.Refused[string(reason)] = v
		}
		return nil
	})
	return snap, err
}

// Flows returns the live NAT flows of containers, sorted by source. The error
// wraps ErrNotUp.
func (c *Controller) Flows(ctx context.Context) (out []FlowView, err error) {
	err = c.looking(ctx, func(r *reading) error {
		if err := r.loaded(); err != nil {
			return err
		}
		flows, err := r.op.dp.Flows()
		if err != nil {
			return fmt.Errorf("reading the flows: %w", err)
		}
		slices.SortFunc(flows, func(a, b datapath.Flow) int {
			return cmp.Or(a.Src.Compare(b.Src), a.Dst.Compare(b.Dst), strings.Compare(a.Proto, b.Proto))
		})
		out = make([]FlowView, 0, len(flows))
		for _, f := range flows {
			out = append(out, FlowView{Proto: f.Proto, Src: f.Src.String(), Dst: f.Dst.String(), NAT: f.NAT.String(),
				State: f.State, ExpiresS: int(f.Expires / time.Second), LeaseS: int(f.Lease / time.Second)})
		}
		return nil
	})
	return out, err
}

// loaded is an error if there is no datapath to ask.
func (r *reading) loaded() error {
	if err := r.anyUp(); err != nil {
		return err
	}
	if r.op.dp == nil {
		return errors.New("the pinned datapath is gone: run 'fastbr up' to load it again")
	}
	return nil
}

// FlushFlows ends all NAT flows and returns how many there were. The error
// wraps ErrNotUp.
func (c *Controller) FlushFlows(ctx context.Context) (n int, err error) {
	err = c.instance.mutate(ctx, func(op *operation) error {
		if err := op.needNetwork(); err != nil {
			return err
		}
		if n, err = op.dp.FlushFlows(); err != nil {
			return fmt.Errorf("flushing the flows: %w", err)
		}
		return nil
	})
	return n, err
}

// Revoke ends every lease now: each flow's next packet is judged by the host's
// firewall and routes again. Nothing happens when nothing is up.
func (c *Controller) Revoke(ctx context.Context, change link.Change) error {
	return c.instance.read(ctx, func(op *operation) error {
		if op.dp == nil || change == link.IPv6Change && !op.st.leads6() {
			return nil
		}
		return op.dp.Revoke()
	})
}

// Bridges lists every bridge of the namespace, ours or not, sorted by name as
// brctl does.
func (c *Controller) Bridges() ([]BridgeView, error) {
	conn, err := link.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	entries, err := conn.List()
	if err != nil {
		return nil, err
	}
	ports := map[int][]string{}
	for _, e := range entries {
		ports[e.Master] = append(ports[e.Master], e.Name)
	}
	out := []BridgeView{}
	for _, e := range entries {
		if e.Kind != "bridge" {
			continue
		}
		v := BridgeView{Name: e.Name, ID: fmt.Sprintf("%x.%x", e.ID[:2], e.ID[2:]), STP: e.STP, Interfaces: ports[e.Index]}
		if v.Interfaces == nil {
			v.Interfaces = []string{}
		}
		slices.Sort(v.Interfaces)
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b BridgeView) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Status says what is up and how. The error wraps ErrNotUp.
func (c *Controller) Status(ctx context.Context) (v StatusView, err error) {
	err = c.looking(ctx, func(r *reading) error {
		if kept := r.op.st.kept(); kept != "" {
			return tagged(ErrNotUp, "nothing is up here, but "+kept)
		}
		if err := r.anyUp(); err != nil {
			return err
		}
		set := r.op.st.Settings
		v = StatusView{Up: true, FlowsOf: map[string]uint32{}, Instance: r.op.id, Lease: set.Lease.String(), Mechanism: "tcx", XDP: cmp.Or(set.XDP, XDPAuto),
			BigTCP: bigTCP{r.op}.view(), NATRange: fmt.Sprintf("%d-%d", set.NATFirst, set.NATLast), Uplinks: []UplinkView{}, Networks: []NetworkView{}}
		if err := r.statusOfDatapath(&v); err != nil {
			return err
		}
		for _, u := range r.op.st.Uplinks {
			x := r.op.st.uplinkXDP(u.Index)
			view := UplinkView{Device: u.Name, Addr: addrText(u.Addr), Addr6: addrText(u.Addr6), Kind: uplinkKind(u.RawIP), XDP: XDPOff, XDPWhy: x.Why}
			if u.Side {
				view.XDPWhy = "the default route does not lead by it"
			}
			if x.On {
				view.XDP = XDPNative
			}
			v.Uplinks = append(v.Uplinks, view)
		}
		for _, name := range r.op.st.networkNames() {
			v.Networks = append(v.Networks, r.network(r.op.st.Networks[name]))
		}
		if v.Accept, err = r.op.firewall.acceptRules(); err != nil {
			return err
		}
		if v.Features = r.op.st.Features; v.Features == nil { // loaded by an older build
			v.Features = r.op.checks.kernel()
		}
		v.Notes = r.notes()
		return nil
	})
	return v, err
}

func (r *reading) statusOfDatapath(v *StatusView) error {
	if r.op.dp == nil {
		return nil
	}
	nat, err := r.op.dp.NATStats()
	if err != nil {
		return fmt.Errorf("reading the NAT figures: %w", err)
	}
	v.Flows, v.FlowsOf, v.FlowsMax = nat.Flows, nat.FlowsOf, nat.FlowsMax
	return nil
}

// notes is what the user should know and maybe mend.
func (r *reading) notes() []string {
	notes := []string{}
	note := func(f FeatureView) {
		if f.State == "warning" {
			notes = append(notes, f.Detail)
		}
	}
	if r.op.dp == nil {
		notes = append(notes, "the pinned datapath is gone: run 'fastbr up' to load it again")
	}
	if len(r.op.st.mainUplinks()) == 0 {
		notes = append(notes, "no uplink for the default route: containers get outside by other routes until there is one and another command runs")
	}
	for _, u := range r.op.uplinks.current() {
		if conflict := r.op.uplinks.conflict(u); conflict != "" {
			notes = append(notes, conflict)
		}
	}
	for _, name := range r.op.st.networkNames() {
		if n := r.op.st.Networks[name]; !r.up(n) {
			notes = append(notes, fmt.Sprintf("network %s is not whole%s", name, nextMends))
		}
	}
	for _, f := range r.op.firewall.findings() {
		note(f)
	}
	notes = append(notes, r.op.repair.notes()...)
	notes = append(notes, r.op.slow.notes()...)
	note(r.op.checks.bridgeCalls(r.op.st.hasIPv6()))
	if v, err := hostconf.Read(hostconf.Liberal); err == nil && v == "0" {
		notes = append(notes, hostconf.Name(hostconf.Liberal)+" is 0: connections will break under a firewall that uses connection tracking; set it to 1")
	}
	return notes
}
