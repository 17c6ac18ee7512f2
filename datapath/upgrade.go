package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// holdSeconds bounds how long new sessions are held while programs are swapped:
// a killed upgrade must not keep a host offline.
const holdSeconds = 5

// catchUps is the number of passes over what has changed in the old maps,
// before the programs are swapped.
const catchUps = 3

// sessionMaps depend on each other: slots, ports, and what each device holds.
// If the layout of one has changed, all are made anew and sessions are carried
// one by one (bpf/lib/carry.h).
var sessionMaps = []string{
	tcMapFbrFlow, tcMapFbrFlowOf, tcMapFbrNear, tcMapFbrSess, tcMapFbrFree, tcMapFbrClosed,
	tcMapFbrDoubted, tcMapFbrWaiting,
	tcMapFbrBind, tcMapFbrNport, tcMapFbrPeer, tcMapFbrPool,
	tcMapFbrQuota, tcMapFbrState, tcMapFbrFrag, tcMapFbrFragSlot, tcMapFbrHair,
}

// notCopied are hints, leases of what is not translated, room for work, and state of sockets, to which no other map refers.
var notCopied = []string{tcMapFbrHolder, tcMapFbrMeta, tcMapFbrPair, tcMapFbrWay, tcMapFbrTold, tc6MapFbrScratch}

// counted are the fields of fbr_state that count events. The others describe
// maps.
var counted = []string{"overloads", "remaps", "reclaimed", "dropped_early", "refused_full", "refused_quota", "tries"}

// Hooks are functions that an upgrade calls.
type Hooks struct {
	// Passed is called after each step, with its name.
	Passed func(step string) error
	// Settle writes again what the datapath's owner knows, to fill what only the
	// new layout has room for. Sessions and attachments are already in place.
	Settle func(*Datapath) error
}

// takeover replaces the programs of another build by this one's.
type takeover struct{ d *Datapath }

// Upgrade converts the datapath below dir, pinned by any build of an older or
// equal schema, to this build's. Packets of sessions are translated throughout.
// Upgrade reports whether there was anything to do.
//
// It keeps maps with the same layout, makes others beside the old ones and
// fills them from these. Then it swaps the programs on every attachment, and
// removes the old pins. An upgrade that is interrupted before the first swap
// has changed nothing; after that, the next one completes it. The error wraps
// ErrNotLoaded or ErrSchemaNewer.
func Upgrade(dir string, h Hooks) (bool, error) { return upgradeTo(dir, objectFile, h) }

// upgradeTo is Upgrade, to the programs of a source.
func upgradeTo(dir string, from source, h Hooks) (bool, error) {
	if h.Passed == nil {
		h.Passed = func(string) error { return nil }
	}
	if h.Settle == nil {
		h.Settle = func(*Datapath) error { return nil }
	}
	finished, err := finishUpgrade(dir, from, h)
	if err != nil {
		return false, fmt.Errorf("finishing an interrupted upgrade: %w", err)
	}
	// Whatever a killed upgrade left in these directories is not in use.
	if err := errors.Join(removeTree(building(dir)), os.RemoveAll(previous(dir))); err != nil {
		return false, fmt.Errorf("removing the old pins: %w", err)
	}
	u, err := prepareUpgrade(dir, from)
	if u == nil || err != nil {
		return finished, err
	}
	defer u.close()
	if err := u.run(h); err != nil {
		return false, err
	}
	return true, nil
}

// upgrade converts the pins in dir to those of this build.
type upgrade struct {
	dir   string
	parts []*part   // IPv4, and IPv6 if the old datapath has it
	next  *Datapath // uses the new maps; its links are those of dir
	carry carriers  // empty: the session maps are shared
}

// part is what an upgrade knows of one family.
type part struct {
	family
	old   map[string]*ebpf.Map
	specs map[string]*ebpf.MapSpec // of the new maps
	kept  map[string]*ebpf.Map     // those of the old that the new programs use
}

func (u *upgrade) close() {
	for _, p := range u.parts {
		closeMaps(p.old)
	}
	if u.next != nil {
		_ = u.next.Close()
	}
}

// open opens the old maps.
func (u *upgrade) open(meta tcFbrMeta, from source) error {
	four := inet4
	four.from = from
	for _, f := range []family{four, inet6} {
		old, err := openMaps(f.root(u.dir))
		if f.dir != "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		p := &part{family: f, old: old}
		u.parts = append(u.parts, p)
		spec, err := f.spec(meta)
		if err != nil {
			return err
		}
		p.specs = f.own(spec)
	}
	return nil
}

// prepareUpgrade makes and fills the new maps and loads the programs, below
// building(dir). It returns nil if dir is this build's already.
func prepareUpgrade(dir string, from source) (*upgrade, error) {
	raw, err := openMeta(dir)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	var meta tcFbrMeta
	if int(raw.ValueSize()) == binary.Size(meta) && raw.Lookup(uint32(0), &meta) == nil && meta.Build == buildID() {
		return nil, nil // the usual case: no need to read the object file
	}
	spec, err := from()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded programs: %w", err)
	}
	if meta, err = convertedMeta(raw, spec.Maps[tcMapFbrMeta]); err != nil {
		return nil, err
	}
	u := &upgrade{dir: dir}
	if err = u.open(meta, from); err == nil {
		err = u.prepare(meta)
	}
	if err != nil {
		u.close()
		return nil, errors.Join(err, removeTree(building(dir)))
	}
	return u, nil
}

func (u *upgrade) prepare(meta tcFbrMeta) error {
	carry, err := u.keep()
	if err != nil {
		return err
	}
	meta.Schema, meta.Build, meta.CarriedAt = tcFbrLayoutFBR_SCHEMA, buildID(), 0
	meta.Epoch++
	tmp := building(u.dir)
	if err := os.MkdirAll(filepath.Join(tmp, progsDir), 0o700); err != nil {
		return fmt.Errorf("creating the pin directory: %w", err)
	}
	for _, p := range u.parts {
		if p.dir == "" {
			u.next, err = build(tmp, meta, p.kept, loading(p.from, nil))
		} else {
			shared := u.next.families.shared()
			maps.Copy(shared, p.kept)
			u.next.six, err = u.next.families.build(p.root(tmp), shared)
		}
		if err != nil {
			return err
		}
	}
	if err = u.fill(carry); err == nil {
		err = u.next.families.loadDemanded()
	}
	u.next.dir = u.dir
	return err
}

// keep finds the old maps whose layout has not changed. It reports whether sessions are to
// be carried: the session maps of both families are kept together, since their sessions
// count in the same quotas.
func (u *upgrade) keep() (carry bool, err error) {
	for _, p := range u.parts {
		if p.kept, err = unchanged(p.old, p.specs); err != nil {
			return false, err
		}
		for _, name := range sessionMaps {
			carry = carry || p.old[tcMapFbrSess] != nil && p.specs[name] != nil && p.kept[name] == nil
		}
	}
	for _, p := range u.parts {
		maps.DeleteFunc(p.kept, func(name string, _ *ebpf.Map) bool { return carry && slices.Contains(sessionMaps, name) })
	}
	return carry, nil
}

// unchanged returns those of the old maps that the new programs can use as they are.
func unchanged(old map[string]*ebpf.Map, specs map[string]*ebpf.MapSpec) (map[string]*ebpf.Map, error) {
	out := map[string]*ebpf.Map{}
	for name, s := range specs {
		m := old[name]
		if !pinned(name) || name == tcMapFbrMeta || m == nil {
			continue
		}
		l, err := pinnedLayout(m, false)
		if err != nil {
			return nil, err
		}
		if l == specLayout(s, false) {
			out[name] = m
		}
	}
	return out, nil
}

// copyMaps copies the contents of the old maps that are not kept, as far as they have a
// meaning by themselves.
func (p *part) copyMaps(to map[string]*ebpf.Map) error {
	for name, m := range p.old {
		if to[name] == nil || p.kept[name] != nil || slices.Contains(notCopied, name) || slices.Contains(sessionMaps, name) {
			continue
		}
		if err := copyMap(to[name], m, p.specs[name]); err != nil {
			return err
		}
	}
	return nil
}

// fill copies the contents of the old maps into the new ones.
func (u *upgrade) fill(carry bool) error {
	d := u.next
	if carry {
		now, err := d.control.now()
		if err != nil {
			return err
		}
		d.meta.CarriedAt = now
	}
	if err := d.maps.FbrMeta.Put(uint32(0), &d.meta); err != nil {
		return fmt.Errorf("writing fbr_meta: %w", err)
	}
	for i, o := range d.families.loaded() {
		p := u.parts[i]
		if err := p.copyMaps(o.maps); err != nil {
			return err
		}
		if p.old[tcMapFbrSess] == nil { // a build that did not translate the family
			if err := d.ports.openAll(o); err != nil {
				return err
			}
		}
	}
	if err := d.ports.rangeFromMeta(); err != nil || !carry {
		return err
	}
	var err error
	if u.carry, err = u.carriers(d); err != nil {
		return err
	}
	for _, c := range u.carry {
		if err := errors.Join(c.counters(), c.notes(), c.ports()); err != nil {
			return err
		}
	}
	return nil
}

// carriers returns what brings over the sessions of the old maps to those of d.
func (u *upgrade) carriers(d *Datapath) (out carriers, err error) {
	for i, o := range d.families.loaded() {
		p := u.parts[i]
		if p.old[tcMapFbrSess] == nil {
			continue
		}
		c, err := newCarrier(d, o, p.old, p.specs)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// rangeFromMeta opens the NAT range for layouts before schema 4. Their range
// could not change and stood only in fbr_meta.
func (xp extPorts) rangeFromMeta() error {
	return xp.d.control.changeConf(func(c *tcFbrConf) error {
		if c.NatCount == 0 {
			c.NatFirst, c.NatCount = xp.d.meta.NatFirst, xp.d.meta.NatCount
		}
		return nil
	})
}

func (u *upgrade) run(h Hooks) error {
	err := h.Passed("upgrade-load")
	for range catchUps {
		if err == nil {
			err = u.carry.pass(true)
		}
	}
	if err == nil {
		err = h.Passed("upgrade-copy")
	}
	// A directory of links in the new place means that all programs are swapped.
	if err == nil {
		err = os.Remove(filepath.Join(building(u.dir), linksDir))
	}
	if err == nil && len(u.carry) > 0 {
		err = u.next.takeover.hold()
	}
	if err == nil {
		err = os.Rename(building(u.dir), following(u.dir))
	}
	if err != nil {
		return errors.Join(err, removeTree(building(u.dir)))
	}
	return finish(u.next, u.carry, h)
}

// finishUpgrade continues an upgrade that was interrupted after it began to
// swap programs. It reports whether there was one.
func finishUpgrade(dir string, from source, h Hooks) (bool, error) {
	next := following(dir)
	if _, err := os.Stat(next); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if _, err := os.Stat(filepath.Join(next, linksDir)); err == nil {
		return true, commit(dir, h.Passed)
	}
	if _, err := os.Stat(filepath.Join(dir, linksDir)); errors.Is(err, fs.ErrNotExist) {
		return false, removeTree(next) // left by an older build's Remove
	}
	d, err := Open(next)
	if errors.Is(err, ErrSchemaNewer) {
		return false, err
	}
	if err != nil || d.meta.Build != buildID() {
		// A third build made them in between. Its maps are the newer ones: they
		// replace the old ones, and are then upgraded.
		if d != nil {
			_ = d.Close()
		}
		return true, commit(dir, h.Passed)
	}
	defer d.Close()
	d.dir = dir
	u := upgrade{dir: dir}
	defer u.close()
	var c carriers
	if d.meta.CarriedAt != 0 {
		if err := u.open(d.meta, from); err != nil {
			return false, err
		}
		if c, err = u.carriers(d); err != nil {
			return false, err
		}
		if err := d.takeover.hold(); err != nil {
			return false, err
		}
	}
	return true, finish(d, c, h)
}

// finish swaps the programs and carries the sessions that began or changed
// until then. d has the new maps and the old links.
func finish(d *Datapath, c carriers, h Hooks) error {
	err := h.Passed("upgrade-publish")
	if err == nil {
		err = d.links.attachInput(true) // the programs of uplinks read what it notes
	}
	if err == nil {
		err = d.takeover.swapDevices(tcFbrDevFlagsFBR_DEV_UPLINK)
	}
	if err == nil {
		err = h.Passed("upgrade-uplinks")
	}
	if err == nil {
		err = d.takeover.swapDevices(tcFbrDevFlagsFBR_DEV_PORT | tcFbrDevFlagsFBR_DEV_FRAGS)
	}
	if err == nil {
		err = h.Passed("upgrade-ports")
	}
	if len(c) > 0 {
		if err == nil {
			err = d.takeover.hold() // the passes may have taken long
		}
		if err == nil {
			err = c.pass(false)
		}
		// Whatever went wrong, release new sessions.
		err = errors.Join(err, d.takeover.release())
	}
	if err == nil {
		err = h.Passed("upgrade-sessions")
	}
	if err == nil {
		err = errors.Join(d.sockets.updateHost(), d.links.attachGuard(true))
	}
	if err == nil {
		err = h.Passed("upgrade-guard")
	}
	if err == nil {
		err = h.Settle(d)
	}
	if err == nil {
		err = h.Passed("upgrade-settle")
	}
	if err != nil {
		return err
	}
	return commit(d.dir, h.Passed)
}

// commit puts the new pins in the place of the old ones. It continues where it
// was interrupted. It moves the links first: nobody takes pins without links
// for ones in use.
func commit(dir string, passed func(string) error) error {
	next := following(dir)
	if _, err := os.Stat(filepath.Join(next, linksDir)); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(filepath.Join(dir, linksDir), filepath.Join(next, linksDir)); err != nil {
			return fmt.Errorf("moving the links: %w", err)
		}
		if err := passed("upgrade-links"); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(previous(dir)); err != nil {
		return fmt.Errorf("removing the old pins: %w", err)
	}
	if err := os.Rename(dir, previous(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("putting the old pins aside: %w", err)
	}
	if err := passed("upgrade-aside"); err != nil {
		return err
	}
	if err := os.Rename(next, dir); err != nil {
		return fmt.Errorf("publishing the new pins: %w", err)
	}
	if err := passed("upgrade-commit"); err != nil {
		return err
	}
	if err := os.RemoveAll(previous(dir)); err != nil {
		return fmt.Errorf("removing the old pins: %w", err)
	}
	return nil
}

// swapDevices puts the current programs on the devices of a kind. It skips
// devices that are gone; their owner deals with them.
func (to takeover) swapDevices(kind tcFbrDevFlags) error {
	devs, err := to.d.devs.devices()
	if err != nil {
		return err
	}
	for _, dev := range devs {
		if dev.Flags&kind == 0 {
			continue
		}
		err := errors.Join(to.d.links.attachDevice(dev), to.d.links.updateXDP(int(dev.Ifindex)))
		if err != nil && !errors.Is(err, link.ErrNotSupported) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// hold holds new sessions back, for holdSeconds at most.
func (to takeover) hold() error {
	return to.d.control.changeConf(func(c *tcFbrConf) error {
		now, err := to.d.control.now()
		c.HoldUntil = now + holdSeconds*uint64(to.d.meta.Hz)
		return err
	})
}

func (to takeover) release() error {
	return to.d.control.changeConf(func(c *tcFbrConf) error {
		c.HoldUntil = 0
		return nil
	})
}

// openMaps opens all pinned maps of a datapath of any build.
func openMaps(dir string) (_ map[string]*ebpf.Map, err error) {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the pins: %w", err)
	}
	out := map[string]*ebpf.Map{}
	for _, pin := range pins {
		if pin.IsDir() {
			continue
		}
		m, err := openMap(dir, pin.Name())
		if err != nil {
			closeMaps(out)
			return nil, err
		}
		out[pin.Name()] = m
	}
	return out, nil
}

func closeMaps(ms map[string]*ebpf.Map) {
	for _, m := range ms {
		_ = m.Close()
	}
}

// convertedMeta reads fbr_meta of any layout.
func convertedMeta(m *ebpf.Map, spec *ebpf.MapSpec) (meta tcFbrMeta, err error) {
	_, old, err := mapTypes(m)
	if err != nil {
		return meta, err
	}
	c, err := converting(old, spec.Value)
	if err != nil {
		return meta, fmt.Errorf("fbr_meta: %w", err)
	}
	raw, err := m.LookupBytes(uint32(0))
	if err != nil {
		return meta, fmt.Errorf("reading fbr_meta: %w", err)
	}
	return as[tcFbrMeta](c.apply(raw)), nil
}

// as returns a map's value as a T.
func as[T any](b []byte) (v T) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), b)
	return v
}
