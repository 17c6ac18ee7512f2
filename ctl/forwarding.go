package ctl

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// The kernel forwards what came in by a device whose "forwarding" is 1. What
// containers send comes in by their bridge, and what answers them by an uplink:
// these devices are opened, one by one, and ip_forward stays what it was. So it
// still says whether anybody else wants this host to be a router. As long as it
// is 0, fbr_guard lets what came in by an uplink that was closed before leave by
// our bridges only: the way between the host's other networks does not open by
// our doing. Whoever sets ip_forward=1, as other engines do when they find 0,
// opens that way at once.
//
// A network that is not translated (--masquerade=false) is routed, to wherever
// the host's routes lead: for that ip_forward itself is set.

// forwardingOf is the setting of one device.
func forwardingOf(device string) string { return sysConf + device + "/forwarding" }

// routed reports whether a network wants the host to be a router.
func (op *operation) routed() bool {
	for _, n := range op.st.Networks {
		if !n.Masquerade && !n.Internal {
			return true
		}
	}
	return false
}

// recordClosed notes that an uplink forwards nothing by itself, if that is so,
// before it is opened, and reports whether it was so.
func (op *operation) recordClosed(device string) (bool, error) {
	path := forwardingOf(device)
	if op.recorded(path) {
		return true, nil
	}
	now, err := readSysctl(path)
	if err != nil || now != "0" {
		return false, ignoreMissing(err)
	}
	op.st.Sysctls = append(op.st.Sysctls, sysctl{path, now, "1"})
	return true, op.save()
}

// open lets the kernel forward what comes in by a device.
func open(device string) error {
	path := forwardingOf(device)
	if now, err := readSysctl(path); err != nil || now == "1" {
		return ignoreMissing(err)
	}
	return writeSysctl(path, "1")
}

// closeAgain closes a device that is an uplink no more, unless the host is a router
// by somebody else's will.
func (op *operation) closeAgain(u uplink) error {
	i := slices.IndexFunc(op.st.Sysctls, func(c sysctl) bool { return c.Path == forwardingOf(u.Name) })
	if i < 0 {
		return nil
	}
	if d, err := op.conn.ByName(u.Name); err == nil && d.Index != u.Index {
		return nil // another device of that name, which may be the next uplink
	}
	if err := op.st.Sysctls[i].restore(); err != nil {
		return err
	}
	op.st.Sysctls = slices.Delete(op.st.Sysctls, i, i+1)
	return op.save()
}

// restore puts the old value back, unless somebody has changed it meanwhile.
func (c sysctl) restore() error {
	now, err := readSysctl(c.Path)
	if err != nil {
		return ignoreMissing(err) // the module or the device has gone
	}
	if device, ok := strings.CutSuffix(c.Path, "/forwarding"); ok && device != sysConf+"all" && c.Old == "0" {
		if router, err := readSysctl(sysForward); err == nil && router == "1" {
			return nil // somebody else's ip_forward holds for this device, too
		}
	}
	// Records with Old == New are those the kernel turned on our behalf.
	if now != c.Old && (now == c.New || c.Old == c.New) {
		return writeSysctl(c.Path, c.Old)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// forwardFinding says who wants this host to forward, and what.
func (op *operation) forwardFinding() FeatureView {
	v := FeatureView{Name: "ip_forward", State: "ok", Detail: "1: this host is a router, between all its networks"}
	now, err := readSysctl(sysForward)
	switch {
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case now == "1" && op.recorded(sysForward):
		v.Detail += "; fastbr has set it for a network that is not translated"
	case now == "1":
	case len(op.st.Networks) == 0:
		v.Detail = now + ": 'fastbr up' opens only its bridges and uplinks, the last 'fastbr down' closes them"
	default:
		v.Detail = now + ": only containers' packets are forwarded, by " + strings.Join(op.opened(), ", ")
		if closed := op.closedDevices(); len(closed) > 0 {
			v.State, v.Detail = "warning", closedDetail(closed)
		}
	}
	return v
}

// opened are our bridges and uplinks.
func (op *operation) opened() (out []string) {
	for _, name := range op.st.networkNames() {
		out = append(out, op.st.Networks[name].Bridge)
	}
	for _, u := range op.st.Uplinks {
		out = append(out, u.Name)
	}
	return out
}

// closedDevices are those of them by which the kernel forwards nothing.
func (op *operation) closedDevices() (out []string) {
	for _, device := range op.opened() {
		if now, err := readSysctl(forwardingOf(device)); err == nil && now != "1" {
			out = append(out, device)
		}
	}
	return out
}

func closedDetail(devices []string) string {
	return fmt.Sprintf("forwarding of %s is 0 again: containers do not get outside; the next command that changes something mends it", strings.Join(devices, ", "))
}
