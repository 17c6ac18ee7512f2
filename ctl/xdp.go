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
	XDPAuto   = "auto"   // where it is certain to cost nothing; see uncertainXDP
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

// syncXDP makes XDP on the uplinks what is wanted now, and then prepares the
// ports. quiet: an uplink on which it cannot run is a note, and a port that was
// not ready before is not looked for.
func (op *operation) syncXDP(quiet bool) error {
	mode := op.st.Settings.XDP
	var now []uplinkXDP
	for _, u := range op.st.Uplinks {
		x, err := op.uplinkToXDP(u, mode)
		if err != nil && !quiet {
			return err
		} else if err != nil {
			x = uplinkXDP{u.Index, mode, false, err.Error()}
		}
		// What nobody asked for is news only where it is on.
		if old := op.st.uplinkXDP(u.Index); x != old && (x.On || old.On || mode != "" && mode != XDPOff) {
			op.say("uplink %s: XDP %s: %s", u.Name, onOff(x.On), x.Why)
		}
		now = append(now, x)
	}
	if !slices.Equal(now, op.st.XDP) {
		op.st.XDP = now
		if err := op.save(); err != nil {
			return err
		}
	}
	return op.syncPortsXDP(quiet)
}

// uplinkToXDP attaches XDP to an uplink or detaches it, and says why. What
// `auto` has decided about a device stands until it is another device.
func (op *operation) uplinkToXDP(u uplink, mode string) (uplinkXDP, error) {
	old, auto := op.st.uplinkXDP(u.Index), mode == "" || mode == XDPAuto
	switch {
	case mode == XDPOff:
		return uplinkXDP{u.Index, mode, false, "not wanted"}, op.detachXDP(u)
	case old.Mode == mode && old.On && op.dp.VerifyXDP(u.Index) == nil:
		return old, nil
	case auto && old.Index == u.Index && old.Mode == mode && !old.On:
		return old, nil
	}
	doubt, err := op.uncertainXDP(u, auto)
	if errors.Is(err, link.ErrNotFound) { // until another takes its place
		return uplinkXDP{u.Index, mode, false, "the device is gone"}, nil
	} else if err != nil {
		return uplinkXDP{}, err
	}
	if doubt == "" {
		doubt, err = op.attachXDP(u, auto)
	}
	switch {
	case err != nil:
		return uplinkXDP{}, err
	case doubt == "" && auto:
		return uplinkXDP{u.Index, mode, true, "its driver runs XDP, and all its offloads stay on"}, nil
	case doubt == "":
		return uplinkXDP{u.Index, mode, true, "asked for"}, nil
	case !auto:
		return uplinkXDP{}, errors.Join(fmt.Errorf("uplink %s: no native XDP: %s", u.Name, doubt), op.detachXDP(u))
	}
	return uplinkXDP{u.Index, mode, false, doubt}, op.detachXDP(u)
}

// uncertainXDP says, without touching the device, why XDP must not run on an
// uplink, or under `auto` should not; "" if nothing speaks against it.
func (op *operation) uncertainXDP(u uplink, auto bool) (string, error) {
	d, err := op.host.device(u.Index)
	if err != nil {
		return "", fmt.Errorf("uplink %s: %w", u.Name, err)
	}
	entries, err := op.host.listing()
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

// attachXDP attaches, and says what stands against it: the driver, another
// program or, under `auto`, offloads that the driver gives up for it.
func (op *operation) attachXDP(u uplink, auto bool) (doubt string, err error) {
	before, beforeErr := link.Offloads(u.Name)
	err = op.dp.AttachXDP(u.Index)
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

func (op *operation) detachXDP(u uplink) error {
	if err := op.dp.DetachXDP(u.Index); err != nil {
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

// xdpFindings says of each uplink, or where nothing is up of each that would be
// one, whether XDP runs on it, or could.
func (op *operation) xdpFindings() ([]FeatureView, error) {
	if len(op.st.Uplinks) > 0 {
		var out []FeatureView
		for _, u := range op.st.Uplinks {
			x := op.st.uplinkXDP(u.Index)
			out = append(out, FeatureView{Name: "xdp", State: "ok", Detail: fmt.Sprintf("%s on %s: %s", onOff(x.On), u.Name, x.Why)})
		}
		return out, nil
	}
	devices, _, err := op.autoUplinks()
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
