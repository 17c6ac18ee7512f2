package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// injected is a harness that runs programs without allocating anything.
type injected struct {
	*harness
	runner
}

func newInjected(t testing.TB, cfg Config, tune func(*tcVariableSpecs) error) *injected {
	t.Helper()
	return &injected{harness: newHarness(t, cfg, tune)}
}

// inject finds what bpf/tests/injected.bpf.c adds to the programs: they take the time
// and random numbers from the test, and sweep when it says so.
func (h *harness) inject(t testing.TB) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(mapPath(h.dir, clockName), nil)
	check(t, err)
	t.Cleanup(func() { _ = m.Close() })
	h.clock, err = m.Memory()
	check(t, err)
	sweep, err := ebpf.LoadPinnedProgram(progPath(h.dir, sweepName), nil)
	check(t, err)
	t.Cleanup(func() { _ = sweep.Close() })
	h.four.maps[clockName], h.four.progs[sweepName] = m, sweep
	h.set(t, startOfTime-1, 1)
}

// set sets the time in jiffies and the next random number.
func (h *harness) set(t testing.TB, now, random uint64) {
	t.Helper()
	v := [2]uint64{now, random}
	if _, err := h.clock.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&v)), 16), 0); err != nil {
		t.Fatal(err)
	}
}

// age lets time pass, at least one jiffy.
func (h *harness) age(t testing.TB, d time.Duration) {
	t.Helper()
	n := max(1, uint64(jiffies(d, h.meta.Hz)))
	if h.clock == nil {
		time.Sleep(duration(n+1, h.meta.Hz))
		return
	}
	now, err := h.Datapath.control.now()
	check(t, err)
	if _, err := h.clock.WriteAt(binary.NativeEndian.AppendUint64(nil, now+n), 0); err != nil {
		t.Fatal(err)
	}
}

// loads are objects of the usual harness that no test uses at the moment. Loading
// objects takes longer than the rest of most tests.
var loads struct {
	sync.Mutex
	idle []*loaded
}

// usual is the configuration whose objects are reused, with any NAT range.
var usual = Config{FlowsMax: 64}

type loaded struct {
	mark uint32
	coll *ebpf.Collection
	six  *ebpf.Collection // IPv6's, once a test has asked for them
}

// injected6 is IPv6 with the test's clock, and with the IPv4 programs' clock and sweep.
func injected6() family {
	f := inet6
	f.from = loadInjected6
	f.progs = append(slices.Clone(f.progs), sweepName)
	return f
}

const sweepName, clockName = "fbr_injected_sweep", "fbr_injected"

// load6 loads the IPv6 programs on the clock of the IPv4 programs.
func (h *harness) load6(tune func(*tcVariableSpecs) error) loader {
	load := injected6().loading(tuning(tune))
	return func(meta tcFbrMeta, shared map[string]*ebpf.Map) (*ebpf.Collection, error) {
		shared = maps.Clone(shared)
		shared[clockName] = h.four.maps[clockName]
		if h.loaded == nil {
			return load(meta, shared)
		}
		if h.loaded.six == nil {
			var err error
			if h.loaded.six, err = load(meta, shared); err != nil {
				return nil, err
			}
		}
		return again(h.loaded.six)
	}
}

// borrow lends the objects of a usual harness, with empty maps, until the test ends.
// They hold the cookie of another namespace, which only the hooks for sockets of the
// host compare.
func borrow(t testing.TB) *loaded {
	t.Helper()
	loads.Lock()
	var l *loaded
	if n := len(loads.idle); n > 0 {
		l, loads.idle = loads.idle[n-1], loads.idle[:n-1]
	}
	loads.Unlock()
	if l == nil {
		meta := metaOf(t, usual)
		coll, err := loading(loadInjected, nil)(meta, nil)
		failVerbosely(t, err)
		l = &loaded{mark: meta.Mark, coll: coll}
	}
	t.Cleanup(func() {
		for _, m := range l.maps() {
			check(t, clearMap(m))
		}
		loads.Lock()
		defer loads.Unlock()
		loads.idle = append(loads.idle, l)
	})
	return l
}

// maps are all that a test may have written to, by family and name.
func (l *loaded) maps() map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	for family, coll := range map[string]*ebpf.Collection{"": l.coll, "ip6/": l.six} {
		if coll == nil {
			continue
		}
		for name, m := range coll.Maps {
			if pinned(name) {
				out[family+name] = m
			}
		}
	}
	return out
}

// again is a loader that returns the same objects.
func (l *loaded) again(tcFbrMeta, map[string]*ebpf.Map) (*ebpf.Collection, error) {
	return again(l.coll)
}

func again(coll *ebpf.Collection) (*ebpf.Collection, error) {
	out := &ebpf.Collection{Maps: map[string]*ebpf.Map{}, Programs: map[string]*ebpf.Program{}}
	var err error
	for name, m := range coll.Maps {
		if out.Maps[name], err = m.Clone(); err != nil {
			return nil, err
		}
	}
	for name, p := range coll.Programs {
		if out.Programs[name], err = p.Clone(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// clearMap makes a map as it was when it was created.
func clearMap(m *ebpf.Map) error {
	switch m.Type() {
	case ebpf.Array, ebpf.PerCPUArray:
		return eachEntry(m, 0, func(k, v []byte) error {
			if allZero(v) {
				return nil
			}
			var zero any = make([]byte, m.ValueSize())
			if m.Type() == ebpf.PerCPUArray {
				zero = slices.Repeat([][]byte{make([]byte, m.ValueSize())}, ebpf.MustPossibleCPU())
			}
			return m.Put(k, zero)
		})
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		var keys [][]byte
		if err := eachEntry(m, 0, func(k, _ []byte) error { keys = append(keys, slices.Clone(k)); return nil }); err != nil {
			return err
		}
		for _, k := range keys {
			if err := m.Delete(k); err != nil {
				return err
			}
		}
		return nil
	case ebpf.Queue:
		for v := make([]byte, m.ValueSize()); ; {
			if err := m.LookupAndDelete(nil, v); errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil
			} else if err != nil {
				return err
			}
		}
	case ebpf.SkStorage:
		return nil // its entries went with the sockets
	}
	return fmt.Errorf("no test knows how to clear a %s", m.Type())
}

// TestObjectsAreUsedAgainAsNew: the next test finds nothing that one test has left.
func TestObjectsAreUsedAgainAsNew(t *testing.T) {
	contents := func(l *loaded) map[string]int {
		n := map[string]int{}
		for name, m := range l.maps() {
			switch {
			case m.Type() == ebpf.SkStorage:
			case m.Type() == ebpf.Queue:
				for v := make([]byte, m.ValueSize()); m.LookupAndDelete(nil, v) == nil; {
					n[name]++
				}
			default:
				array := m.Type() == ebpf.Array || m.Type() == ebpf.PerCPUArray
				check(t, eachEntry(m, 0, func(_, v []byte) error {
					if !array || !allZero(v) {
						n[name]++
					}
					return nil
				}))
			}
		}
		return n
	}
	var l *loaded
	t.Run("dirty", func(t *testing.T) {
		h := newHarness(t, usual, nil)
		l = h.loaded
		h.populate(t)
		if n := contents(l); len(n) < 15 {
			t.Errorf("only %v are in use", n)
		}
	})
	if n := contents(l); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

// lcg is fbr_random of bpf/tests/injected.bpf.c.
type lcg uint64

func (l *lcg) next() uint32 {
	*l = *l*6364136223846793005 + 1442695040888963407
	return uint32(*l >> 32)
}

// runner runs programs through BPF_PROG_TEST_RUN with the same buffers each time. A
// million runs must not make a million allocations.
type runner struct {
	attr          runAttr
	in, out       skb
	xdpIn, xdpOut xdpContext
	frame         [2048]byte
}

// runAttr is the part of union bpf_attr for BPF_PROG_TEST_RUN.
type runAttr struct {
	prog, retval, sizeIn, sizeOut uint32
	dataIn, dataOut               uint64
	repeat, duration              uint32
	ctxSizeIn, ctxSizeOut         uint32
	ctxIn, ctxOut                 uint64
	flags, cpu, batchSize, _      uint32
}

// exec runs p at device ifindex, on a frame that came in by iif. The frame of the
// result is valid until the next run.
func (r *runner) exec(p *ebpf.Program, frame []byte, ifindex, iif int, mark uint32) (result, error) {
	r.in = skb{Ifindex: uint32(ifindex), IngressIfindex: uint32(iif), Mark: mark}
	r.attr = runAttr{
		ctxSizeIn: uint32(unsafe.Sizeof(r.in)), ctxSizeOut: uint32(unsafe.Sizeof(r.out)),
		ctxIn: addressOf(&r.in), ctxOut: addressOf(&r.out),
	}
	got, err := r.call(p, frame)
	got.mark = r.out.Mark
	return got, err
}

// execXDP runs an XDP program on a frame that comes in at ifindex. Its result is valid
// as long as that of exec.
func (r *runner) execXDP(p *ebpf.Program, frame []byte, ifindex int) (result, error) {
	r.xdpIn = xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex)}
	r.attr = runAttr{
		ctxSizeIn: uint32(unsafe.Sizeof(r.xdpIn)), ctxSizeOut: uint32(unsafe.Sizeof(r.xdpOut)),
		ctxIn: addressOf(&r.xdpIn), ctxOut: addressOf(&r.xdpOut),
	}
	return r.call(p, frame)
}

// execInput runs fbr_input on an IPv4 packet.
func (r *runner) execInput(p *ebpf.Program, packet []byte) error {
	r.attr = runAttr{}
	got, err := r.call(p, packet)
	if err == nil && got.verdict != accept {
		err = fmt.Errorf("verdict %d", got.verdict)
	}
	return err
}

// call makes the system call. The caller has put the context in r.attr.
func (r *runner) call(p *ebpf.Program, frame []byte) (result, error) {
	r.attr.prog = uint32(p.FD())
	r.attr.sizeIn, r.attr.sizeOut = uint32(len(frame)), uint32(len(r.frame))
	r.attr.dataIn, r.attr.dataOut = addressOf(&frame[0]), addressOf(&r.frame[0])
	const progTestRun = 10 // BPF_PROG_TEST_RUN
	_, _, errno := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(&r.attr)), unsafe.Sizeof(r.attr))
	runtime.KeepAlive(frame)
	runtime.KeepAlive(p)
	if errno != 0 {
		return result{}, errno
	}
	return result{verdict: int32(r.attr.retval), frame: r.frame[:r.attr.sizeOut]}, nil
}

func addressOf[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }
