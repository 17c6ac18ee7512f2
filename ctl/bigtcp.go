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

// superPackets is what was decided about them for all networks but internal ones,
// which lead to no uplink.
type superPackets struct {
	Size int    `json:"size"` // bytes; 0: the kernel's own
	Why  string `json:"why"`
}

// bigTCP is the accelerator that lets super-packets be larger than usual.
type bigTCP struct{ op *operation }

func (bigTCP) name() string { return "big-tcp" }

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
func decideBigTCP(mode string, uplinks []link.Device) superPackets {
	switch mode {
	case BigTCPOff:
		return superPackets{0, "not wanted"}
	case BigTCPOn:
		return superPackets{bigGSO, "asked for"}
	}
	size, why := bigGSO, "every uplink takes them"
	if len(uplinks) == 0 {
		why = "no uplink would cut them"
	}
	for _, d := range uplinks {
		takes, reason := takenBy(d)
		if takes <= link.DefaultGSO {
			return superPackets{0, reason}
		}
		size = min(size, takes)
	}
	return superPackets{size, why}
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

// wanted is what a port's ends should be set to, 0: the kernel's own. A port
// with a limit gets nothing: it is not to be faster, and large packets would be
// let through in bursts.
func (b bigTCP) wanted(n *network, p *port) int {
	switch {
	case p.Bandwidth != Bandwidth{}, b.op.st.Settings.BigTCP == BigTCPOff:
		return 0
	case n.Internal:
		return bigGSO
	}
	return b.op.st.BigTCP.Size
}

// sync decides anew and makes uplinks and ports what that asks for.
func (b bigTCP) sync(bool) error {
	var devices []link.Device
	for _, u := range b.op.st.mainUplinks() {
		d, err := b.op.uplinks.device(u)
		if errors.Is(err, link.ErrNotFound) {
			continue // until another takes its place
		} else if err != nil {
			return err
		}
		devices = append(devices, d)
	}
	if now := decideBigTCP(b.op.st.Settings.BigTCP, b.asFound(devices)); now != b.op.st.BigTCP {
		b.op.st.BigTCP = now
		if err := b.op.save(); err != nil {
			return err
		}
	}
	if err := b.setUplinks(devices); err != nil {
		return err
	}
	return b.op.ports.each(func(n *network, p *port) error {
		if want := b.wanted(n, p); want != p.GSO {
			return b.setPort(n, p, want)
		}
		return nil
	})
}

// asFound are uplinks as they were set before setUplinks.
func (b bigTCP) asFound(devices []link.Device) []link.Device {
	found := slices.Clone(devices)
	for i, d := range found {
		for _, r := range b.op.st.Raised {
			if r.Index == d.Index && r.New == d.GSO {
				found[i].GSO = r.Old
			}
		}
	}
	return found
}

// setUplinks lets the uplinks take what the ports build, and puts those back
// that need not any more. Old values are on disk before the first write.
func (b bigTCP) setUplinks(devices []link.Device) error {
	size := b.op.st.BigTCP.Size
	for _, r := range slices.Clone(b.op.st.Raised) {
		needed := func(d link.Device) bool { return d.Index == r.Index && min(size, d.GSOMax) == r.New }
		if slices.ContainsFunc(devices, needed) {
			continue
		}
		if err := b.restoreUplink(r); err != nil {
			return err
		}
	}
	for _, d := range devices {
		want := min(size, d.GSOMax)
		if d.GSO >= want || want <= link.DefaultGSO {
			continue
		}
		if !slices.ContainsFunc(b.op.st.Raised, func(r raisedUplink) bool { return r.Index == d.Index }) {
			b.op.st.Raised = append(b.op.st.Raised, raisedUplink{d.Name, d.Index, d.GSO, want})
			if err := b.op.save(); err != nil {
				return err
			}
		}
		if err := b.op.conn.SetGSO(d.Index, want); err != nil {
			b.op.say("uplink %s: %v", d.Name, err) // slower, and right all the same
			continue
		}
		b.op.say("uplink %s takes super-packets of %d bytes now, as its driver can (before: %d)", d.Name, want, d.GSO)
		b.op.host.forget()
	}
	return nil
}

// restoreUplink puts an uplink back unless it has gone or somebody changed it
// again meanwhile.
func (b bigTCP) restoreUplink(r raisedUplink) error {
	d, err := b.op.host.device(r.Index)
	if err == nil && d.Name == r.Name && d.GSO == r.New {
		err = b.op.conn.SetGSO(r.Index, r.Old)
	}
	if err != nil && !errors.Is(err, link.ErrNotFound) {
		return fmt.Errorf("uplink %s: %w", r.Name, err)
	}
	b.op.host.forget()
	b.op.st.Raised = slices.DeleteFunc(b.op.st.Raised, func(x raisedUplink) bool { return x == r })
	return b.op.save()
}

// undo puts the uplinks back; ports and bridges go with their network.
func (b bigTCP) undo() error {
	b.op.st.BigTCP = superPackets{}
	return b.setUplinks(nil)
}

// setPort sets both ends of a port that is up, and its bridge. A container
// that is not found keeps what it has: slower or not as fast, but right.
func (b bigTCP) setPort(n *network, p *port, want int) error {
	size := cmp.Or(want, link.DefaultGSO)
	b.setBridge(n, size)
	if err := b.op.conn.SetGSO(p.Index, size); err != nil && !errors.Is(err, link.ErrNotFound) {
		b.op.say("%s: %v", p.Port, err)
	}
	if ns, d, err := b.op.ports.inside(p); err == nil {
		if conn, err := link.OpenIn(ns); err == nil {
			_ = conn.SetGSO(d.Index, size)
			conn.Close()
		}
		ns.Close()
	}
	p.GSO = want
	return b.op.save()
}

// prepare sets both ends of a new port. An end that cannot be set goes on as everywhere.
func (b bigTCP) prepare(n *network, p *port, inside end) {
	if p.GSO = b.wanted(n, p); p.GSO != 0 {
		_ = b.op.conn.SetGSO(p.Index, p.GSO)
		_ = inside.conn.SetGSO(inside.index, p.GSO)
	}
}

// ready lets the bridge take what the port builds.
func (b bigTCP) ready(n *network, p *port) error {
	if p.GSO != 0 {
		b.setBridge(n, p.GSO)
	}
	return nil
}

// setBridge lets a bridge that has a port take what its ports build: what it
// does not take, it would cut on the kernel's path. It cannot if a foreign device
// on it takes less.
func (b bigTCP) setBridge(n *network, size int) { _ = b.op.conn.SetGSO(n.Index, size) }

func (b bigTCP) view() BigTCPView {
	return BigTCPView{Mode: cmp.Or(b.op.st.Settings.BigTCP, BigTCPAuto), Size: cmp.Or(b.op.st.BigTCP.Size, link.DefaultGSO), Why: b.op.st.BigTCP.Why}
}

// findings says what was decided, or where nothing is up what would be.
func (b bigTCP) findings() ([]FeatureView, error) {
	decided, would := b.op.st.BigTCP, ""
	if len(b.op.st.Networks) == 0 {
		devices, _, err := b.op.uplinks.defaults(false)
		if err != nil {
			return nil, err
		}
		decided, would = decideBigTCP(BigTCPAuto, devices), "'fastbr up' would choose "
	}
	return []FeatureView{{Name: "big-tcp", State: "ok", Minimum: "6.3",
		Detail: fmt.Sprintf("%ssuper-packets of %d bytes: %s", would, cmp.Or(decided.Size, link.DefaultGSO), decided.Why)}}, nil
}
