package datapath

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

const (
	// metaMagic marks fbr_meta ("fbr0").
	metaMagic = 0x66627230
	// schema orders the layouts of the pinned maps (layout.go).
	schema = uint32(tcFbrLayoutFBR_SCHEMA)

	// DefaultFlowsMax sessions take about 75 MB of kernel memory. FlowsMaxLimit
	// is the most that the slot numbers of the maps can count.
	DefaultFlowsMax = 131072
	// SessionBytes is the kernel memory of a session, RestBytes that of
	// everything else on two CPUs. A test compares them with the kernel's
	// figures.
	SessionBytes = 572
	RestBytes    = 27 << 20
	// SessionBytes6 and RestBytes6 are the same for IPv6, while a network has it.
	SessionBytes6 = 800
	RestBytes6    = 31 << 20
	FlowsMaxLimit = uint32(tcFbrLayoutFBR_FLOWS_LIMIT)
	// DefaultNATFirst and DefaultNATLast avoid Linux's ephemeral ports
	// (32768-60999) and Kubernetes' NodePorts (30000-32767).
	DefaultNATFirst = 10000
	DefaultNATLast  = 29999
)

// Datapath is the open datapath of one host network namespace. Its methods are
// not safe for concurrent use. The caller's lock serialises processes.
type Datapath struct {
	dir   string
	meta  tcFbrMeta
	maps  tcMaps
	progs tcPrograms
	four  *object // the same by name
	six   *object // nil: no network has IPv6

	// The parts, each with the methods of one topic.
	links        links
	devs         deviceTable
	allowed      allowedTable
	ports        extPorts
	publications publications
	sockets      hostSockets
	nat          natTable
	takeover     takeover
	control      control
	reassembly   reassembly
	content      content
	families     families
}

func assemble(dir string, meta tcFbrMeta) *Datapath {
	d := &Datapath{dir: dir, meta: meta}
	d.links, d.devs, d.allowed, d.ports = links{d}, deviceTable{d}, allowedTable{d}, extPorts{d}
	d.publications, d.sockets, d.nat = publications{d}, hostSockets{d}, natTable{d}
	d.takeover, d.control, d.reassembly, d.content = takeover{d}, control{d}, reassembly{d}, content{d}
	d.families = families{d, inet6.loading(nil)}
	return d
}

// content makes a Datapath of the objects that were loaded.
type content struct{ d *Datapath }

// Create loads the programs, pins everything below dir, and attaches the
// netfilter links in the current network namespace. dir's parent must lie on
// bpffs. The error wraps ErrExists or ErrNotSupported.
func Create(dir string, cfg Config) (*Datapath, error) {
	meta, err := newMeta(cfg)
	if err != nil {
		return nil, err
	}
	return create(dir, meta, loading(objectFile, nil))
}

// objectFile is the object file of the IPv4 programs.
var objectFile = once(loadTc)

// once reads an object file once, which takes as long as to load a small program. The
// caller gets a copy that it may change.
func once(load source) source {
	parsed := sync.OnceValues(load)
	return func() (*ebpf.CollectionSpec, error) {
		spec, err := parsed()
		if err != nil {
			return nil, err
		}
		return spec.Copy(), nil
	}
}

// source returns the object file: objectFile, or a test's build of the programs.
type source func() (*ebpf.CollectionSpec, error)

// loader makes the maps and loads the programs. Maps of an existing datapath are shared.
type loader func(meta tcFbrMeta, shared map[string]*ebpf.Map) (*ebpf.Collection, error)

func create(dir string, meta tcFbrMeta, load loader) (*Datapath, error) {
	if _, err := os.Stat(dir); err == nil {
		return nil, fmt.Errorf("%s: %w", dir, ErrExists)
	}
	tmp := building(dir)
	if err := removeTree(tmp); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(tmp, progsDir), 0o700); err != nil {
		return nil, fmt.Errorf("creating the pin directory: %w", err)
	}
	d, err := build(tmp, meta, nil, load)
	if err == nil {
		err = d.content.fill()
	}
	if err != nil {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
		return nil, errors.Join(err, removeTree(tmp))
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("publishing the pins: %w", err), d.Close(), removeTree(tmp))
	}
	d.dir = dir
	if err := d.AttachGuard(); err != nil {
		return nil, errors.Join(err, d.Close(), Remove(dir))
	}
	return d, nil
}

// build loads maps and programs and pins them below dir. shared are maps of
// another datapath that this one uses as well.
func build(dir string, meta tcFbrMeta, shared map[string]*ebpf.Map, load loader) (*Datapath, error) {
	coll, err := load(meta, shared)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	d := assemble(dir, meta)
	for name, m := range coll.Maps {
		if !pinned(name) {
			continue
		}
		if err := m.Pin(mapPath(dir, name)); err != nil {
			return nil, fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	for name, p := range coll.Programs {
		if err := p.Pin(progPath(dir, name)); err != nil {
			return nil, fmt.Errorf("pinning program %s: %w", name, err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, linksDir), 0o700); err != nil {
		return nil, fmt.Errorf("creating the links directory: %w", err)
	}
	if err := d.content.assign(coll); err != nil {
		return nil, err
	}
	return d, nil
}

// assign takes over the objects of coll.
func (ct content) assign(coll *ebpf.Collection) error {
	ct.d.four = newObject(inet4, coll, nil)
	if err := errors.Join(byName(&ct.d.maps, ct.d.four.maps), byName(&ct.d.progs, ct.d.four.progs)); err != nil {
		return errors.Join(err, ct.d.Close())
	}
	return nil
}

// byName sets the fields of to, a struct that was generated, to what has their names. Only
// a program on demand may be missing.
func byName[T any](to any, from map[string]*T) error {
	fields := reflect.ValueOf(to).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Tag.Get("ebpf")
		if o := from[name]; o != nil {
			fields.Field(i).Set(reflect.ValueOf(o))
		} else if !slices.Contains(onDemand, name) {
			return fmt.Errorf("%s is not pinned", name)
		}
	}
	return nil
}

// loading loads the IPv4 programs of a source; tune changes their variables in a test.
func loading(from source, tune func(*tcVariableSpecs) error) loader {
	f := inet4
	f.from = from
	return f.loading(tuning(tune))
}

// tuning changes the variables of the programs of either family as tune does, which may be
// nil.
func tuning(tune func(*tcVariableSpecs) error) func(*ebpf.CollectionSpec) error {
	if tune == nil {
		return nil
	}
	return func(spec *ebpf.CollectionSpec) error {
		var vars tcVariableSpecs
		return errors.Join(spec.Assign(&vars), tune(&vars))
	}
}

// loading loads the object of a family, after change has changed it. change may be nil.
func (f family) loading(change func(*ebpf.CollectionSpec) error) loader {
	return func(meta tcFbrMeta, shared map[string]*ebpf.Map) (*ebpf.Collection, error) {
		spec, err := f.spec(meta)
		if err != nil {
			return nil, err
		}
		own := f.own(spec)
		maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool {
			return pinned(name) && own[name] == nil && shared[name] == nil
		})
		if err := setVariables(spec, meta); err != nil {
			return nil, fmt.Errorf("setting the variables: %w", err)
		}
		if change != nil {
			if err := change(spec); err != nil {
				return nil, err
			}
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			MapReplacements: shared,
			Cache:           kernelTypes,
			Programs:        ebpf.ProgramOptions{ExtraRelocationTargets: moduleTypes()},
		})
		if errors.Is(err, ebpf.ErrNotSupported) {
			return nil, fmt.Errorf("loading the programs: %w: %w", ErrNotSupported, err)
		}
		if err != nil {
			return nil, fmt.Errorf("loading the programs: %w", err)
		}
		return coll, nil
	}
}

// kernelTypes holds the types of the kernel and of its modules. To decode them takes
// longer than all else that a load does in user space.
var kernelTypes = btf.NewCache()

// moduleTypes returns the types of those kernel modules that the programs look
// into and that are loaded. If they are built in, the kernel has the types.
func moduleTypes() (specs []*btf.Spec) {
	for _, module := range []string{"nf_conntrack", "bridge"} {
		if s, err := kernelTypes.Module(module); err == nil {
			specs = append(specs, s)
		}
	}
	return specs
}

// spec returns the object file of a family with its maps as large as meta says.
func (f family) spec(meta tcFbrMeta) (*ebpf.CollectionSpec, error) {
	spec, err := f.from()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded programs for %s: %w", f.name, err)
	}
	resize(spec, meta)
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool {
		return !f.loads(name)
	})
	for name, p := range spec.Programs {
		p.Name = f.kernelName(name)
	}
	return spec, nil
}

// resize sets the max_entries that bpf/lib leaves to Go.
func resize(spec *ebpf.CollectionSpec, meta tcFbrMeta) {
	for name, n := range sizes(meta) {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = n
		}
	}
}

// sizes returns the max_entries that bpf/lib leaves to Go.
func sizes(meta tcFbrMeta) map[string]uint32 {
	return map[string]uint32{
		tcMapFbrFlow:    2 * meta.FlowsMax,
		tcMapFbrFlowOf:  2 * meta.FlowsMax,
		tcMapFbrNear:    nearSize(meta),
		tcMapFbrSess:    meta.FlowsMax,
		tcMapFbrFree:    meta.FlowsMax,
		tcMapFbrClosed:  meta.FlowsMax,
		tcMapFbrDoubted: meta.FlowsMax,
		tcMapFbrWaiting: meta.FlowsMax,
		tcMapFbrPeer:    meta.FlowsMax,
		tcMapFbrBind:    min(meta.FlowsMax, classes<<16),
	}
}

// nearSize returns the number of entries of fbr_near.
func nearSize(meta tcFbrMeta) uint32 { return 2 << bits.Len32(meta.FlowsMax-1) }

func setVariables(spec *ebpf.CollectionSpec, meta tcFbrMeta) error {
	fib, err := fibSource()
	if err != nil {
		return err
	}
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		tcVarCfgNetns:    netns,
		tcVarCfgHz:       meta.Hz,
		tcVarCfgMark:     meta.Mark,
		tcVarCfgFlowsMax: meta.FlowsMax,
		tcVarCfgNearMask: nearSize(meta) - 1,
		// One container must leave a fifth of the sessions to the others.
		tcVarCfgFlowsQuota: meta.FlowsMax - meta.FlowsMax/5,
		tcVarCfgHalfQuota:  max(1, (meta.FlowsMax-meta.FlowsMax/5)/4),
		tcVarCfgWaitingMax: max(1, meta.FlowsMax/8),
		tcVarCfgFibSrc:     fib,
		tcVarCfgConntrack:  probeConntrack() == nil,
		tcVarCfgNat:        probeConntrack() == nil && probeNAT() == nil,
		tcVarCfgEpoch:      meta.Epoch,
	} {
		v := spec.Variables[name]
		if v == nil {
			return fmt.Errorf("the programs have no variable %s", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func newMeta(cfg Config) (tcFbrMeta, error) {
	if cfg.FlowsMax == 0 {
		cfg.FlowsMax = DefaultFlowsMax
	}
	if cfg.NATFirst == 0 && cfg.NATLast == 0 {
		cfg.NATFirst, cfg.NATLast = DefaultNATFirst, DefaultNATLast
	}
	if cfg.FlowsMax > FlowsMaxLimit {
		return tcFbrMeta{}, fmt.Errorf("%d flows are more than the %d possible", cfg.FlowsMax, FlowsMaxLimit)
	}
	if cfg.NATFirst == 0 || cfg.NATLast < cfg.NATFirst {
		return tcFbrMeta{}, fmt.Errorf("NAT range %d-%d is empty", cfg.NATFirst, cfg.NATLast)
	}
	hz, err := kernelHZ()
	if err != nil {
		return tcFbrMeta{}, err
	}
	var mark [4]byte
	if _, err := rand.Read(mark[:]); err != nil {
		return tcFbrMeta{}, err
	}
	return tcFbrMeta{
		Magic:    metaMagic,
		Schema:   tcFbrLayoutFBR_SCHEMA,
		FlowsMax: cfg.FlowsMax,
		NatFirst: uint32(cfg.NATFirst),
		NatCount: uint32(cfg.NATLast-cfg.NATFirst) + 1,
		Mark:     binary.NativeEndian.Uint32(mark[:]) | 1, // 0 means "no mark"
		Hz:       hz,
		Build:    buildID(),
	}, nil
}

// buildID identifies the embedded programs. Every command computes it, so that it is
// a checksum for which processors have an instruction: it tells builds apart, and
// nobody gains from two that are alike.
func buildID() uint64 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(_TcBytes, table), table, _Tc6Bytes)
	return uint64(len(_TcBytes)+len(_Tc6Bytes))<<32 | uint64(sum)
}

// fill writes the initial contents of new maps.
func (ct content) fill() error {
	if err := ct.d.maps.FbrMeta.Put(uint32(0), &ct.d.meta); err != nil {
		return fmt.Errorf("writing fbr_meta: %w", err)
	}
	conf := tcFbrConf{Lease: jiffies(DefaultLease, ct.d.meta.Hz), NatFirst: ct.d.meta.NatFirst, NatCount: ct.d.meta.NatCount}
	if err := ct.d.maps.FbrConf.Put(uint32(0), &conf); err != nil {
		return fmt.Errorf("writing fbr_conf: %w", err)
	}
	return ct.d.ports.openAll(ct.d.four)
}

// Open opens what Create pinned. The error wraps ErrNotLoaded, ErrSchemaNewer,
// or ErrSchemaOlder if an Upgrade is needed. Programs of another build with the
// same map layouts need no Upgrade.
func Open(dir string) (*Datapath, error) {
	if _, err := os.Stat(following(dir)); err == nil {
		return nil, fmt.Errorf("%s: an upgrade was interrupted: %w", dir, ErrSchemaOlder)
	}
	d := assemble(dir, tcFbrMeta{})
	if err := d.content.readMeta(); err != nil {
		return nil, err
	}
	coll := &ebpf.Collection{Maps: map[string]*ebpf.Map{}, Programs: map[string]*ebpf.Program{}}
	defer coll.Close()
	open := opener(openPins)
	if d.meta.Build != buildID() {
		open = openCompatible
	}
	if err := open(coll, inet4, d.meta, dir); err != nil {
		return nil, err
	}
	if err := d.content.assign(coll); err != nil {
		return nil, err
	}
	if err := d.families.open(open); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// opener opens the pins of a family in a directory.
type opener func(coll *ebpf.Collection, f family, meta tcFbrMeta, dir string) error

// openPins opens pins that this build made, unchecked. Reading the embedded
// object for a comparison would take longer than the rest of most commands.
func openPins(coll *ebpf.Collection, _ family, _ tcFbrMeta, dir string) error {
	for _, kind := range []struct {
		dir  string
		open func(name string) error
	}{
		{dir, func(name string) (err error) { coll.Maps[name], err = openMap(dir, name); return err }},
		{filepath.Join(dir, progsDir), func(name string) (err error) { coll.Programs[name], err = openProgram(dir, name); return err }},
	} {
		pins, err := os.ReadDir(kind.dir)
		if err != nil {
			return fmt.Errorf("reading the pins: %w", err)
		}
		for _, pin := range pins {
			if pin.IsDir() {
				continue
			}
			if err := kind.open(pin.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// openCompatible opens those pins of another build that this one knows. The
// error wraps ErrSchemaOlder if their layouts differ.
func openCompatible(coll *ebpf.Collection, f family, meta tcFbrMeta, dir string) error {
	spec, err := f.spec(meta)
	if err != nil {
		return err
	}
	for name, ms := range f.own(spec) {
		if !pinned(name) {
			continue
		}
		m, err := openMap(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: there is no map %s", ErrSchemaOlder, name)
		}
		if err != nil {
			return err
		}
		coll.Maps[name] = m
		l, err := pinnedLayout(m, false)
		if err != nil {
			return err
		}
		if l != specLayout(ms, false) {
			return fmt.Errorf("%w: map %s has another layout", ErrSchemaOlder, name)
		}
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(spec.Programs)), onDemand) {
		p, err := openProgram(dir, name)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(onDemand, name) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: there is no program %s", ErrSchemaOlder, name)
		}
		if err != nil {
			return err
		}
		coll.Programs[name] = p
	}
	return nil
}

func openMap(dir, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(mapPath(dir, name), nil)
	if err != nil {
		return nil, fmt.Errorf("opening map %s: %w", name, err)
	}
	return m, nil
}

func openProgram(dir, name string) (*ebpf.Program, error) {
	fd, err := openPin(progPath(dir, name))
	if err != nil {
		return nil, fmt.Errorf("opening program %s: %w", name, err)
	}
	p, err := ebpf.NewProgramFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("opening program %s: %w", name, err)
	}
	return p, nil
}

// openPin is BPF_OBJ_GET of bpf(2). The library's function for a pinned program
// first tests whether the kernel names programs: it makes a map, and before that
// reads every mount of the machine. `ip netns add` makes a mount for each
// namespace, and with a thousand of them opening the programs takes 9 ms instead
// of 0.6.
func openPin(path string) (fd int, err error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	attr := struct {
		path      uint64
		fd, flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(name)))}
	n, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(name)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// openMeta opens fbr_meta of any build, unless the build is newer.
func openMeta(dir string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(mapPath(dir, tcMapFbrMeta), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotLoaded)
	}
	if err != nil {
		return nil, fmt.Errorf("opening map fbr_meta: %w", err)
	}
	if err := checkMeta(m, dir); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// checkMeta checks the first two words, which are the same in every layout.
func checkMeta(m *ebpf.Map, dir string) error {
	raw, err := m.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("reading fbr_meta: %w", err)
	}
	if len(raw) < 8 || binary.NativeEndian.Uint32(raw) != metaMagic {
		return fmt.Errorf("%s is not a datapath of fastbr", dir)
	}
	if s := binary.NativeEndian.Uint32(raw[4:]); s > schema {
		return fmt.Errorf("%w (schema %d, this one knows %d)", ErrSchemaNewer, s, schema)
	}
	return nil
}

func (ct content) readMeta() error {
	m, err := openMeta(ct.d.dir)
	if err != nil {
		return err
	}
	defer m.Close()
	if int(m.ValueSize()) != binary.Size(ct.d.meta) {
		return fmt.Errorf("%s: %w: map fbr_meta has another layout", ct.d.dir, ErrSchemaOlder)
	}
	if err := m.Lookup(uint32(0), &ct.d.meta); err != nil {
		return fmt.Errorf("reading fbr_meta: %w", err)
	}
	return nil
}

// Close releases the descriptors. Everything stays attached and pinned.
func (d *Datapath) Close() error {
	err := d.four.close()
	if d.six != nil {
		err = errors.Join(err, d.six.close())
	}
	return err
}

// Config returns the configuration of the datapath.
func (d *Datapath) Config() (Config, error) {
	last := d.meta.NatFirst + d.meta.NatCount - 1
	if last > math.MaxUint16 {
		return Config{}, fmt.Errorf("fbr_meta holds an impossible NAT range %d-%d", d.meta.NatFirst, last)
	}
	return Config{FlowsMax: d.meta.FlowsMax, NATFirst: uint16(d.meta.NatFirst), NATLast: uint16(last)}, nil
}

// Remove detaches and unpins everything below dir. It succeeds when nothing is
// there, and also removes what a killed Create, Upgrade or Remove left.
func Remove(dir string) error {
	return errors.Join(removeTree(building(dir)), removeTree(following(dir)), removeTree(dir), removeTree(previous(dir)))
}

// removeTree removes the links first, so that no program runs with half its
// maps.
func removeTree(root string) error {
	links, err := os.ReadDir(filepath.Join(root, linksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the links: %w", err)
	}
	for _, e := range links {
		if err := detach(linkPath(root, e.Name())); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("unpinning: %w", err)
	}
	return nil
}
