package bench

import (
	"context"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/fastbr/fastbr/internal/lab"
)

// HashFloor is the floor with one lookup per packet in a hash table of both
// directions of every flow: the cost of the obvious way to tell flows apart.
type HashFloor struct {
	Floor
	flows int
}

// HashFloor returns a hash floor whose table is as large as that of f.
func (f Fastbr) HashFloor() HashFloor { return HashFloor{NewFloor(), f.sessions()} }

// Name implements Contestant.
func (HashFloor) Name() string { return "hash-floor" }

// Describe implements Contestant.
func (f HashFloor) Describe() string {
	return fmt.Sprintf("floor, but each packet is looked up in a hash table with room for both directions of %s flows: not a product", thousands(f.flows))
}

// Flows implements Contestant.
func (f HashFloor) Flows() int { return f.flows }

// The table's key is addresses, ports and protocol; its value has the size of
// what a translation needs.
const (
	flowKeyBytes   = 16
	flowValueBytes = 56
)

func newFlowTable(flows int) (*ebpf.Map, error) {
	table, err := ebpf.NewMap(&ebpf.MapSpec{Name: "fbr_bench_flows", Type: ebpf.Hash,
		KeySize: flowKeyBytes, ValueSize: flowValueBytes, MaxEntries: uint32(2 * flows)})
	if err != nil {
		return nil, fmt.Errorf("creating a table for %d flows: %w", flows, err)
	}
	return table, nil
}

// Setup implements Contestant.
func (f HashFloor) Setup(ctx context.Context, l *lab.Lab) error {
	table, err := newFlowTable(f.flows)
	if err != nil {
		return err
	}
	defer func() { _ = table.Close() }() // the programs hold it
	return f.setup(ctx, l, lookUp(table))
}

// lookUp looks up the packet's addresses and ports in the table, and reads the
// first and the last word of the value. A new flow gets two entries.
func lookUp(table *ebpf.Map) asm.Instructions {
	const (
		key, value     = -flowKeyBytes, -flowKeyBytes - flowValueBytes // on the stack
		noExist        = 1                                             // BPF_NOEXIST
		unknown, known = "unknown", "known"
	)
	at := func(r asm.Register, offset int32) asm.Instructions {
		return asm.Instructions{asm.Mov.Reg(r, asm.RFP), asm.Add.Imm(r, offset)}
	}
	zero := func(from, to int16) asm.Instructions {
		prog := asm.Instructions{asm.Mov.Imm(asm.R0, 0)}
		for ; from < to; from += 8 {
			prog = append(prog, asm.StoreMem(asm.RFP, from, asm.R0, asm.DWord))
		}
		return prog
	}
	insert := func() (prog asm.Instructions) {
		prog = append(prog, asm.LoadMapPtr(asm.R1, table.FD()))
		prog = append(prog, at(asm.R2, key)...)
		prog = append(prog, at(asm.R3, value)...)
		return append(prog, asm.Mov.Imm(asm.R4, noExist), asm.FnMapUpdateElem.Call())
	}
	prog := zero(key, 0)
	prog = append(prog, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, offsetSrc))
	prog = append(prog, at(asm.R3, key)...)
	prog = append(prog, asm.Mov.Imm(asm.R4, 4+4+2+2), asm.FnSkbLoadBytes.Call())
	prog = append(prog, asm.LoadMapPtr(asm.R1, table.FD()))
	prog = append(prog, at(asm.R2, key)...)
	prog = append(prog,
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, unknown),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, flowValueBytes-8, asm.DWord),
		asm.Ja.Label(known),
	)
	fresh := append(zero(value, key), insert()...)
	fresh[0] = fresh[0].WithSymbol(unknown)
	prog = append(prog, fresh...)
	prog = append(prog, asm.StoreImm(asm.RFP, -4, 1, asm.Word)) // makes the key of the other direction
	prog = append(prog, insert()...)
	return append(prog, asm.Mov.Imm(asm.R0, 0).WithSymbol(known))
}
