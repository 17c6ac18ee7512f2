package datapath

import (
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// injected is a harness whose programs take the time and their chance from the
// test (bpf/tests/injected.bpf.c), and run without allocating anything.
type injected struct {
	*harness
	clock *ebpf.Memory
	sweep *ebpf.Program
	runner
}

func newInjected(t testing.TB, cfg Config, tune func(*tcVariableSpecs) error) *injected {
	t.Helper()
	in := &injected{harness: newHarnessFrom(t, cfg, tune, loadInjected)}
	m, err := ebpf.LoadPinnedMap(mapPath(in.dir, "fbr_injected"), nil)
	check(t, err)
	t.Cleanup(func() { _ = m.Close() })
	in.clock, err = m.Memory()
	check(t, err)
	in.sweep, err = ebpf.LoadPinnedProgram(progPath(in.dir, "fbr_injected_sweep"), nil)
	check(t, err)
	t.Cleanup(func() { _ = in.sweep.Close() })
	return in
}

// set says what time it is (jiffies) and which chance comes next.
func (in *injected) set(t testing.TB, now, random uint64) {
	t.Helper()
	v := [2]uint64{now, random}
	if _, err := in.clock.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&v)), 16), 0); err != nil {
		t.Fatal(err)
	}
}

// lcg is fbr_random of bpf/tests/injected.bpf.c.
type lcg uint64

func (l *lcg) next() uint32 {
	*l = *l*6364136223846793005 + 1442695040888963407
	return uint32(*l >> 32)
}

// runner runs programs through BPF_PROG_TEST_RUN with the same buffers each
// time: a million runs must not be a million allocations.
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

// exec runs p on a frame that came in by iif at device ifindex; the frame of the
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

// execXDP runs an XDP program on a frame that comes in at ifindex; likewise.
func (r *runner) execXDP(p *ebpf.Program, frame []byte, ifindex int) (result, error) {
	r.xdpIn = xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex)}
	r.attr = runAttr{
		ctxSizeIn: uint32(unsafe.Sizeof(r.xdpIn)), ctxSizeOut: uint32(unsafe.Sizeof(r.xdpOut)),
		ctxIn: addressOf(&r.xdpIn), ctxOut: addressOf(&r.xdpOut),
	}
	return r.call(p, frame)
}

// execInput runs fbr_input on an IPv4 packet; likewise.
func (r *runner) execInput(p *ebpf.Program, packet []byte) error {
	r.attr = runAttr{}
	got, err := r.call(p, packet)
	if err == nil && got.verdict != accept {
		err = fmt.Errorf("verdict %d", got.verdict)
	}
	return err
}

// call makes the system call; the context stands in r.attr.
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
