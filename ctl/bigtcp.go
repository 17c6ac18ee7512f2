package ctl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/fastbr/fastbr/ctl/link"
)

// The modes of --big-tcp. A container's TCP builds super-packets as large as its
// device takes, wherever they go. Whatever takes less on their way cuts them to
// single frames by software.
const (
	BigTCPOff  = "off"
	BigTCPAuto = "auto" // where every uplink is certain to take them; see takenBy
	BigTCPOn   = "on"   // whatever the uplinks say
)

// bigGSO is the most that a super-packet gets, in bytes: twice the usual. Sender
// and receiver on two CPUs gain from more, but where they share one, 192 KiB are
// slower than 64 again: the payload has left the cache before it is copied out.
const bigGSO = 128 << 10

// bigTCP is what was decided about super-packets for all networks but internal
// ones, which lead to no uplink.
type bigTCP struct {
	Size int    `json:"size"` // bytes; 0: the kernel's own
	Why  string `json:"why"`
}

// raisedUplink is an uplink that takes larger super-packets than it was set to,
// with what it was set to before.
type raisedUplink struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	Old   int    `json:"old"`
	New   int    `json:"new"`
}

// decideBigTCP says how large the super-packets of ports may be (0: the kernel's
// own size) and why.
func decideBigTCP(mode string, uplinks []link.Device) bigTCP {
	switch mode {
	case BigTCPOff:
		return bigTCP{0, "not wanted"}
	case BigTCPOn:
		return bigTCP{bigGSO, "asked for"}
	}
	size, why := bigGSO, "every uplink takes them"
	if len(uplinks) == 0 {
		why = "no uplink would cut them"
	}
	for _, d := range uplinks {
		takes, reason := takenBy(d)
		if takes <= link.DefaultGSO {
			return bigTCP{0, reason}
		}
		size = min(size, takes)
	}
	return bigTCP{size, why}
}

// takenBy is the largest super-packet that is certain to leave an uplink whole,
// and what limits it. A network card's driver tells. Other devices pass packets on
// (a VLAN or a bond to those below it, a veth into another namespace) and would
// promise anything; so it counts what somebody has set them to who knows the rest
// of the way. A setting below the usual has its reason.
func takenBy(d link.Device) (int, string) {
	switch {
	case d.GSO < link.DefaultGSO:
		return d.GSO, fmt.Sprintf("%s is set to %d bytes (gso_ipv4_max_size)", d.Name, d.GSO)
	case d.Kind != "device":
		return d.GSO, fmt.Sprintf("%s (%s) passes packets on and is set to %d bytes (gso_ipv4_max_size)", d.Name, d.Kind, d.GSO)
	}
	// The smallest segments of bulk traffic: two headers of 20 bytes, 12 of options.
	segments := d.GSOSegs * (d.MTU - 52)
	if segments < d.GSOMax {
		return segments, fmt.Sprintf("the driver of %s takes %d segments at most", d.Name, d.GSOSegs)
	}
	return d.GSOMax, fmt.Sprintf("the driver of %s takes %d bytes at most", d.Name, d.GSOMax)
}

// wantedGSO is what a port's ends should be set to, 0: the kernel's own. A port
// with a limit gets nothing: it is not to be faster, and large packets would be
// let through in bursts.
func (op *operation) wantedGSO(n *network, p *port) int {
	switch {
	case p.Bandwidth != Bandwidth{}, op.st.Settings.BigTCP == BigTCPOff:
		return 0
	case n.Internal:
		return bigGSO
	}
	return op.st.BigTCP.Size
}

// syncBigTCP decides anew and makes uplinks and ports what that asks for.
func (op *operation) syncBigTCP() error {
	var devices []link.Device
	for _, u := range op.st.Uplinks {
		d, err := op.uplinkDevice(u)
		if errors.Is(err, link.ErrNotFound) {
			continue // until another takes its place
		} else if err != nil {
			return err
		}
		devices = append(devices, d)
	}
	if now := decideBigTCP(op.st.Settings.BigTCP, op.asFound(devices)); now != op.st.BigTCP {
		op.st.BigTCP = now
		if err := op.save(); err != nil {
			return err
		}
	}
	if err := op.raiseUplinks(devices); err != nil {
		return err
	}
	return op.eachPort(func(n *network, p *port) error {
		if want := op.wantedGSO(n, p); want != p.GSO {
			return op.setPortGSO(n, p, want)
		}
		return nil
	})
}

// asFound are uplinks as they were set before raiseUplinks.
func (op *operation) asFound(devices []link.Device) []link.Device {
	found := slices.Clone(devices)
	for i, d := range found {
		for _, r := range op.st.Raised {
			if r.Index == d.Index && r.New == d.GSO {
				found[i].GSO = r.Old
			}
		}
	}
	return found
}

// uplinkDevice is an uplink's device. The error wraps link.ErrNotFound if another has
// its name by now, or none.
func (op *operation) uplinkDevice(u uplink) (link.Device, error) {
	d, err := op.host.device(u.Index)
	if err == nil && d.Name != u.Name {
		err = fmt.Errorf("uplink %s: %w", u.Name, link.ErrNotFound)
	}
	return d, err
}

// raiseUplinks lets the uplinks take what the ports build, and puts those back
// that need not any more. Old values are on disk before the first write.
func (op *operation) raiseUplinks(devices []link.Device) error {
	size := op.st.BigTCP.Size
	for _, r := range slices.Clone(op.st.Raised) {
		needed := func(d link.Device) bool { return d.Index == r.Index && min(size, d.GSOMax) == r.New }
		if slices.ContainsFunc(devices, needed) {
			continue
		}
		if err := op.restoreUplink(r); err != nil {
			return err
		}
	}
	for _, d := range devices {
		want := min(size, d.GSOMax)
		if d.GSO >= want || want <= link.DefaultGSO {
			continue
		}
		if !slices.ContainsFunc(op.st.Raised, func(r raisedUplink) bool { return r.Index == d.Index }) {
			op.st.Raised = append(op.st.Raised, raisedUplink{d.Name, d.Index, d.GSO, want})
			if err := op.save(); err != nil {
				return err
			}
		}
		if err := op.conn.SetGSO(d.Index, want); err != nil {
			op.say("uplink %s: %v", d.Name, err) // slower, and right all the same
			continue
		}
		op.say("uplink %s takes super-packets of %d bytes now, as its driver can (before: %d)", d.Name, want, d.GSO)
		op.host.forget()
	}
	return nil
}

// restoreUplink puts an uplink back unless it has gone or somebody changed it
// again meanwhile.
func (op *operation) restoreUplink(r raisedUplink) error {
	d, err := op.host.device(r.Index)
	if err == nil && d.Name == r.Name && d.GSO == r.New {
		err = op.conn.SetGSO(r.Index, r.Old)
	}
	if err != nil && !errors.Is(err, link.ErrNotFound) {
		return fmt.Errorf("uplink %s: %w", r.Name, err)
	}
	op.host.forget()
	op.st.Raised = slices.DeleteFunc(op.st.Raised, func(x raisedUplink) bool { return x == r })
	return op.save()
}

// restoreBigTCP puts the uplinks back; ports and bridges go with their network.
func (op *operation) restoreBigTCP() error {
	op.st.BigTCP = bigTCP{}
	return op.raiseUplinks(nil)
}

// setPortGSO sets both ends of a port that is up, and its bridge. A container
// that is not found keeps what it has: slower or not as fast, but right.
func (op *operation) setPortGSO(n *network, p *port, want int) error {
	size := cmp.Or(want, link.DefaultGSO)
	op.setBridgeGSO(n, size)
	if err := op.conn.SetGSO(p.Index, size); err != nil && !errors.Is(err, link.ErrNotFound) {
		op.say("%s: %v", p.Port, err)
	}
	if ns, d, err := op.inside(p); err == nil {
		if conn, err := link.OpenIn(ns); err == nil {
			_ = conn.SetGSO(d.Index, size)
			conn.Close()
		}
		ns.Close()
	}
	p.GSO = want
	return op.save()
}

// setBridgeGSO lets a bridge that has a port take what its ports build: what it
// does not take, it would cut on the kernel's path. It cannot if a foreign device
// on it takes less.
func (op *operation) setBridgeGSO(n *network, size int) { _ = op.conn.SetGSO(n.Index, size) }

func (op *operation) bigTCPView() BigTCPView {
	return BigTCPView{Mode: cmp.Or(op.st.Settings.BigTCP, BigTCPAuto), Size: cmp.Or(op.st.BigTCP.Size, link.DefaultGSO), Why: op.st.BigTCP.Why}
}

// bigTCPFinding says what was decided, or where nothing is up what would be.
func (op *operation) bigTCPFinding() (FeatureView, error) {
	v := FeatureView{Name: "big-tcp", State: "ok", Minimum: "6.3"}
	b, would := op.st.BigTCP, ""
	if len(op.st.Networks) == 0 {
		devices, _, err := op.autoUplinks()
		if err != nil {
			return v, err
		}
		b, would = decideBigTCP(BigTCPAuto, devices), "'fastbr up' would choose "
	}
	v.Detail = fmt.Sprintf("%ssuper-packets of %d bytes: %s", would, cmp.Or(b.Size, link.DefaultGSO), b.Why)
	return v, nil
}
