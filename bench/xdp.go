package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	netdev "github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/lab"
)

// XDPFloor is the floor with XDP on the uplink: in the driver, a few constant
// instructions redirect UDP from outside to the first container.
type XDPFloor struct{ Floor }

// NewXDPFloor returns the contestant.
func NewXDPFloor() XDPFloor { return XDPFloor{NewFloor()} }

// Name implements Contestant.
func (XDPFloor) Name() string { return "xdp-floor" }

// Describe implements Contestant.
func (XDPFloor) Describe() string {
	return "floor, but for UDP from outside, which XDP on the uplink redirects"
}

// Setup implements Contestant.
func (f XDPFloor) Setup(ctx context.Context, l *lab.Lab) error {
	if err := completeChecksums(l.Outside); err != nil {
		return err
	}
	if err := f.Floor.Setup(ctx, l); err != nil {
		return err
	}
	c1 := l.Containers[0]
	if err := setOffload(c1, netdev.GRO, true); err != nil {
		return err
	}
	macs, err := readMACs(l)
	if err != nil {
		return err
	}
	port, err := l.Host.Index("br0-1")
	if err != nil {
		return err
	}
	return f.attachXDP(l, udpTo(c1.Addr, redirectXDP(macs.in, port)))
}

// XDPDrop is a plain bridge whose uplink drops, in XDP, packets for the first
// container's own address: the limit of a drop rate.
type XDPDrop struct{ Floor }

// NewXDPDrop returns the contestant.
func NewXDPDrop() XDPDrop { return XDPDrop{NewFloor()} }

// Name implements Contestant.
func (XDPDrop) Name() string { return "xdp-drop" }

// Describe implements Contestant.
func (XDPDrop) Describe() string {
	return "an XDP program on the uplink that only drops: the limit, not a product"
}

// Setup implements Contestant.
func (f XDPDrop) Setup(_ context.Context, l *lab.Lab) error {
	return f.attachXDP(l, udpTo(l.Containers[0].Addr, asm.Instructions{
		asm.Mov.Imm(asm.R0, xdpDrop), asm.Return(),
	}))
}

// Verdicts of XDP programs, include/uapi/linux/bpf.h.
const (
	xdpDrop = 1
	xdpPass = 2
)

// attachXDP attaches a program to the host's uplink in native mode.
func (f Floor) attachXDP(l *lab.Lab, insns asm.Instructions) error {
	index, err := l.Host.Index(device)
	if err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fbr_bench_xdp", Type: ebpf.XDP, License: "GPL", Instructions: insns,
	})
	if err != nil {
		return err
	}
	defer func() { _ = prog.Close() }()
	return l.Host.Do(func() error {
		at, err := link.AttachXDP(link.XDPOptions{Interface: index, Program: prog, Flags: link.XDPDriverMode})
		if err != nil {
			return fmt.Errorf("attaching XDP to the uplink: %w", err)
		}
		*f.held = append(*f.held, at)
		return nil
	})
}

// Offsets in an untagged frame with an IP header without options.
const (
	offsetEtherType = 12
	offsetIPProto   = 14 + 9
	headersLength   = 14 + 20 + 8
)

// udpTo returns a program that runs do on UDP packets to one address and passes
// everything else. In do, R2 points to the frame.
func udpTo(to netip.Addr, do asm.Instructions) asm.Instructions {
	addr := to.As4()
	const pass = "pass"
	prog := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, headersLength),
		asm.JGT.Reg(asm.R4, asm.R3, pass),
		asm.LoadMem(asm.R0, asm.R2, offsetEtherType, asm.Half),
		asm.JNE.Imm(asm.R0, int32(binary.NativeEndian.Uint16([]byte{etherIPv4 >> 8, etherIPv4 & 0xff})), pass),
		asm.LoadMem(asm.R0, asm.R2, offsetIPProto, asm.Byte),
		asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, pass),
		asm.LoadMem(asm.R0, asm.R2, offsetDst, asm.Word),
		asm.JNE.Imm32(asm.R0, int32(binary.NativeEndian.Uint32(addr[:])), pass),
	}
	prog = append(prog, do...)
	return append(prog, asm.Mov.Imm(asm.R0, xdpPass).WithSymbol(pass), asm.Return())
}

// redirectXDP overwrites the frame's MAC addresses and redirects it to a
// device.
func redirectXDP(macs []byte, index int) (prog asm.Instructions) {
	for i := 0; i < macsLength; i += 4 {
		prog = append(prog, asm.StoreImm(asm.R2, int16(i), int64(int32(binary.NativeEndian.Uint32(macs[i:]))), asm.Word))
	}
	return append(prog,
		asm.Mov.Imm(asm.R1, int32(index)),
		asm.Mov.Imm(asm.R2, flagsOfRedirect),
		asm.FnRedirect.Call(),
		asm.Return(),
	)
}

// completeChecksums makes a namespace send complete checksums, as on a wire:
// XDP cannot tell packets of this machine from those off a wire.
func completeChecksums(n *lab.Namespace) error { return setOffload(n, netdev.TXChecksum, false) }

func setOffload(n *lab.Namespace, feature string, on bool) error {
	return n.Do(func() error { return netdev.SetOffload(device, feature, on) })
}
