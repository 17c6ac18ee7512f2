package ctl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/fastbr/fastbr/ctl/firewall"
	"github.com/fastbr/fastbr/ctl/hostconf"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// networks brings them up and takes them down.
type networks struct{ op *operation }

// Up brings a network up, the instance with the first one. Up of what is up
// already changes only what can be changed live, and reports created false.
// The error wraps ErrInvalid, ErrUnfit, ErrExists or ErrNoNetwork.
func (c *Controller) Up(ctx context.Context, name string, nr NetworkRequest, ir InstanceRequest) (view NetworkView, created bool, err error) {
	return c.raise(ctx, name, nr, ir, false)
}

// NetworkCreate defines a network and brings it up. The error wraps ErrExists
// if there is one of that name.
func (c *Controller) NetworkCreate(ctx context.Context, name string, nr NetworkRequest) (NetworkView, error) {
	view, _, err := c.raise(ctx, name, nr, InstanceRequest{}, true)
	return view, err
}

func (c *Controller) raise(ctx context.Context, name string, nr NetworkRequest, ir InstanceRequest, durable bool) (view NetworkView, created bool, err error) {
	if err := errors.Join(checkNetworkName(name), nr.check(), ir.check()); err != nil {
		return view, false, firstLine(err)
	}
	err = c.mutateWith(ctx, mutation{thorough: true, looks: looksItself}, func(op *operation) error {
		n := op.st.Networks[name]
		def, err := op.definition(name)
		if durable && n == nil && errors.Is(err, errDamaged) {
			err = op.discardDefinition(name, err)
		}
		if err != nil {
			return err
		}
		switch {
		case durable && (n != nil || def != nil):
			return tagged(ErrExists, fmt.Sprintf("network %s exists already", name))
		case n != nil:
			err = op.networks.upAgain(n, nr, ir)
		default:
			created = true
			n, err = op.networks.raise(name, def, nr, ir, durable)
		}
		if err != nil {
			return err
		}
		op.warnOfFilter()
		view, err = op.networkView(n)
		return err
	})
	return view, created, err
}

// Settle makes or changes the settings of the instance without a network of its
// own: for engines, whose networks come up by themselves. They hold until DownAll.
// The error wraps ErrInvalid, ErrUnfit or ErrExists.
func (c *Controller) Settle(ctx context.Context, ir InstanceRequest) error {
	if err := ir.check(); err != nil {
		return firstLine(err)
	}
	return c.mutateWith(ctx, mutation{looks: looksItself}, func(op *operation) error {
		if len(op.st.Networks) > 0 {
			if err := op.applyInstance(ir); err != nil {
				return err
			}
			op.st.Settings.Kept = true
			return errors.Join(op.save(), op.refresh(false))
		}
		if err := op.fit(); err != nil {
			return err
		}
		settings := firstSettings(op.st.Settings, ir)
		if _, _, err := op.uplinks.wanted(settings.Uplinks); err != nil {
			return err
		}
		settings.Kept = true
		op.st.Settings = settings
		return errors.Join(op.writeIdentity(), op.save())
	})
}

// firstLine keeps an error to one line.
func firstLine(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}

// upAgain applies what an `up` of a network that is up may change.
func (nets networks) upAgain(n *network, nr NetworkRequest, ir InstanceRequest) error {
	if d := n.differences(nr); len(d) > 0 {
		return tagged(ErrExists, fmt.Sprintf("network %s is up with other settings: %s: run 'fastbr down %s' first",
			n.Name, strings.Join(d, ", "), n.Name))
	}
	if err := nets.op.applyInstance(ir); err != nil {
		return err
	}
	if err := nets.op.upgrade(); err != nil {
		return err
	}
	return nets.op.refresh(false)
}

// applyInstance changes the instance's settings while it is up.
func (op *operation) applyInstance(ir InstanceRequest) error {
	if d := op.st.Settings.differences(ir); len(d) > 0 {
		return tagged(ErrExists, fmt.Sprintf("fastbr is up with other settings: %s: run 'fastbr down --all' first", strings.Join(d, ", ")))
	}
	settings := op.st.Settings
	settings.apply(ir)
	if _, _, err := op.uplinks.wanted(settings.Uplinks); err != nil {
		return err
	}
	old := op.st.Settings
	op.st.Settings = settings
	if settings.XDP != old.XDP {
		if err := (xdp{op}).sync(false); err != nil {
			op.st.Settings = old
			return errors.Join(err, xdp{op}.sync(true))
		}
	}
	if err := op.hostconf.RecordReserved(op.st.reserved()); err != nil {
		return err
	}
	if err := op.save(); err != nil {
		return err
	}
	return errors.Join(op.setNATRange(), op.setSpeed())
}

// setNATRange moves the datapath's NAT range to the one of the settings.
func (op *operation) setNATRange() error {
	now, err := op.dp.Config()
	if err != nil {
		return fmt.Errorf("reading the NAT range: %w", err)
	}
	first, last := op.st.Settings.NATFirst, op.st.Settings.NATLast
	if now.NATFirst == first && now.NATLast == last {
		return nil
	}
	if err := op.hostconf.Reserve(op.st.reserved()); err != nil { // the kernel gives none of them out any more
		return err
	}
	if err := op.dp.SetNATRange(first, last); err != nil {
		return fmt.Errorf("moving the NAT range: %w", err)
	}
	return nil
}

// setSpeed tells the datapath how much of the fast path is wanted.
func (op *operation) setSpeed() error {
	if now, err := op.dp.Lease(); err != nil || now != op.st.Settings.Lease { // setting it revokes
		if err := op.dp.SetLease(op.st.Settings.Lease); err != nil {
			return fmt.Errorf("setting the lease: %w", err)
		}
	}
	if err := op.dp.SetL2Fast(op.st.Settings.L2Fast); err != nil {
		return fmt.Errorf("setting the layer-2 fast path: %w", err)
	}
	return nil
}

// refresh looks again at what other programs may have changed since `up`, and mends
// it. quiet: what need not keep a container from being served is a note.
func (op *operation) refresh(quiet bool) error {
	if len(op.st.Networks) == 0 || op.dp == nil {
		return nil
	}
	if err := op.setHost(); err != nil {
		return err
	}
	if err := op.reassembly.ensure(); err != nil && !quiet {
		return err
	} else if err != nil {
		op.say("%v", err) // no reason to refuse a container
	}
	// What is attached again, or raised, is so before anything is decided by it.
	if err := errors.Join(op.uplinks.sync(quiet), op.repair.mend(quiet)); err != nil {
		return err
	}
	if err := op.repair.syncSlow(); err != nil {
		return err
	}
	if err := op.syncAccelerators(quiet); err != nil {
		return err
	}
	if len(op.publications()) > 0 {
		if err := op.syncLocal(); err != nil {
			return err
		}
	}
	return op.openFirewall()
}

func (nets networks) raise(name string, def *Definition, nr NetworkRequest, ir InstanceRequest, durable bool) (*network, error) {
	first := len(nets.op.st.Networks) == 0
	if first {
		if err := nets.op.fit(); err != nil {
			return nil, err
		}
		nets.op.st.Settings = firstSettings(nets.op.st.Settings, ir)
	} else if err := errors.Join(nets.op.applyInstance(ir), nets.op.refresh(true)); err != nil {
		return nil, err
	}
	n, err := nets.resolve(name, def, nr)
	if err != nil {
		return nil, err
	}
	uplinks, notes, err := nets.op.uplinks.wanted(nets.op.st.Settings.Uplinks)
	if err != nil {
		return nil, err
	}
	if !n.Internal {
		for _, note := range notes {
			nets.op.say("%s", note)
		}
	}
	nets.op.warnBridgeCalls()
	n.Defining = durable
	if n.MTU = n.Definition.MTU; n.MTU == 0 {
		n.MTU = uplinkMTU(uplinks)
	}
	return n, nets.op.runner.run(nets.op.ctx, nets.steps(n, uplinks))
}

// fit refuses a kernel that lacks something, in one line.
func (op *operation) fit() error {
	if err := op.opts.planes.prepare(op.opts.BPFFS); err != nil {
		return tagged(ErrUnfit, err.Error())
	}
	for _, f := range op.kernelFeatures() {
		if f.Required && f.Err != nil {
			minimum := ""
			if f.Minimum != "" {
				minimum = fmt.Sprintf(" (needs Linux %s or newer)", f.Minimum)
			}
			return tagged(ErrUnfit, fmt.Sprintf("%v: %s is missing: %v%s; 'fastbr check' shows all", ErrUnfit, f.Name, f.Err, minimum))
		}
	}
	return nil
}

// resolve makes the network to bring up from its definition or the request,
// checked against the host as it is.
func (nets networks) resolve(name string, def *Definition, nr NetworkRequest) (*network, error) {
	if def != nil {
		if d := def.differences(nr); len(d) > 0 {
			return nil, tagged(ErrExists, fmt.Sprintf("network %s is defined with other settings: %s: run 'fastbr network rm %s' first",
				name, strings.Join(d, ", "), name))
		}
		nr.Bridge = def.Bridge
	}
	// Before the addresses: a bridge that is there mostly has the same.
	if nr.Bridge != "" {
		if err := nets.bridgeFree(name, nr.Bridge); err != nil {
			return nil, err
		}
	}
	used, err := nets.usedAddrs(name)
	if err != nil {
		return nil, err
	}
	if def != nil {
		if err := used.conflict(def.Subnet); err != nil {
			return nil, fmt.Errorf("subnet %s of network %s %w", def.Subnet, name, err)
		}
	} else {
		made, note, err := define(name, nr, used)
		if err != nil {
			return nil, err
		}
		if note != "" {
			nets.op.say("%s", note)
		}
		def = &made
	}
	if err := nets.bridgeFree(name, def.Bridge); err != nil {
		return nil, err
	}
	return &network{Definition: *def, Ports: map[string]*port{}}, nil
}

// bridgeFree says whether a new network may have a device of that name.
func (nets networks) bridgeFree(network, bridge string) error {
	d, err := nets.op.conn.ByName(bridge)
	switch {
	case errors.Is(err, link.ErrNotFound):
		return nil
	case err != nil:
		return err
	case d.Alias == ownerMark(network):
		return tagged(ErrExists, fmt.Sprintf("device %s is left from a network whose state is lost: run 'fastbr down --all' first", d.Name))
	}
	if other, ours := strings.CutPrefix(d.Alias, ownerMark("")); ours {
		return tagged(ErrExists, fmt.Sprintf("device %s is the bridge of network %s: choose another name with --bridge", d.Name, other))
	}
	return tagged(ErrExists, fmt.Sprintf("device %s exists and is not fastbr's network %s: choose another name with --bridge, or remove it",
		d.Name, network))
}

// steps is what `up` does to the host, in order. Undone in reverse, it
// is what `down` does. The instance comes with the first network and goes with
// the last.
func (nets networks) steps(n *network, uplinks []uplink) []step {
	on := func(f func(*network) error) func() error { return func() error { return f(n) } }
	last := func(f func() error) func() error { return func() error { return nets.ifLast(f) } }
	steps := []step{
		{"record", on(nets.record), on(nets.forget), nil},
		{"sysctls", nets.op.setHost, last(nets.op.hostconf.Restore), nil},
		{"datapath", nets.op.createDatapath, last(nets.op.removeDatapath), nil},
		{"fragments", nets.op.reassembly.ensure, last(nets.op.reassembly.remove), nets.op.reassembly.ensure},
		{"bridge", on(nets.createBridge), on(nets.deleteBridge), on(nets.createBridge)},
		{"bridge-settings", on(nets.configureBridge), nil, on(nets.configureBridge)},
		{"datapath-network", on(nets.tell), on(nets.untell), on(nets.tell)},
		{"address", on(nets.addGateway), nil, on(nets.addGateway)},
		{"uplinks", func() error { return nets.op.uplinks.add(uplinks) }, last(nets.op.uplinks.detachAll), nil},
	}
	for _, a := range nets.op.accelerators() {
		steps = append(steps, step{a.name(), func() error { return a.sync(false) }, last(a.undo), nil})
	}
	steps = append(steps,
		step{"speed", nets.op.setSpeed, nil, nets.op.setSpeed},
		step{"forward", nets.op.openFirewall, func() error { return firewall.Remove(n.filtered()) }, nil},
		step{"bridge-up", on(nets.raiseBridge), nil, on(nets.raiseBridge)})
	if n.Defining {
		steps = append(steps, step{"define", func() error { return nets.op.defs.put(n.Definition) },
			func() error { return nets.op.defs.remove(n.Name) }, nil})
	}
	return append(steps, step{"done", on(nets.finish), nil, nil})
}

// ifLast runs f if no other network needs what it takes away.
func (nets networks) ifLast(f func() error) error {
	if len(nets.op.st.Networks) > 1 {
		return nil
	}
	return f()
}

func (nets networks) record(n *network) error {
	if err := nets.op.writeIdentity(); err != nil {
		return err
	}
	n.Pending = true
	nets.op.st.Networks[n.Name] = n
	return nets.op.save()
}

func (nets networks) forget(n *network) error {
	delete(nets.op.st.Networks, n.Name)
	return nets.op.save()
}

func (nets networks) finish(n *network) error {
	n.Pending, n.Defining = false, false
	return nets.op.save()
}

func (nets networks) addGateway(n *network) error {
	defer nets.op.host.forget() // publications are reached by this address, too
	return nets.op.conn.AddAddr(n.Index, netip.PrefixFrom(n.Gateway, n.Subnet.Bits()))
}

func (nets networks) raiseBridge(n *network) error { return nets.op.conn.SetUp(n.Index, true) }

// createDatapath makes the instance's datapath unless there is one.
func (op *operation) createDatapath() error {
	if op.dp != nil {
		return nil
	}
	// What a killed create left is not worth repairing.
	if err := op.opts.planes.remove(op.pins); err != nil {
		return fmt.Errorf("clearing %s: %w", op.pins, err)
	}
	// A module that is not loaded has no types, into which the programs look.
	_ = exec.Command("modprobe", "-q", "bridge").Run()
	set := op.st.Settings
	dp, err := op.opts.planes.create(op.pins, datapath.Config{FlowsMax: set.FlowsMax, NATFirst: set.NATFirst, NATLast: set.NATLast})
	if err != nil {
		return op.shortOfMemory(fmt.Errorf("creating the datapath: %w", err))
	}
	op.dp = dp
	if cfg, err := dp.Config(); err == nil && set.FlowsMax == 0 {
		op.st.Settings.FlowsMax = cfg.FlowsMax
	}
	op.st.Features = op.kernelFindings()
	return nil
}

// shortOfMemory says what can be done about a lack of memory for the maps, if that is
// what err is.
func (op *operation) shortOfMemory(err error) error {
	if !errors.Is(err, unix.ENOMEM) {
		return err
	}
	flows := op.st.Settings.FlowsMax
	if flows == 0 {
		flows = datapath.DefaultFlowsMax
	}
	return fmt.Errorf("no memory for the maps: %d flows take some %d MB, all else %d MB: raise the memory limit that applies here, or ask for fewer with --nat-flows (%w)",
		flows, (uint64(flows)*datapath.SessionBytes)>>20, datapath.RestBytes>>20, err)
}

func (op *operation) removeDatapath() error {
	if op.dp != nil {
		if err := op.dp.Close(); err != nil {
			return fmt.Errorf("closing the datapath: %w", err)
		}
		op.dp = nil
	}
	if err := op.opts.planes.remove(op.pins); err != nil {
		return fmt.Errorf("removing the datapath: %w", err)
	}
	return nil
}

// createBridge makes the device unless it is there. It is ours from the first
// moment: the record is on disk, and the MAC address is the gateway's.
func (nets networks) createBridge(n *network) error {
	if n.Index != 0 {
		return nil
	}
	index, err := nets.op.conn.CreateBridge(n.Bridge, ipam.MAC(n.Gateway), n.MTU)
	if err != nil {
		return err
	}
	n.Index = index
	return nets.op.save()
}

func (nets networks) configureBridge(n *network) error {
	if err := nets.op.conn.SetAlias(n.Index, ownerMark(n.Name)); err != nil {
		return fmt.Errorf("marking %s: %w", n.Bridge, err)
	}
	if err := nets.op.conn.SetForwardDelay(n.Index, 0); err != nil {
		return fmt.Errorf("setting the forward delay of %s: %w", n.Bridge, err)
	}
	return errors.Join(hostconf.QuietIPv6(n.Bridge), hostconf.Open(n.Bridge))
}

// deleteBridge removes the device if it is ours: by its mark, or, where a kill
// came before the mark, by the address that only createBridge gives.
func (nets networks) deleteBridge(n *network) error {
	d, err := nets.op.conn.ByName(n.Bridge)
	if errors.Is(err, link.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	unmarked := n.Pending && d.Alias == "" && d.MAC.String() == ipam.MAC(n.Gateway).String()
	if d.Kind != "bridge" || d.Alias != ownerMark(n.Name) && !unmarked {
		return nil
	}
	if err := nets.op.conn.Delete(d.Index); err != nil {
		return fmt.Errorf("deleting bridge %s: %w", n.Bridge, err)
	}
	return nil
}

func (nets networks) tell(n *network) error {
	err := nets.op.dp.SetNetwork(datapath.Network{Subnet: n.Subnet, Gateway: n.Gateway, Bridge: n.Index,
		Masquerade: n.Masquerade, Internal: n.Internal, NAT: n.natPolicy()})
	if err != nil {
		return fmt.Errorf("telling the datapath of network %s: %w", n.Name, err)
	}
	return nil
}

func (nets networks) untell(n *network) error {
	if nets.op.dp == nil || n.Index == 0 {
		return nil
	}
	// A packet that waits at an uplink would be nobody's, and leave as it is.
	for _, u := range nets.op.st.Uplinks {
		if err := nets.op.uplinks.dropUnresolved(u); err != nil {
			return err
		}
	}
	if err := nets.op.dp.DeleteNetwork(n.Index); err != nil {
		return fmt.Errorf("removing network %s from the datapath: %w", n.Name, err)
	}
	return nil
}

// add attaches the uplinks found before the first step.
func (us uplinks) add(uplinks []uplink) error {
	if len(uplinks) == 0 {
		return nil
	}
	return us.set(uplinks)
}

// warnBridgeCalls tells of the one setting under which frames between ports
// meet the host's firewall, and so are not fast.
func (op *operation) warnBridgeCalls() {
	if v, err := os.ReadFile(hostconf.BridgeCall); err == nil && strings.TrimSpace(string(v)) == "1" {
		op.say("%s is 1: frames between ports pass the host's firewall, on the kernel's path; with 0 they are fast",
			hostconf.Name(hostconf.BridgeCall))
	}
}
