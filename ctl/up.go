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
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

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
	err = c.mutateWith(ctx, mutation{thorough: true, looks: looksItself}, func(s *session) error {
		n := s.st.Networks[name]
		def, err := s.definition(name)
		if durable && n == nil && errors.Is(err, errDamaged) {
			err = s.discardDefinition(name, err)
		}
		if err != nil {
			return err
		}
		switch {
		case durable && (n != nil || def != nil):
			return tagged(ErrExists, fmt.Sprintf("network %s exists already", name))
		case n != nil:
			err = s.upAgain(n, nr, ir)
		default:
			created = true
			n, err = s.upNew(name, def, nr, ir, durable)
		}
		if err != nil {
			return err
		}
		s.warnOfFilter()
		view, err = s.networkView(n)
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
	return c.mutateWith(ctx, mutation{looks: looksItself}, func(s *session) error {
		if len(s.st.Networks) > 0 {
			if err := s.applyInstance(ir); err != nil {
				return err
			}
			s.st.Settings.Kept = true
			return errors.Join(s.save(), s.refresh(false))
		}
		if err := s.fit(); err != nil {
			return err
		}
		settings := firstSettings(s.st.Settings, ir)
		if _, _, err := s.wantedUplinks(settings.Uplinks); err != nil {
			return err
		}
		settings.Kept = true
		s.st.Settings = settings
		return errors.Join(s.writeIdentity(), s.save())
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
func (s *session) upAgain(n *network, nr NetworkRequest, ir InstanceRequest) error {
	if d := n.differences(nr); len(d) > 0 {
		return tagged(ErrExists, fmt.Sprintf("network %s is up with other settings: %s: run 'fastbr down %s' first",
			n.Name, strings.Join(d, ", "), n.Name))
	}
	if err := s.applyInstance(ir); err != nil {
		return err
	}
	if err := s.upgrade(); err != nil {
		return err
	}
	return s.refresh(false)
}

// applyInstance changes the instance's settings while it is up.
func (s *session) applyInstance(ir InstanceRequest) error {
	if d := s.st.Settings.differences(ir); len(d) > 0 {
		return tagged(ErrExists, fmt.Sprintf("fastbr is up with other settings: %s: run 'fastbr down --all' first", strings.Join(d, ", ")))
	}
	settings := s.st.Settings
	settings.apply(ir)
	if _, _, err := s.wantedUplinks(settings.Uplinks); err != nil {
		return err
	}
	old := s.st.Settings
	s.st.Settings = settings
	if settings.XDP != old.XDP {
		if err := s.syncXDP(false); err != nil {
			s.st.Settings = old
			return errors.Join(err, s.syncXDP(true))
		}
	}
	if err := s.recordReserved(); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	return errors.Join(s.setNATRange(), s.setSpeed())
}

// setNATRange moves the datapath's NAT range to the one of the settings.
func (s *session) setNATRange() error {
	now, err := s.dp.Config()
	if err != nil {
		return fmt.Errorf("reading the NAT range: %w", err)
	}
	first, last := s.st.Settings.NATFirst, s.st.Settings.NATLast
	if now.NATFirst == first && now.NATLast == last {
		return nil
	}
	if err := s.reserve(); err != nil { // the kernel gives none of them out any more
		return err
	}
	if err := s.dp.SetNATRange(first, last); err != nil {
		return fmt.Errorf("moving the NAT range: %w", err)
	}
	return nil
}

// setSpeed tells the datapath how much of the fast path is wanted.
func (s *session) setSpeed() error {
	if now, err := s.dp.Lease(); err != nil || now != s.st.Settings.Lease { // setting it revokes
		if err := s.dp.SetLease(s.st.Settings.Lease); err != nil {
			return fmt.Errorf("setting the lease: %w", err)
		}
	}
	if err := s.dp.SetL2Fast(s.st.Settings.L2Fast); err != nil {
		return fmt.Errorf("setting the layer-2 fast path: %w", err)
	}
	return nil
}

// refresh looks again at what other programs may have changed since `up`, and mends
// it. quiet: what need not keep a container from being served is a note.
func (s *session) refresh(quiet bool) error {
	if len(s.st.Networks) == 0 || s.dp == nil {
		return nil
	}
	if err := s.setSysctls(); err != nil {
		return err
	}
	if err := s.ensureFragments(); err != nil && !quiet {
		return err
	} else if err != nil {
		s.say("%v", err) // no reason to refuse a container
	}
	// What is attached again, or raised, is so before anything is decided by it.
	if err := errors.Join(s.syncUplinks(quiet), s.mend(quiet)); err != nil {
		return err
	}
	if err := s.syncSlow(); err != nil {
		return err
	}
	if err := errors.Join(s.syncXDP(quiet), s.syncBigTCP()); err != nil {
		return err
	}
	if len(s.publications()) > 0 {
		if err := s.syncLocal(); err != nil {
			return err
		}
	}
	return s.allowForwarding()
}

func (s *session) upNew(name string, def *Definition, nr NetworkRequest, ir InstanceRequest, durable bool) (*network, error) {
	first := len(s.st.Networks) == 0
	if first {
		if err := s.fit(); err != nil {
			return nil, err
		}
		s.st.Settings = firstSettings(s.st.Settings, ir)
	} else if err := errors.Join(s.applyInstance(ir), s.refresh(true)); err != nil {
		return nil, err
	}
	n, err := s.resolve(name, def, nr)
	if err != nil {
		return nil, err
	}
	uplinks, notes, err := s.wantedUplinks(s.st.Settings.Uplinks)
	if err != nil {
		return nil, err
	}
	if !n.Internal {
		for _, note := range notes {
			s.say("%s", note)
		}
	}
	s.warnBridgeCalls()
	n.Defining = durable
	if n.MTU = n.Definition.MTU; n.MTU == 0 {
		n.MTU = uplinkMTU(uplinks)
	}
	return n, s.runner.run(s.ctx, s.networkSteps(n, uplinks))
}

// fit refuses a kernel that lacks something, in one line.
func (s *session) fit() error {
	if err := s.opts.planes.prepare(s.opts.BPFFS); err != nil {
		return tagged(ErrUnfit, err.Error())
	}
	for _, f := range s.kernelFeatures() {
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
func (s *session) resolve(name string, def *Definition, nr NetworkRequest) (*network, error) {
	if def != nil {
		if d := def.differences(nr); len(d) > 0 {
			return nil, tagged(ErrExists, fmt.Sprintf("network %s is defined with other settings: %s: run 'fastbr network rm %s' first",
				name, strings.Join(d, ", "), name))
		}
		nr.Bridge = def.Bridge
	}
	// Before the addresses: a bridge that is there mostly has the same.
	if nr.Bridge != "" {
		if err := s.bridgeFree(name, nr.Bridge); err != nil {
			return nil, err
		}
	}
	used, err := s.usedAddrs(name)
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
			s.say("%s", note)
		}
		def = &made
	}
	if err := s.bridgeFree(name, def.Bridge); err != nil {
		return nil, err
	}
	return &network{Definition: *def, Ports: map[string]*port{}}, nil
}

// bridgeFree says whether a new network may have a device of that name.
func (s *session) bridgeFree(network, bridge string) error {
	d, err := s.conn.ByName(bridge)
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

// networkSteps is what `up` does to the host, in order. Undone in reverse, it
// is what `down` does. The instance comes with the first network and goes with
// the last.
func (s *session) networkSteps(n *network, uplinks []uplink) []step {
	steps := []step{
		{"record", func() error { return s.recordNetwork(n) }, func() error { return s.forgetNetwork(n) }},
		{"sysctls", s.setSysctls, func() error { return s.ifLast(s.restoreSysctls) }},
		{"datapath", s.createDatapath, func() error { return s.ifLast(s.removeDatapath) }},
		{"fragments", s.ensureFragments, func() error { return s.ifLast(s.removeFragments) }},
		{"bridge", func() error { return s.createBridge(n) }, func() error { return s.deleteBridge(n) }},
		{"bridge-settings", func() error { return s.configureBridge(n) }, nil},
		{"datapath-network", func() error { return s.setNetwork(n) }, func() error { return s.unsetNetwork(n) }},
		{"address", func() error {
			return s.conn.AddAddr(n.Index, netip.PrefixFrom(n.Gateway, n.Subnet.Bits()))
		}, nil},
		{"uplinks", func() error { return s.addUplinks(uplinks) }, func() error { return s.ifLast(s.detachUplinks) }},
		{"xdp", func() error { return s.syncXDP(false) }, nil}, // goes with the uplinks
		{"big-tcp", s.syncBigTCP, func() error { return s.ifLast(s.restoreBigTCP) }},
		{"speed", s.setSpeed, nil},
		{"forward", s.allowForwarding, func() error { return firewall.Remove(ownerMark(n.Name)) }},
		{"bridge-up", func() error { return s.conn.SetUp(n.Index, true) }, nil},
	}
	if n.Defining {
		steps = append(steps, step{"define", func() error { return s.defs.put(n.Definition) },
			func() error { return s.defs.remove(n.Name) }})
	}
	return append(steps, step{"done", func() error { n.Pending, n.Defining = false, false; return s.save() }, nil})
}

// ifLast runs f if no other network needs what it takes away.
func (s *session) ifLast(f func() error) error {
	if len(s.st.Networks) > 1 {
		return nil
	}
	return f()
}

func (s *session) recordNetwork(n *network) error {
	if err := s.writeIdentity(); err != nil {
		return err
	}
	n.Pending = true
	s.st.Networks[n.Name] = n
	return s.save()
}

func (s *session) forgetNetwork(n *network) error {
	delete(s.st.Networks, n.Name)
	return s.save()
}

// createDatapath makes the instance's datapath unless there is one.
func (s *session) createDatapath() error {
	if s.dp != nil {
		return nil
	}
	// What a killed create left is not worth repairing.
	if err := s.opts.planes.remove(s.pins); err != nil {
		return fmt.Errorf("clearing %s: %w", s.pins, err)
	}
	// A module that is not loaded has no types, into which the programs look.
	_ = exec.Command("modprobe", "-q", "bridge").Run()
	set := s.st.Settings
	dp, err := s.opts.planes.create(s.pins, datapath.Config{FlowsMax: set.FlowsMax, NATFirst: set.NATFirst, NATLast: set.NATLast})
	if err != nil {
		return s.shortOfMemory(fmt.Errorf("creating the datapath: %w", err))
	}
	s.dp = dp
	if cfg, err := dp.Config(); err == nil && set.FlowsMax == 0 {
		s.st.Settings.FlowsMax = cfg.FlowsMax
	}
	s.st.Features = s.kernelFindings()
	return nil
}

// shortOfMemory says what can be done about a lack of memory for the maps, if that is
// what err is.
func (s *session) shortOfMemory(err error) error {
	if !errors.Is(err, unix.ENOMEM) {
		return err
	}
	flows := s.st.Settings.FlowsMax
	if flows == 0 {
		flows = datapath.DefaultFlowsMax
	}
	return fmt.Errorf("no memory for the maps: %d flows take some %d MB, all else %d MB: raise the memory limit that applies here, or ask for fewer with --nat-flows (%w)",
		flows, (uint64(flows)*datapath.SessionBytes)>>20, datapath.RestBytes>>20, err)
}

func (s *session) removeDatapath() error {
	if s.dp != nil {
		if err := s.dp.Close(); err != nil {
			return fmt.Errorf("closing the datapath: %w", err)
		}
		s.dp = nil
	}
	if err := s.opts.planes.remove(s.pins); err != nil {
		return fmt.Errorf("removing the datapath: %w", err)
	}
	return nil
}

// createBridge makes the device. It is ours from the first moment: the record
// is on disk, and the MAC address is the gateway's.
func (s *session) createBridge(n *network) error {
	index, err := s.conn.CreateBridge(n.Bridge, ipam.MAC(n.Gateway), n.MTU)
	if err != nil {
		return err
	}
	n.Index = index
	return s.save()
}

func (s *session) configureBridge(n *network) error {
	if err := s.conn.SetAlias(n.Index, ownerMark(n.Name)); err != nil {
		return fmt.Errorf("marking %s: %w", n.Bridge, err)
	}
	if err := s.conn.SetForwardDelay(n.Index, 0); err != nil {
		return fmt.Errorf("setting the forward delay of %s: %w", n.Bridge, err)
	}
	return errors.Join(quietIPv6(n.Bridge), open(n.Bridge))
}

// deleteBridge removes the device if it is ours: by its mark, or, where a kill
// came before the mark, by the address that only createBridge gives.
func (s *session) deleteBridge(n *network) error {
	d, err := s.conn.ByName(n.Bridge)
	if errors.Is(err, link.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	unmarked := n.Pending && d.Alias == "" && d.MAC.String() == ipam.MAC(n.Gateway).String()
	if d.Kind != "bridge" || d.Alias != ownerMark(n.Name) && !unmarked {
		return nil
	}
	if err := s.conn.Delete(d.Index); err != nil {
		return fmt.Errorf("deleting bridge %s: %w", n.Bridge, err)
	}
	return nil
}

func (s *session) setNetwork(n *network) error {
	err := s.dp.SetNetwork(datapath.Network{Subnet: n.Subnet, Gateway: n.Gateway, Bridge: n.Index,
		Masquerade: n.Masquerade, Internal: n.Internal, NAT: n.natPolicy()})
	if err != nil {
		return fmt.Errorf("telling the datapath of network %s: %w", n.Name, err)
	}
	return nil
}

func (s *session) unsetNetwork(n *network) error {
	if s.dp == nil || n.Index == 0 {
		return nil
	}
	// A packet that waits at an uplink would be nobody's, and leave as it is.
	for _, u := range s.st.Uplinks {
		if err := s.dropUnresolved(u); err != nil {
			return err
		}
	}
	if err := s.dp.DeleteNetwork(n.Index); err != nil {
		return fmt.Errorf("removing network %s from the datapath: %w", n.Name, err)
	}
	return nil
}

// addUplinks attaches the uplinks found before the first step.
func (s *session) addUplinks(uplinks []uplink) error {
	if len(uplinks) == 0 {
		return nil
	}
	return s.setUplinks(uplinks)
}

// warnBridgeCalls tells of the one setting under which frames between ports
// meet the host's firewall, and so are not fast.
func (s *session) warnBridgeCalls() {
	if v, err := os.ReadFile(sysBridgeCall); err == nil && strings.TrimSpace(string(v)) == "1" {
		s.say("%s is 1: frames between ports pass the host's firewall, on the kernel's path; with 0 they are fast",
			sysctlName(sysBridgeCall))
	}
}
