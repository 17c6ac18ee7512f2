package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// deviceTable is fbr_devs: what the programs know of each device.
type deviceTable struct{ d *Datapath }

// be32 returns an IPv4 address as the maps hold it: network byte order in
// memory.
func be32(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// be16 returns a port as the maps hold it: network byte order in memory.
func be16(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

func addrOf(be uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], be)
	return netip.AddrFrom4(b)
}

func mac6(m net.HardwareAddr) (out [6]uint8, err error) {
	if len(m) != len(out) {
		return out, fmt.Errorf("%q is not an Ethernet address", m.String())
	}
	copy(out[:], m)
	return out, nil
}

func slot(ifindex int) uint32 { return uint32(ifindex % MaxDevices) }

// elsewhere returns the index of a device's second slot: fbr_dev_elsewhere of
// bpf/lib/device.h.
func elsewhere(ifindex int) uint32 {
	return uint32(MaxDevices + (ifindex+ifindex/MaxDevices)%moreDevices)
}

// SetNetwork adds or changes a network. The network must exist before its
// ports. The first network that has IPv6 loads the programs for it.
func (d *Datapath) SetNetwork(n Network) error {
	if n.HasIP6() {
		if err := d.families.load(); err != nil {
			return err
		}
	}
	bridge := tcFbrDev{
		Ifindex: uint32(n.Bridge),
		Bridge:  uint32(n.Bridge),
		Ip:      be32(n.Gateway),
		Flags:   tcFbrDevFlagsFBR_DEV_BRIDGE,
	}
	if n.Internal {
		bridge.Flags |= tcFbrDevFlagsFBR_DEV_INTERNAL
	}
	if n.OneWay {
		bridge.Flags |= tcFbrDevFlagsFBR_DEV_VIA
	}
	if n.HasIP6() {
		bridge.Flags |= inet6.flag
	}
	if err := d.devs.putDevice(bridge); err != nil {
		return err
	}
	if n.HasIP6() {
		if err := d.devs.putAddr6(n.Bridge, n.Gateway6); err != nil {
			return err
		}
	}
	if err := d.devs.setPlain(n.Bridge, n.Plain); err != nil {
		return err
	}
	if err := d.devs.setSubnets(n, append([]netip.Prefix{n.Subnet, n.Subnet6}, n.Allowed...)); err != nil {
		return err
	}
	if _, err := d.publications.setPublished(); err != nil {
		return err
	}
	return d.families.unload()
}

// setSubnets makes the subnets of a network, of both families, those in want.
func (dt deviceTable) setSubnets(n Network, want []netip.Prefix) error {
	for _, o := range dt.d.families.loaded() {
		m, keep := o.maps[tcMapFbrNets], map[string]bool{}
		for _, p := range want {
			if !o.of(p.Addr()) {
				continue
			}
			k := lpmKey(p)
			if err := m.Put(k, o.net(n, p)); err != nil {
				return fmt.Errorf("adding subnet %s: %w", p, err)
			}
			keep[string(k)] = true
		}
		_, err := deleteEntries(m, func(k, v []byte) bool {
			bridge, _ := o.netOf(v)
			return bridge == uint32(n.Bridge) && !keep[string(k)]
		})
		if err != nil {
			return fmt.Errorf("removing a subnet: %w", err)
		}
	}
	return nil
}

// broadcast returns a subnet's broadcast address in network byte order, 0 if it has none
// (RFC 3021).
func broadcast(subnet netip.Prefix) uint32 {
	if subnet.Bits() > 30 {
		return 0
	}
	a := subnet.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|^uint32(0)>>subnet.Bits())
	return be32(netip.AddrFrom4(a))
}

// DeleteNetwork removes the network of a bridge. Its ports must be gone. It
// succeeds when the network does not exist. The last network that has IPv6 takes the
// programs for it along.
func (d *Datapath) DeleteNetwork(bridge int) error {
	if err := d.devs.setSubnets(Network{Bridge: bridge}, nil); err != nil {
		return err
	}
	if err := d.devs.setPlain(bridge, nil); err != nil {
		return err
	}
	if _, err := d.publications.setPublished(); err != nil {
		return err
	}
	dev, _, err := d.devs.device(bridge)
	if err == nil {
		err = d.devs.forgetIP6(dev)
	}
	if err == nil {
		err = d.devs.clearDevice(bridge)
	}
	if err != nil {
		return err
	}
	return d.families.unload()
}

// setPlain makes the excepted destinations of a bridge's network, of both families, those in
// want.
func (dt deviceTable) setPlain(bridge int, want []netip.Prefix) error {
	for _, o := range dt.d.families.loaded() {
		m, keep := o.maps[tcMapFbrPlain], map[string]bool{}
		for _, p := range want {
			if !o.of(p.Addr()) {
				continue
			}
			k := lpmKey(p, bridge)
			if err := m.Put(k, uint32(1)); errors.Is(err, unix.ENOSPC) {
				return fmt.Errorf("%d destinations without translation in all networks: %w", m.MaxEntries(), ErrTooMany)
			} else if err != nil {
				return fmt.Errorf("adding %s to fbr_plain: %w", p, err)
			}
			keep[string(k)] = true
		}
		_, err := deleteEntries(m, func(k, _ []byte) bool { return isLPMOf(bridge, k) && !keep[string(k)] })
		if err != nil {
			return fmt.Errorf("removing an excepted destination: %w", err)
		}
	}
	return nil
}

// AttachPort adds or changes a port. It attaches the programs last, so that
// they never see an incomplete port. The error wraps ErrSlotTaken or
// ErrTooMany.
func (d *Datapath) AttachPort(p Port) error {
	mac, err := mac6(p.MAC)
	if err != nil {
		return err
	}
	gw, err := mac6(p.BridgeMAC)
	if err != nil {
		return err
	}
	dev := tcFbrDev{
		Ifindex: uint32(p.Ifindex),
		Ip:      be32(p.IP),
		Bridge:  uint32(p.Bridge),
		Flags:   tcFbrDevFlagsFBR_DEV_PORT,
		Mtu:     uint16(min(p.MTU, 65535)),
		Mac:     mac,
		GwMac:   gw,
	}
	if p.Slow {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_SLOW
	}
	if p.XDP {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_XDP
	}
	if len(p.AllowedAddrs)+len(p.AllowedMACs) > 0 {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_ALLOWED
	}
	for _, o := range d.families.loaded() {
		flags, found, err := o.portFlags(p.Bridge)
		if err == nil && !found && o == d.four {
			err = fmt.Errorf("no network on the bridge with ifindex %d", p.Bridge)
		}
		if err != nil {
			return err
		}
		dev.Flags |= flags
	}
	before, _, err := d.devs.device(p.Ifindex)
	if err != nil {
		return err
	}
	six, err := d.devs.hasIP6(p.Bridge)
	if err != nil {
		return err
	}
	// While the programs for IPv6 are not attached, the others let none in.
	if six && before.Flags&inet6.flag != 0 && d.links.verifyLinks(before) == nil {
		dev.Flags |= inet6.flag
	}
	if err := d.devs.putDevice(dev); err != nil {
		return err
	}
	if six {
		err = d.devs.putAddr6(p.Ifindex, p.IP6)
	} else if p.IP6 = (netip.Addr{}); before.Flags&inet6.flag != 0 || d.six != nil {
		err = d.devs.forgetIP6(dev)
	}
	if err != nil {
		return err
	}
	if err := d.allowed.permit(p); err != nil {
		return err
	}
	if before.Flags&tcFbrDevFlagsFBR_DEV_ALLOWED != 0 {
		if err := d.allowed.forbid(p); err != nil {
			return err
		}
	}
	ifindex := uint32(p.Ifindex)
	fdb := tcFbrFdbKey{Mac: mac, Bridge: uint32(p.Bridge)}
	if err := d.maps.FbrFdb.Put(&fdb, &ifindex); err != nil {
		return fmt.Errorf("adding %s to fbr_fdb: %w", p.MAC, err)
	}
	for _, o := range d.families.loaded() {
		for _, a := range []netip.Addr{p.IP, p.IP6} {
			if !o.of(a) {
				continue
			}
			if err := o.maps[tcMapFbrHosts].Put(a.AsSlice(), &ifindex); err != nil {
				return fmt.Errorf("adding %s to fbr_hosts: %w", a, err)
			}
		}
	}
	if six {
		dev.Flags |= inet6.flag
	}
	if err := d.links.attachDevice(dev); err != nil {
		return err
	}
	if six {
		return d.devs.putDevice(dev)
	}
	if before.Flags&inet6.flag != 0 {
		return d.families.unload()
	}
	return nil
}

// DetachPort removes a port and ends its sessions. It succeeds when the port or
// its device is gone.
func (d *Datapath) DetachPort(ifindex int) error {
	dev, ok, err := d.devs.device(ifindex)
	if err != nil {
		return err
	}
	if err := d.devs.forgetIP6(dev); err != nil {
		return err
	}
	if err := d.links.detachDevice(ifindex); err != nil || !ok {
		return err
	}
	// Without an address no new session can begin; then the old ones end.
	var owner uint32
	if err := d.maps.FbrHosts.Lookup(dev.Ip, &owner); err == nil && owner == dev.Ifindex {
		if err := deleteKey(d.maps.FbrHosts, dev.Ip); err != nil {
			return fmt.Errorf("removing %s from fbr_hosts: %w", addrOf(dev.Ip), err)
		}
	}
	fdb := tcFbrFdbKey{Mac: dev.Mac, Bridge: dev.Bridge}
	if err := d.maps.FbrFdb.Lookup(&fdb, &owner); err == nil && owner == dev.Ifindex {
		if err := deleteKey(d.maps.FbrFdb, &fdb); err != nil {
			return fmt.Errorf("removing a port from fbr_fdb: %w", err)
		}
	}
	if dev.Flags&tcFbrDevFlagsFBR_DEV_ALLOWED != 0 {
		if err := d.allowed.forbid(Port{Ifindex: ifindex, MAC: dev.Mac[:]}); err != nil {
			return err
		}
	}
	if _, err := d.nat.endOf(d.four, tcFbrOpFBR_OP_FLUSH, ifindex); err != nil {
		return err
	}
	return d.devs.clearDevice(ifindex)
}

// PortAt returns the ifindex of the port with an address, or 0. It reads all
// devices, because AttachPort may have been interrupted.
func (d *Datapath) PortAt(ip netip.Addr) (ifindex int, err error) {
	devs, err := d.devs.devices()
	for _, dev := range devs {
		if dev.Flags&tcFbrDevFlagsFBR_DEV_PORT == 0 {
			continue
		}
		if is, err := d.devs.hasAddr(dev, ip); is || err != nil {
			return int(dev.Ifindex), err
		}
	}
	return 0, err
}

// AttachUplink adds an uplink or changes its address. Leases granted under the
// old address end. The programs are attached first: as soon as fbr_devs lists
// the uplink, fbr_guard lets containers' packets reach it, and the program that
// translates them must be there. The error wraps ErrSlotTaken or ErrTooMany;
// the device is then no uplink.
func (d *Datapath) AttachUplink(u Uplink) error {
	dev := d.families.uplink(u)
	err := d.links.attachDevice(dev)
	if err == nil {
		err = d.devs.putDevice(dev)
	}
	if err == nil && d.six != nil {
		err = d.devs.putAddr6(u.Ifindex, u.Addr6)
	}
	if err != nil {
		return errors.Join(err, d.DetachUplink(u.Ifindex))
	}
	return d.Revoke()
}

// device returns the maps' entry for an uplink, but for IPv6 (families.uplink).
func (u Uplink) device() tcFbrDev {
	dev := tcFbrDev{
		Ifindex: uint32(u.Ifindex),
		Flags:   tcFbrDevFlagsFBR_DEV_UPLINK,
		Mtu:     uint16(min(u.MTU, 65535)),
	}
	if u.Addr.Is4() {
		dev.Ip = be32(u.Addr)
	}
	if u.RawIP {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_RAW_IP
	}
	if u.Closed {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_CLOSED
	}
	if u.Closed6 {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_CLOSED6
	}
	if u.Side {
		dev.Flags |= tcFbrDevFlagsFBR_DEV_SIDE
	}
	return dev
}

// CloseUplink stops using a device as an uplink. fbr_guard then lets no packet
// of a container leave by it. fbr_uplink_out stays attached and drops packets
// that have already passed the guard. Leases end. It succeeds when there is no
// such uplink.
func (d *Datapath) CloseUplink(ifindex int) error {
	if err := d.devs.clearDevice(ifindex); err != nil {
		return err
	}
	return d.Revoke()
}

// DetachUplink closes an uplink and removes its programs. Containers' packets
// that still wait in the device's neighbour queues would leave untranslated. A
// caller that cannot rule them out calls CloseUplink, empties the queues, and
// then calls DetachUplink. It succeeds when the uplink or its device is gone.
func (d *Datapath) DetachUplink(ifindex int) error {
	if err := d.CloseUplink(ifindex); err != nil {
		return err
	}
	return d.links.detachDevice(ifindex)
}

// Devices returns the ifindexes of all devices with programs.
func (d *Datapath) Devices() ([]int, error) {
	devs, err := d.devs.devices()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, dev := range devs {
		if dev.Flags&tcFbrDevFlagsFBR_DEV_BRIDGE == 0 {
			out = append(out, int(dev.Ifindex))
		}
	}
	return out, nil
}

// devicesAtOnce is the number of slots of fbr_devs that one call reads. Most
// are empty, and the memory that a command touches costs more than the calls.
const devicesAtOnce = 1024

// devices reads all occupied slots of fbr_devs.
func (dt deviceTable) devices() ([]tcFbrDev, error) {
	return dt.devicesUpTo(uint32(MaxDevices+moreDevices) - 1)
}

// devicesUpTo reads the occupied slots up to the index last.
func (dt deviceTable) devicesUpTo(last uint32) (out []tcFbrDev, err error) {
	err = eachElement(dt.d.maps.FbrDevs, devicesAtOnce, 1, last, func(_ uint32, devs []tcFbrDev) {
		if devs[0].Ifindex != 0 {
			out = append(out, devs[0])
		}
	})
	if err != nil {
		return nil, fmt.Errorf("reading fbr_devs: %w", err)
	}
	return out, nil
}

func (dt deviceTable) device(ifindex int) (dev tcFbrDev, ok bool, err error) {
	_, dev, ok, err = dt.find(ifindex)
	return dev, ok, err
}

// find returns the entry of a device and its slot. If the device has none, find
// returns the first slot and its content, and ok is false.
func (dt deviceTable) find(ifindex int) (at uint32, dev tcFbrDev, ok bool, err error) {
	var second tcFbrDev
	err = errors.Join(dt.d.maps.FbrDevs.Lookup(slot(ifindex), &dev), dt.d.maps.FbrDevs.Lookup(elsewhere(ifindex), &second))
	switch {
	case err != nil:
		return 0, dev, false, fmt.Errorf("reading fbr_devs: %w", err)
	case dev.Ifindex != uint32(ifindex) && second.Ifindex == uint32(ifindex):
		return elsewhere(ifindex), second, true, nil
	}
	return slot(ifindex), dev, dev.Ifindex == uint32(ifindex), nil
}

// place returns a free slot for a device that has none. Only uplinks and
// bridges use their second slot. A port's ifindex can be chosen, so ports need
// only the first; nobody chooses an uplink's.
func (dt deviceTable) place(dev tcFbrDev, there tcFbrDev) (at uint32, err error) {
	ifindex := int(dev.Ifindex)
	if there.Ifindex == 0 {
		return slot(ifindex), nil
	}
	taken := there.Ifindex
	if dev.Flags&(tcFbrDevFlagsFBR_DEV_UPLINK|tcFbrDevFlagsFBR_DEV_BRIDGE) != 0 {
		var second tcFbrDev
		if err := dt.d.maps.FbrDevs.Lookup(elsewhere(ifindex), &second); err != nil {
			return 0, fmt.Errorf("reading fbr_devs: %w", err)
		}
		if second.Ifindex == 0 {
			return elsewhere(ifindex), nil
		}
		taken = second.Ifindex
	}
	return 0, fmt.Errorf("ifindex %d shares a slot with ifindex %d: %w", dev.Ifindex, taken, ErrSlotTaken)
}

// putDevice writes a device's entry. A new device gets its own counters, at
// zero.
func (dt deviceTable) putDevice(dev tcFbrDev) error {
	at, old, ok, err := dt.find(int(dev.Ifindex))
	if err != nil {
		return err
	}
	if !ok {
		if at, err = dt.place(dev, old); err != nil {
			return err
		}
	}
	if dev.Stats = old.Stats; !ok {
		if dev.Stats, err = dt.newStats(); err != nil {
			return err
		}
	}
	if err := dt.d.maps.FbrDevs.Put(at, &dev); err != nil {
		return fmt.Errorf("writing fbr_devs: %w", err)
	}
	return nil
}

func (dt deviceTable) clearDevice(ifindex int) error {
	at, _, ok, err := dt.find(ifindex)
	if err != nil || !ok {
		return err
	}
	if err := dt.d.maps.FbrDevs.Put(at, &tcFbrDev{}); err != nil {
		return fmt.Errorf("writing fbr_devs: %w", err)
	}
	return nil
}

func deleteKey(m *ebpf.Map, key any) error {
	err := m.Delete(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
