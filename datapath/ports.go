package datapath

// The port spaces, bits of FBR_OP_OPEN's and FBR_OP_SHUT's argument: 1 << FBR_CLASS_TCP
// and so on, bpf/lib/types.h.
const (
	classes = 3 // TCP, UDP, ICMP

	allClasses = 1<<classes - 1
)

// setPorts lets mappings have the ports [from, to) of some port spaces, or not any
// more. Who has one keeps it until its last session ends.
func (d *Datapath) setPorts(open bool, which uint64, from, to uint32) error {
	op := tcFbrOp(tcFbrOpFBR_OP_SHUT)
	if open {
		op = tcFbrOpFBR_OP_OPEN
	}
	return inChunks(to-from, func(a, b uint32) error {
		_, err := request(d.progs.FbrControl, tcFbrRequest{Op: op, From: from + a, To: from + b, Arg: which})
		return err
	})
}
