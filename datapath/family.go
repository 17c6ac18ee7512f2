package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// family is an address family. Both have the same sources, programs and maps, compiled
// for each into an object file of its own.
type family struct {
	name   string
	label  string // of its metrics
	from   source
	dir    string   // of its maps and programs, in the instance's
	suffix string   // of the names of its links
	progs  []string // those that are loaded at once; nil: all but onDemand
	flag   tcFbrDevFlags
	pf     link.NetfilterProtocolFamily

	// The flags of ports of a network that is not translated, or not towards some
	routed, excepts tcFbrDevFlags

	sysctls string // is there if the kernel has the family

	// The values of its maps
	session func([]byte) session
	entry   func([]byte) entry
	pubs    pubTables
}

var (
	inet4 = family{name: "IPv4", label: "ipv4", from: objectFile, pf: link.NetfilterProtoIPv4, sysctls: "/proc/sys/net/ipv4",
		routed: tcFbrDevFlagsFBR_DEV_ROUTED, excepts: tcFbrDevFlagsFBR_DEV_EXCEPTS, session: session4, entry: entry4, pubs: pubs4}
	// inet6 is loaded with the first network that has IPv6. Its links stand right behind
	// those of IPv4 on each port with the flag.
	inet6 = family{name: "IPv6", label: "ipv6", from: once(loadTc6), dir: "ip6", suffix: "6", flag: tcFbrDevFlagsFBR_DEV_IP6,
		progs: []string{tcProgFbrPortIn, tcProgFbrPortOut, tcProgFbrUplinkIn, tcProgFbrUplinkOut,
			tcProgFbrGuard, tcProgFbrInput, tcProgFbrControl, tcProgFbrFragIn, tcProgFbrBind6, tcProgFbrRecvmsg6,
			tcProgFbrGetpeername6, tc6ProgFbrSendmsg6, tcProgFbrConnect6, tcProgFbrEndTcp, tcProgFbrEndUdp},
		pf: link.NetfilterProtoIPv6, sysctls: "/proc/sys/net/ipv6",
		routed: tcFbrDevFlagsFBR_DEV_ROUTED6, excepts: tcFbrDevFlagsFBR_DEV_EXCEPTS6, session: session6, entry: entry6, pubs: pubs6}
)

// onDemand are the programs of uplinks without Ethernet header, of either family. Few hosts
// have such an uplink, and the verifier takes as long for them as for those of the others.
var onDemand = []string{tcProgFbrTunIn, tcProgFbrTunOut}

// familyless are the maps of no family: the IPv4 programs' are the IPv6 programs', too.
var familyless = []string{
	tcMapFbrDevs, tcMapFbrStats, tcMapFbrDrops, tcMapFbrQuota, tcMapFbrFdb, tcMapFbrAllowedMac,
	tcMapFbrConf, tcMapFbrMeta, tcMapFbrHops,
}

// object is what is loaded of a family: its own maps, and its programs.
type object struct {
	family
	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
}

// root returns the directory of the family's pins in an instance's.
func (f family) root(dir string) string { return filepath.Join(dir, f.dir) }

// link returns the name of the family's link on a hook of a device.
func (f family) link(ifindex int, hook string) string { return deviceLink(ifindex, hook) + f.suffix }

// loads reports whether a program is one of those that are loaded at once.
func (f family) loads(name string) bool {
	if f.progs == nil {
		return !slices.Contains(onDemand, name)
	}
	return slices.Contains(f.progs, name)
}

// kernelName returns the name that the kernel has of a program, which the guard looks for.
// It has room for 15 bytes.
func (f family) kernelName(name string) string {
	return "fbr" + f.suffix + strings.TrimPrefix(name, "fbr")
}

// own returns the maps of the object file that are the family's own: those of IPv4, and
// those of another that its programs use. Headers declare all maps of their concepts.
func (f family) own(spec *ebpf.CollectionSpec) map[string]*ebpf.MapSpec {
	out := maps.Clone(spec.Maps)
	if f.dir == "" {
		return out
	}
	used := map[string]bool{}
	for _, p := range spec.Programs {
		for _, ins := range p.Instructions {
			if ins.IsLoadFromMap() {
				used[ins.Reference()] = true
			}
		}
	}
	maps.DeleteFunc(out, func(name string, _ *ebpf.MapSpec) bool { return !used[name] || slices.Contains(familyless, name) })
	return out
}

// of reports whether an address is of the family.
func (f family) of(a netip.Addr) bool { return a.IsValid() && a.Is4() == (f.dir == "") }

func (o *object) close() (err error) {
	for _, m := range o.maps {
		err = errors.Join(err, m.Close())
	}
	for _, p := range o.progs {
		err = errors.Join(err, p.Close())
	}
	return err
}

// newObject takes the maps and programs of coll. shared are other objects' maps.
func newObject(f family, coll *ebpf.Collection, shared map[string]*ebpf.Map) *object {
	o := &object{family: f, maps: map[string]*ebpf.Map{}, progs: map[string]*ebpf.Program{}}
	for name := range coll.Maps {
		if pinned(name) && shared[name] == nil {
			o.maps[name] = coll.DetachMap(name)
		}
	}
	for name := range coll.Programs {
		o.progs[name] = coll.DetachProgram(name)
	}
	return o
}

// pin pins an object's maps and programs in root.
func (o *object) pin(root string) error {
	if err := os.MkdirAll(filepath.Join(root, progsDir), 0o700); err != nil {
		return fmt.Errorf("creating the pin directory: %w", err)
	}
	for name, m := range o.maps {
		if err := m.Pin(mapPath(root, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	for name, p := range o.progs {
		if err := p.Pin(progPath(root, name)); err != nil {
			return fmt.Errorf("pinning program %s: %w", name, err)
		}
	}
	return nil
}

// families loads and removes the programs of the families that not every network has.
type families struct {
	d     *Datapath
	load6 loader // of the IPv6 programs
}

// loaded returns what is loaded: IPv4, and IPv6 while a network has it.
func (fs families) loaded() []*object {
	if fs.d.six == nil {
		return []*object{fs.d.four}
	}
	return []*object{fs.d.four, fs.d.six}
}

// of returns what is loaded of an address's family.
func (fs families) of(a netip.Addr) (*object, error) {
	for _, o := range fs.loaded() {
		if o.of(a) {
			return o, nil
		}
	}
	return nil, fmt.Errorf("%s: no network has IPv6", a)
}

// shared returns those of the datapath's maps that are of no family.
func (fs families) shared() map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	for _, name := range familyless {
		out[name] = fs.d.four.maps[name]
	}
	return out
}

// load makes sure that the IPv6 programs are loaded.
func (fs families) load() error {
	if fs.d.six != nil {
		return nil
	}
	if err := fs.sweep(); err != nil {
		return err
	}
	root := inet6.root(fs.d.dir)
	o, err := fs.build(building(root), fs.shared())
	if err == nil {
		if err = fs.d.ports.openAll(o); err == nil {
			err = os.Rename(building(root), root)
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("publishing the IPv6 programs: %w", err), o.close())
		}
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(building(root)))
	}
	fs.d.six = o
	return fs.attach()
}

// attach attaches the programs where no port has to ask for them: to the uplinks, to the
// device for fragments, and to netfilter.
func (fs families) attach() error {
	if err := fs.d.AttachGuard(); err != nil {
		return err
	}
	devs, err := fs.d.devs.devices()
	if err != nil {
		return err
	}
	for _, dev := range devs {
		switch {
		case dev.Flags&tcFbrDevFlagsFBR_DEV_UPLINK != 0:
			dev.Flags |= inet6.flag
		case dev.Flags&tcFbrDevFlagsFBR_DEV_FRAGS != 0:
			dev = fs.d.reassembly.device(dev)
		default:
			continue
		}
		if err := fs.d.links.attachDevice(dev); err != nil {
			return err
		}
		if err := fs.d.devs.putDevice(dev); err != nil {
			return err
		}
	}
	return nil
}

// build loads the IPv6 programs on maps that they share, and pins them in root.
func (fs families) build(root string, shared map[string]*ebpf.Map) (*object, error) {
	coll, err := fs.load6(fs.d.meta, shared)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	o := newObject(inet6, coll, fs.shared())
	if err := o.pin(root); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// program returns a program of an object. One of those on demand is loaded and pinned the
// first time, and stays as long as the others.
func (fs families) program(o *object, name string) (*ebpf.Program, error) {
	if p := o.progs[name]; p != nil {
		return p, nil
	}
	alone, shared := o.family, fs.shared()
	alone.progs = []string{name}
	maps.Copy(shared, o.maps)
	coll, err := alone.loading(nil)(fs.d.meta, shared)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	path := progPath(o.root(fs.d.dir), name)
	// Before the pins of an upgrade take their place, there may be one of another build.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("unpinning program %s: %w", name, err)
	}
	if err := coll.Programs[name].Pin(path); err != nil {
		return nil, fmt.Errorf("pinning program %s: %w", name, err)
	}
	o.progs[name] = coll.DetachProgram(name)
	return o.progs[name], nil
}

// loadDemanded loads the programs on demand of the devices that are there.
func (fs families) loadDemanded() error {
	devs, err := fs.d.devs.devices()
	if err != nil {
		return err
	}
	for _, dev := range devs {
		in, out := programsOf(dev)
		if !slices.Contains(onDemand, in) {
			continue
		}
		for _, o := range fs.loaded() {
			for _, name := range []string{in, out} {
				if _, err := fs.program(o, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// unload removes the IPv6 programs if no network has IPv6 any more.
func (fs families) unload() error {
	if fs.d.six == nil {
		return fs.sweep()
	}
	devs, err := fs.d.devs.devices()
	if err != nil {
		return err
	}
	for _, dev := range devs {
		if dev.Flags&inet6.flag != 0 && dev.Flags&(tcFbrDevFlagsFBR_DEV_PORT|tcFbrDevFlagsFBR_DEV_BRIDGE) != 0 {
			return nil
		}
	}
	for _, dev := range devs {
		if dev.Flags&inet6.flag != 0 {
			if err := fs.d.devs.forgetIP6(dev); err != nil {
				return err
			}
		}
	}
	if err := fs.d.sockets.leave(); err != nil {
		return err
	}
	for _, name := range []string{inputLink, guardLink, defragLink} {
		if err := detach(linkPath(fs.d.dir, name+inet6.suffix)); err != nil {
			return err
		}
	}
	err = fs.d.six.close()
	fs.d.six = nil
	root := inet6.root(fs.d.dir)
	if err := errors.Join(err, os.RemoveAll(previous(root)), os.Rename(root, previous(root))); err != nil {
		return fmt.Errorf("unpinning the IPv6 programs: %w", err)
	}
	return fs.sweep()
}

// sweep removes what a killed load or unload has left.
func (fs families) sweep() error {
	root := inet6.root(fs.d.dir)
	if err := errors.Join(os.RemoveAll(building(root)), os.RemoveAll(previous(root))); err != nil {
		return fmt.Errorf("unpinning the IPv6 programs: %w", err)
	}
	return nil
}

// open opens the IPv6 programs if they are pinned.
func (fs families) open(open opener) error {
	root := inet6.root(fs.d.dir)
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the pins: %w", err)
	}
	coll := &ebpf.Collection{Maps: map[string]*ebpf.Map{}, Programs: map[string]*ebpf.Program{}}
	defer coll.Close()
	if err := open(coll, inet6, fs.d.meta, root); err != nil {
		return err
	}
	fs.d.six = newObject(inet6, coll, nil)
	return nil
}

// net returns what the family's programs know of a network, for one of its subnets.
func (f family) net(n Network, subnet netip.Prefix) any {
	var via uint32
	if n.OneWay {
		via = uint32(n.Via)
	}
	if f.dir != "" {
		return &tc6FbrNet{Bridge: uint32(n.Bridge), Flags: uint32(f.netFlags(n)), Snat: in6(n.SNAT6), Via: via}
	}
	v := tcFbrNet{Bridge: uint32(n.Bridge), Flags: f.netFlags(n), Snat: in4(n.SNAT), Via: via}
	if subnet == n.Subnet {
		v.Broadcast = broadcast(subnet)
	}
	return &v
}

// netFlags returns the flags of a network in the family.
func (f family) netFlags(n Network) tcFbrNetFlags {
	flags, translated, snat := n.NAT.flags(), n.Masquerade, n.SNAT
	if f.dir != "" {
		translated, snat = !n.Routed6, n.SNAT6
	}
	set := func(is bool, flag tcFbrNetFlags) {
		if is {
			flags |= flag
		}
	}
	set(translated, tcFbrNetFlagsFBR_NET_MASQUERADE)
	set(!translated && n.PublishedOnly, tcFbrNetFlagsFBR_NET_MASQUERADE|tcFbrNetFlagsFBR_NET_OWN)
	set(translated && f.of(snat), tcFbrNetFlagsFBR_NET_SNAT)
	set(translated && slices.ContainsFunc(n.Plain, func(p netip.Prefix) bool { return f.of(p.Addr()) }), tcFbrNetFlagsFBR_NET_PLAIN)
	set(n.Internal, tcFbrNetFlagsFBR_NET_INTERNAL)
	set(n.OneWay, tcFbrNetFlagsFBR_NET_VIA)
	set(n.NDProxy && f.dir != "", tcFbrNetFlagsFBR_NET_ND_PROXY)
	return flags
}

// netOf returns the bridge of a network in fbr_nets, by its ifindex, and its flags.
func (f family) netOf(v []byte) (bridge uint32, flags tcFbrNetFlags) {
	if f.dir != "" {
		n := as[tc6FbrNet](v)
		return n.Bridge, tcFbrNetFlags(n.Flags)
	}
	n := as[tcFbrNet](v)
	return n.Bridge, n.Flags
}

// anyNetwork reports whether is holds for a network, by its bridge and its flags in a family.
func (o *object) anyNetwork(is func(bridge uint32, flags tcFbrNetFlags) bool) (found bool, err error) {
	err = eachEntry(o.maps[tcMapFbrNets], 0, func(_, v []byte) error {
		if found = is(o.netOf(v)); found {
			return errEnd
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("reading fbr_nets: %w", err)
	}
	return found, nil
}

// portFlags returns the flags that ports have by their bridge's network in the family, if
// there is one.
func (o *object) portFlags(bridge int) (out tcFbrDevFlags, found bool, err error) {
	var net tcFbrNetFlags
	found, err = o.anyNetwork(func(b uint32, flags tcFbrNetFlags) bool {
		net = flags
		return b == uint32(bridge)
	})
	if err != nil || !found {
		return 0, false, err
	}
	switch {
	case net&tcFbrNetFlagsFBR_NET_INTERNAL != 0:
		out |= tcFbrDevFlagsFBR_DEV_INTERNAL
	case net&tcFbrNetFlagsFBR_NET_MASQUERADE == 0:
		out |= o.routed
	case net&(tcFbrNetFlagsFBR_NET_PLAIN|tcFbrNetFlagsFBR_NET_OWN) != 0:
		out |= o.excepts
	}
	if net&tcFbrNetFlagsFBR_NET_VIA != 0 {
		out |= tcFbrDevFlagsFBR_DEV_VIA
	}
	if net&(tcFbrNetFlagsFBR_NET_OWN|tcFbrNetFlagsFBR_NET_SNAT|tcFbrNetFlagsFBR_NET_VIA) != 0 {
		out |= tcFbrDevFlagsFBR_DEV_SOURCE
	}
	return out, true, nil
}

// uplink returns the maps' entry for an uplink.
func (fs families) uplink(u Uplink) tcFbrDev {
	dev := u.device()
	if fs.d.six != nil {
		dev.Flags |= inet6.flag
	}
	return dev
}

// hasIP6 reports whether a bridge's network has IPv6.
func (dt deviceTable) hasIP6(bridge int) (bool, error) {
	dev, _, err := dt.device(bridge)
	if err == nil && dev.Flags&inet6.flag != 0 && dt.d.six == nil {
		err = fmt.Errorf("the IPv6 programs are not pinned: %w", ErrDetached)
	}
	return dev.Flags&inet6.flag != 0, err
}

// addr6 returns what fbr_dev6 says of a device. It is at the device's slot of fbr_devs.
func (dt deviceTable) addr6(ifindex int) (at uint32, v tc6FbrDev6, err error) {
	at, _, _, err = dt.find(ifindex)
	if err != nil {
		return at, v, err
	}
	if err := dt.d.six.maps[tc6MapFbrDev6].Lookup(at, &v); err != nil {
		return at, v, fmt.Errorf("reading fbr_dev6: %w", err)
	}
	if v.Ifindex != uint32(ifindex) {
		v = tc6FbrDev6{Ifindex: uint32(ifindex)}
	}
	return at, v, nil
}

// putAddr6 writes a device's global IPv6 address into fbr_dev6. An invalid one is none.
func (dt deviceTable) putAddr6(ifindex int, a netip.Addr) error {
	at, v, err := dt.addr6(ifindex)
	if err != nil {
		return err
	}
	v.Ip = in6(a)
	if err := dt.d.six.maps[tc6MapFbrDev6].Put(at, &v); err != nil {
		return fmt.Errorf("writing fbr_dev6: %w", err)
	}
	return nil
}

// in6 returns an IPv6 address as the maps hold it. An invalid one is ::.
func in6(a netip.Addr) (out tc6FbrAddr) {
	if a.Is6() {
		b := a.As16()
		for i := range out.Word {
			out.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
		}
	}
	return out
}

// addrOf6 returns an IPv6 address of the maps.
func addrOf6(a tc6FbrAddr) netip.Addr {
	var b [16]byte
	for i, w := range a.Word {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b)
}

// hasAddr reports whether an address is a port's own.
func (dt deviceTable) hasAddr(dev tcFbrDev, a netip.Addr) (bool, error) {
	if a.Is4() {
		return dev.Ip == be32(a), nil
	}
	if dt.d.six == nil {
		return false, nil
	}
	_, v, err := dt.addr6(int(dev.Ifindex))
	return err == nil && v.Ip == in6(a), err
}

// verifyAddr6 checks what VerifyPort says for IPv6; dev is the port's entry.
func (dt deviceTable) verifyAddr6(p Port, dev tcFbrDev) error {
	six, err := dt.hasIP6(p.Bridge)
	if err != nil {
		return err
	}
	if six != (dev.Flags&inet6.flag != 0) {
		return fmt.Errorf("port with ifindex %d: IPv6 in fbr_devs: %w", p.Ifindex, ErrDetached)
	}
	if !six {
		return nil
	}
	var owner uint32
	if ok, err := dt.hasAddr(dev, p.IP6); err != nil {
		return err
	} else if !ok && p.IP6.IsValid() {
		return fmt.Errorf("%s: not in fbr_dev6: %w", p.IP6, ErrDetached)
	}
	if !p.IP6.IsValid() {
		return nil
	}
	if err := dt.d.six.maps[tcMapFbrHosts].Lookup(p.IP6.AsSlice(), &owner); err != nil || owner != dev.Ifindex {
		return fmt.Errorf("%s: not in fbr_hosts: %w", p.IP6, ErrDetached)
	}
	return nil
}

// forgetIP6 takes IPv6 from a port or a bridge, whose entry is dev: first the flag, then the
// programs, then its addresses.
func (dt deviceTable) forgetIP6(dev tcFbrDev) error {
	if dev.Ifindex == 0 {
		return nil
	}
	ifindex := int(dev.Ifindex)
	if dev.Flags&inet6.flag != 0 {
		dev.Flags &^= inet6.flag
		if err := dt.putDevice(dev); err != nil {
			return err
		}
	}
	if err := dt.d.links.detachFamily(inet6, ifindex); err != nil || dt.d.six == nil {
		return err
	}
	at, v, err := dt.addr6(ifindex)
	if err != nil {
		return err
	}
	hosts := dt.d.six.maps[tcMapFbrHosts]
	var owner uint32
	if err := hosts.Lookup(&v.Ip, &owner); err == nil && owner == dev.Ifindex {
		if err := deleteKey(hosts, &v.Ip); err != nil {
			return fmt.Errorf("removing an address from fbr_hosts: %w", err)
		}
	}
	// Without an address no new session can begin; then the old ones end.
	if dev.Flags&tcFbrDevFlagsFBR_DEV_PORT != 0 {
		if _, err := dt.d.nat.endOf(dt.d.six, tcFbrOpFBR_OP_FLUSH, ifindex); err != nil {
			return err
		}
	}
	if v.Claims != 0 {
		_, err := deleteIf(dt.d.six.maps[tc6MapFbrClaims], func(_ *tc6FbrClaimKey, port *uint32) bool { return *port == dev.Ifindex })
		if err != nil {
			return fmt.Errorf("removing link-local addresses: %w", err)
		}
	}
	if err := dt.d.six.maps[tc6MapFbrDev6].Put(at, &tc6FbrDev6{}); err != nil {
		return fmt.Errorf("writing fbr_dev6: %w", err)
	}
	return nil
}

// lpmKey returns the key of an LPM trie: the number of bits of what, which is exact, and of
// the prefix, then both.
func lpmKey(p netip.Prefix, what ...int) []byte {
	k := binary.NativeEndian.AppendUint32(nil, uint32(32*len(what)+p.Bits()))
	for _, w := range what {
		k = binary.NativeEndian.AppendUint32(k, uint32(w))
	}
	return append(k, p.Masked().Addr().AsSlice()...)
}

// isLPMOf reports whether what comes before the prefix in a key of an LPM trie is this.
func isLPMOf(what int, key []byte) bool {
	return binary.NativeEndian.Uint32(key[4:]) == uint32(what)
}

// deleteEntries removes the entries of a map of which f is true and returns their number.
func deleteEntries(m *ebpf.Map, f func(key, value []byte) bool) (int, error) {
	var dead [][]byte
	err := eachEntry(m, 0, func(k, v []byte) error {
		if f(k, v) {
			dead = append(dead, slices.Clone(k))
		}
		return nil
	})
	for _, k := range dead {
		if err == nil {
			err = deleteKey(m, k)
		}
	}
	return len(dead), err
}
