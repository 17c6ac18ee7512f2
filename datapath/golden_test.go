package datapath

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

var update = flag.Bool("update", false, "write testdata/golden.json instead of comparing with it")

// golden is what the programs cost. The record shows in review what a change has made
// more expensive. Sizes may grow by the slack; calls on a hit path are exact.
type golden struct {
	// Kernel that the sizes were measured on, as "6.18". Another kernel's verifier and
	// JIT give other sizes.
	Kernel   string             `json:"kernel"`
	Programs map[string]program `json:"programs"`
	// HitPaths are the fast paths and the renewal of a lease. With very many flows,
	// every few packets renew one.
	HitPaths map[string]callPath `json:"hit_paths"`
}

type program struct {
	Verified uint32 `json:"verified_instructions"` // instructions that the verifier has processed
	Stack    int    `json:"stack_bytes"`           // of all frames together
	JITed    uint32 `json:"jited_bytes"`
}

// callPath counts the calls that one packet makes, in the order of their names. The JIT
// inlines array lookups and jiffies64, but not hash lookups.
type callPath struct {
	Calls map[string]int `json:"calls"`
	// NS of a run when the record was written, including the cost of the clock itself.
	// It is never compared.
	NS int `json:"ns_informative"`
}

const (
	goldenFile = "testdata/golden.json"
	slack      = 20 // percent
)

func TestGoldenRecord(t *testing.T) {
	h := newReal(t, usual, nil).withXDP(t)
	got := golden{Kernel: kernelSeries(t), Programs: map[string]program{}, HitPaths: map[string]callPath{}}
	got.add(t, h, "")
	got.add(t, withIP6(t, h).harness, ", IPv6")

	if *update {
		text, err := json.MarshalIndent(got, "", "  ")
		check(t, err)
		check(t, os.MkdirAll("testdata", 0o755))
		check(t, os.WriteFile(goldenFile, append(text, '\n'), 0o644))
		return
	}
	text, err := os.ReadFile(goldenFile)
	check(t, err)
	var want golden
	check(t, json.Unmarshal(text, &want))
	for _, complaint := range got.beyond(want) {
		t.Errorf("%s; if that is meant: go test ./datapath -run TestGoldenRecord -update", complaint)
	}
}

// add measures the programs of a harness's family. Their names get a suffix.
func (got golden) add(t *testing.T, h *harness, suffix string) {
	t.Helper()
	loaded := h.loadAgain(t, func(*ebpf.CollectionSpec) {}).Programs
	for name, p := range loaded {
		got.Programs[name+suffix] = measure(t, p)
	}
	for name, path := range h.hitPaths(t, loaded) {
		got.HitPaths[name+suffix] = path
	}
}

// beyond says where got costs more than the record allows, or is not in the record.
func (got golden) beyond(want golden) (complaints []string) {
	complain := func(format string, args ...any) { complaints = append(complaints, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(got.Programs)) {
		if got.Kernel != want.Kernel {
			break
		}
		g, w := got.Programs[name], want.Programs[name]
		for _, c := range []struct {
			what      string
			got, want int
		}{
			{"verified instructions", int(g.Verified), int(w.Verified)},
			{"bytes of stack", g.Stack, w.Stack},
			{"bytes of machine code", int(g.JITed), int(w.JITed)},
		} {
			if c.got*100 > c.want*(100+slack) {
				complain("%s: %d %s, recorded are %d", name, c.got, c.what, c.want)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got.HitPaths)) {
		if g, w := got.HitPaths[name].Calls, want.HitPaths[name].Calls; !maps.Equal(g, w) {
			complain("%s calls %v, recorded is %v", name, g, w)
		}
	}
	return complaints
}

func kernelSeries(t *testing.T) string {
	t.Helper()
	var uts unix.Utsname
	check(t, unix.Uname(&uts))
	major, rest, _ := strings.Cut(unix.ByteSliceToString(uts.Release[:]), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return major + "." + minor
}

func TestGoldenComplains(t *testing.T) {
	path := func(n int) map[string]callPath {
		return map[string]callPath{"hit": {Calls: map[string]int{"Redirect": n}}}
	}
	size := func(n uint32) map[string]program { return map[string]program{"p": {n, 100, n}} }
	want := golden{"6.18", size(100), path(1)}
	for _, c := range []struct {
		name       string
		got        golden
		complaints int
	}{
		{"the same", want, 0},
		{"within the slack", golden{"6.18", size(120), path(1)}, 0},
		{"beyond the slack", golden{"6.18", size(121), path(1)}, 2},
		{"another kernel", golden{"6.19", size(121), path(1)}, 0},
		{"a call more", golden{"6.19", size(100), path(2)}, 1},
		{"a new program", golden{"6.18", map[string]program{"q": {1, 1, 1}}, path(1)}, 3},
	} {
		if got := c.got.beyond(want); len(got) != c.complaints {
			t.Errorf("%s: %q, want %d complaints", c.name, got, c.complaints)
		}
	}
}

// loadAgain loads the programs once more on the same maps, after change has changed
// them.
func (h *harness) loadAgain(t *testing.T, change func(*ebpf.CollectionSpec)) *ebpf.Collection {
	t.Helper()
	f := h.object().family
	if f.progs != nil {
		f.progs = append(slices.Clone(f.progs), onDemand...)
	}
	spec, err := f.from()
	check(t, err)
	resize(spec, h.meta)
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool {
		return f.progs != nil && !slices.Contains(f.progs, name)
	})
	check(t, setVariables(spec, h.meta))
	change(spec)
	shared := h.families.shared()
	maps.Copy(shared, h.object().maps)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: shared,
		Programs:        ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		t.Fatalf("%+v", ve)
	}
	check(t, err)
	t.Cleanup(coll.Close)
	return coll
}

var stackDepth = regexp.MustCompile(`stack depth ([0-9+]+)`)

func measure(t *testing.T, p *ebpf.Program) program {
	t.Helper()
	info, err := p.Info()
	check(t, err)
	jited, err := info.JitedSize()
	check(t, err)
	verified, ok := info.VerifiedInstructions()
	depth := stackDepth.FindStringSubmatch(p.VerifierLog)
	if !ok || depth == nil || jited == 0 {
		t.Fatalf("%s: no statistics: %s", p, p.VerifierLog)
	}
	m := program{Verified: verified, JITed: jited}
	for _, frame := range strings.Split(depth[1], "+") {
		n, err := strconv.Atoi(frame)
		check(t, err)
		m.Stack += n
	}
	return m
}

// hitPaths sends a packet over each fast path, and one with an ended lease over the
// kernel's path. It counts the calls of each.
func (h *harness) hitPaths(t *testing.T, loaded map[string]*ebpf.Program) map[string]callPath {
	t.Helper()
	udp := testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.gateway, Src: h.addr.c1, Dst: h.addr.server,
		UDP: &testutil.UDP{SrcPort: 40000, DstPort: 9999}, Payload: []byte("hello")}
	eport := h.open(t, udp)
	out := h.portIn(t, udp.Bytes(t))
	l2 := udp.With()
	l2.DstMAC, l2.Dst = h.c2.MAC, h.addr.c2
	direct := h.reply(udp, eport)
	direct.Dst = h.addr.c1
	reply := h.reply(udp, eport).Bytes(t)
	paths := map[string]callPath{}
	for name, path := range map[string]struct {
		program string
		frame   []byte
		at, iif int
		mark    uint32
		verdict int32
		renewal bool
	}{
		"port_in, to another port": {tcProgFbrPortIn, l2.Bytes(t), h.c1.Ifindex, h.c1.Ifindex, 0, redirect, false},
		"port_in, to outside":      {tcProgFbrPortIn, udp.Bytes(t), h.c1.Ifindex, h.c1.Ifindex, 0, redirect, false},
		"uplink_out, marked":       {tcProgFbrUplinkOut, out.frame, h.uplink.Ifindex, h.c1.Ifindex, h.meta.Mark, next, false},
		"uplink_out, renewal":      {tcProgFbrUplinkOut, h.routed(udp).Bytes(t), h.uplink.Ifindex, h.bridge, 0, next, true},
		"uplink_in, to a port":     {tcProgFbrUplinkIn, reply, h.uplink.Ifindex, h.uplink.Ifindex, 0, redirect, false},
		"uplink_in, renewal":       {tcProgFbrUplinkIn, reply, h.uplink.Ifindex, h.uplink.Ifindex, 0, next, true},
		"uplink_xdp, to a port":    {program: tcProgFbrUplinkXdp, frame: reply, verdict: xdpRedirect},
		"uplink_xdp, direct":       {program: tcProgFbrUplinkXdp, frame: direct.Bytes(t), verdict: xdpDrop},
	} {
		if loaded[path.program] == nil { // of IPv4 only
			continue
		}
		c := newCallCounter(t, h, path.program)
		run := func(p *ebpf.Program) {
			var got result
			if p.Type() == ebpf.XDP {
				got = h.runXDP(t, p, slices.Clone(path.frame), h.uplink.Ifindex)
			} else {
				got = h.run(t, p, path.frame, path.at, path.iif, func(s *skb) { s.Mark = path.mark })
			}
			if got.verdict != path.verdict {
				t.Fatalf("%s: verdict %d, want %d", name, got.verdict, path.verdict)
			}
		}
		check(t, h.Revoke())
		if !path.renewal {
			h.open(t, udp)
			h.pair(t, h.c1, h.c2)
		}
		run(c.prog)
		calls := c.calls(t)
		paths[name] = callPath{Calls: calls, NS: nanoseconds(t, func() { run(loaded[path.program]) }, loaded[path.program])}
	}
	return paths
}

// nanoseconds is the average time that a run of the unchanged program takes. It is
// informative, and so measured only when the record is written.
func nanoseconds(t *testing.T, run func(), p *ebpf.Program) int {
	t.Helper()
	if !*update {
		return 0
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	check(t, err)
	defer func() { _ = stats.Close() }()
	for range 2000 {
		run()
	}
	s, err := p.Stats()
	check(t, err)
	return int(s.Runtime.Nanoseconds() / int64(s.RunCount))
}

// callCounter is a program that sets a mark before each of its calls. A hit path has no
// loop, so it makes each call at most once.
type callCounter struct {
	prog  *ebpf.Program
	marks *ebpf.Map
	names []string
}

func newCallCounter(t *testing.T, h *harness, name string) *callCounter {
	t.Helper()
	c := &callCounter{}
	coll := h.loadAgain(t, func(spec *ebpf.CollectionSpec) {
		p := spec.Programs[name]
		calls := countCalls(p.Instructions)
		var err error
		c.marks, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(4 * calls), MaxEntries: 1})
		check(t, err)
		t.Cleanup(func() { _ = c.marks.Close() })
		p.Instructions, c.names = markCalls(p.Instructions, c.marks.FD())
		spec.Programs = map[string]*ebpf.ProgramSpec{name: p}
	})
	c.prog = coll.Programs[name]
	return c
}

func countCalls(insns asm.Instructions) (n int) {
	for _, ins := range insns {
		if isCall(ins) {
			n++
		}
	}
	return n
}

func isCall(ins asm.Instruction) bool {
	return ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() == asm.Call
}

// markCalls puts a store before each call. R0 is free there, since the call overwrites
// it.
func markCalls(insns asm.Instructions, marks int) (out asm.Instructions, names []string) {
	insns = labelJumps(slices.Clone(insns))
	for i, ins := range insns {
		if !isCall(ins) {
			out = append(out, ins)
			continue
		}
		load := asm.LoadMapValue(asm.R0, marks, uint32(4*len(names)))
		// A jump to the call, and its debug information, move to its mark.
		load = load.WithSymbol(ins.Symbol()).WithSource(ins.Source())
		if fn := btf.FuncMetadata(&ins); fn != nil {
			load, ins = btf.WithFuncMetadata(load, fn), btf.WithFuncMetadata(ins, nil)
		}
		names = append(names, callName(insns[:i], ins))
		out = append(out, load, asm.StoreImm(asm.R0, 0, 1, asm.Word), ins.WithSymbol(""))
	}
	return out, names
}

// labelJumps replaces jump distances by labels, which stay right when instructions are
// inserted.
func labelJumps(insns asm.Instructions) asm.Instructions {
	at := map[asm.RawInstructionOffset]int{}
	for iter := insns.Iterate(); iter.Next(); {
		at[iter.Offset] = iter.Index
	}
	for iter := insns.Iterate(); iter.Next(); {
		ins := iter.Ins
		op := ins.OpCode.JumpOp()
		if !ins.OpCode.Class().IsJump() || op == asm.Call || op == asm.Exit || ins.Reference() != "" {
			continue
		}
		target := &insns[at[iter.Offset+1+asm.RawInstructionOffset(ins.Offset)]]
		if target.Symbol() == "" {
			*target = target.WithSymbol(fmt.Sprintf("label-%d", iter.Offset+1+asm.RawInstructionOffset(ins.Offset)))
		}
		*ins = ins.WithReference(target.Symbol())
		ins.Offset = -1
	}
	return insns
}

// callName is the helper and the map that it works on.
func callName(before asm.Instructions, call asm.Instruction) string {
	if !call.IsBuiltinCall() {
		return "call " + call.Reference()
	}
	name := strings.TrimPrefix(asm.BuiltinFunc(call.Constant).String(), "Fn")
	if !strings.HasPrefix(name, "Map") {
		return name
	}
	for _, ins := range slices.Backward(before) {
		if ins.IsLoadFromMap() && ins.Dst == asm.R1 {
			return name + " " + ins.Reference()
		}
	}
	return name
}

func (c *callCounter) calls(t *testing.T) map[string]int {
	t.Helper()
	raw, err := c.marks.LookupBytes(uint32(0))
	check(t, err)
	calls := map[string]int{}
	for i, name := range c.names {
		if raw[4*i] != 0 {
			calls[name]++
		}
	}
	return calls
}
