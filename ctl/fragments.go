package ctl

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// reassembly is the namespace that puts inbound fragments in order.
type reassembly struct{ op *operation }

// Inbound fragments must be put in order before they can be translated, and the
// kernel does that only for what it forwards (bpf/lib/frag.h). So an instance
// has a namespace that forwards everything it gets back to where it came from.
// No process and no mount holds it: the pinned link of its defragmentation
// does, and the namespace goes with the pin.

// fragments is what the state knows of that namespace.
type fragments struct {
	Index int `json:"index"` // ifindex of our end of the pair, 0: not made yet
}

const (
	// fragmentsDevice is our end of the pair that leads to the namespace.
	fragmentsDevice = "fastbr-frag"
	fragmentsPeer   = "host"
	// fragmentsMTU is the largest of a veth: the namespace must never answer
	// that something is too big. Fragments keep their size.
	fragmentsMTU = 65535
	// fragmentsTime is how many seconds a datagram may stay incomplete.
	fragmentsTime = "2"
)

// fragmentsGateway stands for the host in the namespace, where no device has an
// address: the IPv4 dummy address of RFC 7600, which nobody else has.
var fragmentsGateway = netip.MustParseAddr("192.0.0.8")

// fragmentsGateway6 is the same for IPv6, of which a gateway's address is link-local.
var fragmentsGateway6 = netip.MustParseAddr("fe80::1")

// fragmentsMark is the alias of the device: no network has such a name.
func fragmentsMark() string { return ownerMark("(fragments)") }

// ensure makes the namespace if a network needs it and it is not as it should be.
func (re reassembly) ensure() error {
	wanted := false
	for _, n := range re.op.st.Networks {
		wanted = wanted || !n.Internal
	}
	f := re.op.st.Fragments
	if !wanted {
		return nil
	}
	if f != nil && re.sound(f) {
		return re.lookUp6()
	}
	if f != nil {
		re.op.say("the namespace for fragments is gone: making it again")
	}
	if err := re.remove(); err != nil {
		return err
	}
	if _, err := re.op.conn.ByName(fragmentsDevice); err == nil {
		return tagged(ErrExists, fmt.Sprintf("device %s, which fastbr uses for fragments, exists and is not fastbr's: remove or rename it", fragmentsDevice))
	} else if !errors.Is(err, link.ErrNotFound) {
		return err
	}
	re.op.st.Fragments = &fragments{}
	if err := re.op.save(); err != nil {
		return err
	}
	if err := re.makeAll(re.op.st.Fragments); err != nil {
		return fmt.Errorf("making the namespace for fragments: %w", err)
	}
	return errors.Join(re.op.save(), re.lookUp6())
}

// lookUp6 lets the programs ask by our end of the pair whether an IPv6 address is the host's.
func (re reassembly) lookUp6() error {
	if !re.op.st.leads6() {
		return nil
	}
	return hostconf.Lookup6.Open(fragmentsDevice)
}

// sound says whether everything is in place. A namespace that has died
// has taken the pair with it.
func (re reassembly) sound(f *fragments) bool {
	d, err := re.op.host.device(f.Index)
	return err == nil && re.op.dp != nil && d.Name == fragmentsDevice && d.Alias == fragmentsMark() && d.Carrier &&
		re.op.dp.VerifyFragments(f.Index) == nil
}

func (re reassembly) makeAll(f *fragments) error {
	ns, err := link.NewNetns("the namespace for fragments")
	if err != nil {
		return err
	}
	defer ns.Close()
	// First of all what will keep the namespace alive.
	if err := ns.Do(re.op.dp.AttachDefrag); err != nil {
		return err
	}
	if err := re.op.runner.passed("fragments-link"); err != nil {
		return err
	}
	inside, err := link.OpenIn(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	d, err := re.pair(f, ns, inside, 0)
	if errors.Is(err, datapath.ErrSlotTaken) {
		d, err = re.pairAgain(f, ns, inside)
	}
	if err != nil {
		return err
	}
	if err := re.op.runner.passed("fragments-pair"); err != nil {
		return err
	}
	if err := re.configure(ns, inside, d); err != nil {
		return err
	}
	return re.op.conn.SetUp(f.Index, true)
}

// pair makes the pair, index of our end 0: the kernel's choice, and
// puts the program on it; nothing uses it before it is up. Returns the
// namespace's end.
func (re reassembly) pair(f *fragments, ns *link.Netns, inside *link.Conn, index int) (link.Device, error) {
	index, _, err := re.op.conn.CreateVeth(link.Veth{Name: fragmentsDevice, Alias: fragmentsMark(), Index: index,
		PeerName: fragmentsPeer, PeerNS: ns, MTU: fragmentsMTU})
	if err != nil {
		return link.Device{}, err
	}
	f.Index = index
	if err := errors.Join(re.op.save(), hostconf.QuietIPv6(fragmentsDevice)); err != nil {
		return link.Device{}, err
	}
	d, err := inside.ByName(fragmentsPeer)
	if err != nil {
		return d, err
	}
	return d, re.op.dp.AttachFragments(index, d.MAC)
}

// pairAgain is for an ifindex that falls on the slot of another device.
func (re reassembly) pairAgain(f *fragments, ns *link.Netns, inside *link.Conn) (link.Device, error) {
	index, err := re.op.ports.freeIndex()
	if err != nil {
		return link.Device{}, err
	}
	if err := re.op.conn.Delete(f.Index); err != nil {
		return link.Device{}, fmt.Errorf("deleting %s: %w", fragmentsDevice, err)
	}
	return re.pair(f, ns, inside, index)
}

// configure makes the namespace forward, whatever it gets, back to us.
func (re reassembly) configure(ns *link.Netns, inside *link.Conn, d link.Device) error {
	us, err := re.op.conn.ByName(fragmentsDevice)
	if err != nil {
		return err
	}
	if err := ns.Do(fragmentsSysctls); err != nil {
		return err
	}
	lo, err := inside.ByName("lo")
	if err != nil {
		return err
	}
	// Without any address of its own a namespace takes no gateway: lo brings one.
	for _, index := range []int{lo.Index, d.Index} {
		if err := inside.SetUp(index, true); err != nil {
			return err
		}
	}
	gateways := []netip.Addr{fragmentsGateway}
	if hostconf.HasIPv6() {
		gateways = append(gateways, fragmentsGateway6)
	}
	for _, gateway := range gateways {
		if err := inside.AddNeighbour(d.Index, gateway, us.MAC); err != nil {
			return err
		}
		if err := inside.AddOnlinkDefault(d.Index, gateway); err != nil {
			return err
		}
	}
	return nil
}

// fragmentsSysctls runs inside.
func fragmentsSysctls() error {
	settings := [][2]string{
		{hostconf.IPForward, "1"},
		{hostconf.Net + "ipv4/ipfrag_time", fragmentsTime},
		// A device's own setting and that of all devices are combined.
		{hostconf.Conf + "all/rp_filter", "0"}, {hostconf.Conf + fragmentsPeer + "/rp_filter", "0"},
		{hostconf.Conf + "all/send_redirects", "0"}, {hostconf.Conf + fragmentsPeer + "/send_redirects", "0"},
	}
	if hostconf.HasIPv6() {
		conf := hostconf.Net + "ipv6/conf/" + fragmentsPeer + "/"
		settings = append(settings, [][2]string{
			{hostconf.Net + "ipv6/ip6frag_time", fragmentsTime},
			{hostconf.Net + "ipv6/conf/all/forwarding", "1"},
			{conf + "accept_ra", "0"}, {conf + "accept_dad", "0"},
			// Without a link-local address it sends neither redirects nor solicitations.
			{conf + "addr_gen_mode", "1"}, {conf + "disable_ipv6", "0"},
		}...)
	}
	for _, set := range settings {
		if err := hostconf.Write(set[0], set[1]); err != nil {
			return err
		}
	}
	return nil
}

// remove takes everything away; the namespace goes with the last
// thing that refers to it.
func (re reassembly) remove() error {
	f := re.op.st.Fragments
	if f == nil {
		return nil
	}
	if re.op.dp != nil {
		if err := re.op.dp.DetachFragments(f.Index); err != nil {
			return fmt.Errorf("detaching %s from the datapath: %w", fragmentsDevice, err)
		}
	}
	d, err := re.op.conn.ByName(fragmentsDevice)
	if err != nil && !errors.Is(err, link.ErrNotFound) {
		return err
	}
	// A kill may have come before the mark.
	if err == nil && d.Kind == "veth" && (d.Alias == fragmentsMark() || d.Alias == "" && f.Index == 0) {
		if err := re.op.conn.Delete(d.Index); err != nil {
			return fmt.Errorf("deleting %s: %w", fragmentsDevice, err)
		}
	}
	re.op.st.Fragments = nil
	return re.op.save()
}
