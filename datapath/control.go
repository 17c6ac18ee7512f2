package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// requestChunk bounds one run of fbr_control, which disables bottom halves.
const requestChunk = 4096

// control asks and tells the programs what no map says: time, state, settings.
type control struct{ d *Datapath }

// inChunks calls f for all of [0, n), a chunk at a time.
func inChunks(n uint32, f func(from, to uint32) error) error {
	for from := uint32(0); from < n; from += requestChunk {
		if err := f(from, min(from+requestChunk, n)); err != nil {
			return err
		}
	}
	return nil
}

// request runs fbr_control, which sees the maps as the other programs do. Some
// operations need a payload.
func request(p *ebpf.Program, r tcFbrRequest, payload ...byte) (uint64, error) {
	var in bytes.Buffer
	if err := binary.Write(&in, binary.NativeEndian, &r); err != nil {
		return 0, err
	}
	in.Write(payload)
	out := make([]byte, in.Len())
	ret, err := p.Run(&ebpf.RunOptions{Data: in.Bytes(), DataOut: out})
	if err != nil {
		return 0, fmt.Errorf("running fbr_control: %w", err)
	}
	if ret != 0 {
		return 0, fmt.Errorf("fbr_control refused operation %d", r.Op)
	}
	if err := binary.Read(bytes.NewReader(out), binary.NativeEndian, &r); err != nil {
		return 0, err
	}
	return r.Arg, nil
}

// now returns the kernel's jiffies64, the clock of all entries.
func (cl control) now() (uint64, error) {
	return request(cl.d.progs.FbrControl, tcFbrRequest{Op: tcFbrOpFBR_OP_NOW})
}

// flush ends the sessions of a device, or all sessions (ifindex 0), and returns
// how many it ended.
func (nt natTable) flush(ifindex int) (int, error) { return nt.end(tcFbrOpFBR_OP_FLUSH, ifindex) }

// end does so for those sessions that op stands for.
func (nt natTable) end(op tcFbrOp, ifindex int) (total int, err error) {
	for _, o := range nt.d.families.loaded() {
		n, errOf := nt.endOf(o, op, ifindex)
		total, err = total+n, errors.Join(err, errOf)
	}
	return total, err
}

// endOf does so for those of a family.
func (nt natTable) endOf(o *object, op tcFbrOp, ifindex int) (total int, err error) {
	used, err := nt.used(o)
	if err != nil {
		return 0, err
	}
	err = inChunks(used, func(from, to uint32) error {
		n, err := o.endSlots(op, ifindex, from, to)
		total += n
		return err
	})
	return total, err
}

// endSlots does so for the slots [from, to).
func (o *object) endSlots(op tcFbrOp, ifindex int, from, to uint32) (int, error) {
	n, err := request(o.progs[tcProgFbrControl], tcFbrRequest{Op: op, Ifindex: uint32(ifindex), From: from, To: to})
	return int(n), err
}

// state returns the family's bookkeeping, whose layout is that of both.
func (o *object) state() (st tcFbrState, err error) {
	if err := o.maps[tcMapFbrState].Lookup(uint32(0), &st); err != nil {
		return st, fmt.Errorf("reading fbr_state: %w", err)
	}
	return st, nil
}

func jiffies(t time.Duration, hz uint32) uint32 {
	return uint32(uint64(t) * uint64(hz) / uint64(time.Second))
}

func duration(jiffies uint64, hz uint32) time.Duration {
	return time.Duration(jiffies) * time.Second / time.Duration(hz)
}
