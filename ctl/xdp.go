package ctl

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// The modes of --xdp. XDP runs in an uplink's driver or not at all; generic XDP
// would copy every packet.
const (
	XDPOff    = "off"
	XDPAuto   = "auto"   // where it is certain to cost nothing; see uncertain
	XDPNative = "native" // on every uplink, or refuse
)

// uplinkXDP is what was decided about XDP on an uplink.
type uplinkXDP struct {
	Index int    `json:"index"`
	Mode  string `json:"mode"` // that it was decided under; "": nobody asked, XDPAuto
	On    bool   `json:"on"`
	Why   string `json:"why"`
}

// uplinkXDP returns the decision about an uplink; the zero one if there is none.
func (st *state) uplinkXDP(index int) uplinkXDP {
	for _, x := range st.XDP {
		if x.Index == index {
			return x
		}
	}
	return uplinkXDP{}
}

// xdpOn reports whether XDP runs on any uplink.
func (st *state) xdpOn() bool {
	return slices.ContainsFunc(st.XDP, func(x uplinkXDP) bool { return x.On })
}

// xdp is the accelerator that takes packets in an uplink's driver.
type xdp struct{ op *operation }

func (xdp) name() string { return "xdp" }

// sync makes XDP on the uplinks what is wanted now, and then prepares the
// ports. quiet: an uplink on which it cannot run is a note, and a port that was
// not ready before is not looked for.
func (x xdp) sync(quiet bool) error {
	op := x.op
	mode := op.st.Settings.XDP
	var now []uplinkXDP
	for _, u := range op.st.mainUplinks() {
		decided, err := x.uplink(u, mode)
		if err != nil && !quiet {
			return err
		} else if err != nil {
			decided = uplinkXDP{u.Index, mode, false, err.Error()}
		}
		// What nobody asked for is news only where it is on.
		if old := op.st.uplinkXDP(u.Index); decided != old && (decided.On || old.On || mode != "" && mode != XDPOff) {
			op.say("uplink %s: XDP %s: %s", u.Name, onOff(decided.On), decided.Why)
		}
		now = append(now, decided)
	}
	if !slices.Equal(now, op.st.XDP) {
		op.st.XDP = now
		if err := op.save(); err != nil {
			return err
		}
	}
	return x.syncPorts(quiet)
}

// undo forgets what was decided: the program goes with its uplink's.
func (x xdp) undo() error {
	x.op.st.XDP = nil
	return x.op.save()
}

// uplink attaches XDP to an uplink or detaches it, and says why. What
// `auto` has decided about a device stands until it is another device.
func (x xdp) uplink(u uplink, mode string) (uplinkXDP, error) {
	old, auto := x.op.st.uplinkXDP(u.Index), mode == "" || mode == XDPAuto
	switch {
	case mode == XDPOff:
		return uplinkXDP{u.Index, mode, false, "not wanted"}, x.detach(u)
	case old.Mode == mode && old.On && x.op.dp.VerifyXDP(u.Index) == nil:
		return old, nil
	case auto && old.Index == u.Index && old.Mode == mode && !old.On:
		return old, nil
	}
	doubt, err := x.uncertain(u, auto)
	if errors.Is(err, link.ErrNotFound) { // until another takes its place
		return uplinkXDP{u.Index, mode, false, "the device is gone"}, nil
	} else if err != nil {
		return uplinkXDP{}, err
	}
	if doubt == "" {
		doubt, err = x.attach(u, auto)
	}
	switch {
	case err != nil:
		return uplinkXDP{}, err
	case doubt == "" && auto:
		return uplinkXDP{u.Index, mode, true, "its driver runs XDP, and all its offloads stay on"}, nil
	case doubt == "":
		return uplinkXDP{u.Index, mode, true, "asked for"}, nil
	case !auto:
		return uplinkXDP{}, errors.Join(fmt.Errorf("uplink %s: no native XDP: %s", u.Name, doubt), x.detach(u))
	}
	return uplinkXDP{u.Index, mode, false, doubt}, x.detach(u)
}

// uncertain says, without touching the device, why XDP must not run on an
// uplink, or under `auto` should not; "" if nothing speaks against it.
func (x xdp) uncertain(u uplink, auto bool) (string, error) {
	d, err := x.op.host.device(u.Index)
	if err != nil {
		return "", fmt.Errorf("uplink %s: %w", u.Name, err)
	}
	entries, err := x.op.host.listing()
	if err != nil {
		return "", err
	}
	return doubtXDP(d, entries, auto), nil
}

func doubtXDP(d link.Device, entries map[int]link.Entry, auto bool) string {
	if !d.Ethernet {
		return "its packets have no Ethernet header"
	}
	for _, index := range slices.Sorted(maps.Keys(entries)) {
		e := entries[index]
		if e.Kind == "vlan" && e.Lower == d.Index {
			return fmt.Sprintf("%s is a VLAN on it, and a driver may take tags off before XDP", e.Name)
		}
	}
	if d.Kind == "veth" && auto {
		return "on a veth it would take segmentation offload (TSO) from the other end"
	}
	return ""
}

// attach attaches, and says what stands against it: the driver, another
// program or, under `auto`, offloads that the driver gives up for it.
func (x xdp) attach(u uplink, auto bool) (doubt string, err error) {
	before, beforeErr := link.Offloads(u.Name)
	err = x.op.dp.AttachXDP(u.Index)
	switch {
	case errors.Is(err, datapath.ErrXDPTaken):
		return "another XDP program is on it", nil
	case errors.Is(err, datapath.ErrNotSupported):
		return "its driver cannot: " + reasonOf(err), nil
	case err != nil:
		return "", fmt.Errorf("uplink %s: %w", u.Name, err)
	case !auto:
		return "", nil
	case beforeErr != nil:
		return beforeErr.Error(), nil
	}
	after, err := link.Offloads(u.Name)
	if err != nil {
		return err.Error(), nil
	}
	return lostOffloads(before, after), nil
}

// reasonOf is what the kernel said, without our sentinel.
func reasonOf(err error) string {
	return strings.TrimPrefix(err.Error(), datapath.ErrNotSupported.Error()+": ")
}

func lostOffloads(before, after map[string]bool) string {
	var lost []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if before[name] && !after[name] {
			lost = append(lost, name)
		}
	}
	if len(lost) == 0 {
		return ""
	}
	return "its driver would give up " + strings.Join(lost, ", ")
}

func (x xdp) detach(u uplink) error {
	if err := x.op.dp.DetachXDP(u.Index); err != nil {
		return fmt.Errorf("detaching XDP from uplink %s: %w", u.Name, err)
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// findings says of each uplink, or where nothing is up of each that would be
// one, whether XDP runs on it, or could.
func (x xdp) findings() ([]FeatureView, error) {
	op := x.op
	if uplinks := op.st.mainUplinks(); len(uplinks) > 0 {
		var out []FeatureView
		for _, u := range uplinks {
			decided := op.st.uplinkXDP(u.Index)
			out = append(out, FeatureView{Name: "xdp", State: "ok", Detail: fmt.Sprintf("%s on %s: %s", onOff(decided.On), u.Name, decided.Why)})
		}
		return out, nil
	}
	devices, _, err := op.uplinks.defaults(false)
	if err != nil {
		return nil, err
	}
	entries, err := op.host.listing()
	if err != nil {
		return nil, err
	}
	var out []FeatureView
	for _, d := range devices {
		features, err := link.XDP(d.Index)
		v := FeatureView{Name: "xdp", State: "ok", Detail: fmt.Sprintf("'fastbr up' tries it on %s", d.Name)}
		switch doubt := doubtXDP(d, entries, true); {
		case doubt != "":
			v.Detail = fmt.Sprintf("left off on %s: %s", d.Name, doubt)
		case err != nil:
			v.State, v.Detail = "absent", err.Error()
		case features[d.Index]&link.XDPNative == 0:
			v.State, v.Detail = "absent", fmt.Sprintf("the driver of %s has no native XDP", d.Name)
		}
		out = append(out, v)
	}
	return out, nil
}

// syncPorts makes the ports ready for what XDP sends them as long as an uplink
// has it, and puts back what that changed in them afterwards.
func (x xdp) syncPorts(quiet bool) error {
	op := x.op
	if !op.st.xdpOn() {
		return op.ports.each(x.closePort)
	}
	var indexes []int
	_ = op.ports.each(func(_ *network, p *port) error { indexes = append(indexes, p.Index); return nil })
	features, err := link.XDP(indexes...)
	if err != nil {
		op.say("no port gets packets from XDP: %v", err)
		return nil
	}
	return op.ports.each(func(n *network, p *port) error {
		ready := features[p.Index]&link.XDPTakes != 0
		if !ready && !quiet {
			ready = x.openPort(p)
		}
		if ready == p.XDP {
			return nil
		}
		p.XDP = ready
		return errors.Join(op.save(), op.ports.tell(n, p))
	})
}

// open lets the container's end, device name of namespace ns (nil: the
// host's), take frames from XDP: GRO makes it poll for them.
func (x xdp) open(p *port, ns *link.Netns, name string) error {
	return doIn(ns, func() error {
		on, err := link.Offloads(name)
		if err != nil || on[link.GRO] {
			return err
		}
		p.GRO = true // ours to undo
		if err := x.op.save(); err != nil {
			return err
		}
		return link.SetOffload(name, link.GRO, true)
	})
}

// openPort is open for a port that was there before, whose container
// has to be found. It reports whether the host's end says that it takes frames.
func (x xdp) openPort(p *port) bool {
	ns, d, err := x.op.ports.inside(p)
	if err != nil {
		return false
	}
	defer ns.Close()
	return x.open(p, ns, d.Name) == nil && takesXDP(p)
}

func takesXDP(p *port) bool {
	features, err := link.XDP(p.Index)
	return err == nil && features[p.Index]&link.XDPTakes != 0
}

// prepare opens a new port to XDP; ready sees whether that worked.
func (x xdp) prepare(_ *network, p *port, inside end) {
	if p.XDP, p.GRO = false, false; x.op.st.xdpOn() {
		_ = x.open(p, inside.ns, inside.name)
	}
}

// ready tells the datapath that a new port takes frames from XDP. That its end does
// shows when it is up; where it does not, tc sends them.
func (x xdp) ready(n *network, p *port) error {
	if p.XDP || !x.op.st.xdpOn() || !takesXDP(p) {
		return nil
	}
	p.XDP = true
	return x.op.ports.tell(n, p)
}

// closePort undoes open. A container that is not found keeps its GRO: it is
// about to go.
func (x xdp) closePort(n *network, p *port) error {
	if p.GRO {
		if ns, d, err := x.op.ports.inside(p); err == nil {
			_ = doIn(ns, func() error { return link.SetOffload(d.Name, link.GRO, false) })
			ns.Close()
		}
	}
	if !p.XDP && !p.GRO {
		return nil
	}
	p.XDP, p.GRO = false, false
	return errors.Join(x.op.save(), x.op.ports.tell(n, p))
}
