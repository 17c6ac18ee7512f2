package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/fastbr/fastbr/internal/lab"
)

// Floor is the limit for redirects in tc: the plain bridge's lab with programs
// of a few constant instructions, without NAT, lookup, check or counter. The
// outside has a route to the containers' addresses. It is not for use: it shows
// what is left to gain, and how many retransmits any redirect causes (sender
// and ACKs transmit from two CPUs).
type Floor struct {
	// IPv6 is the family that is redirected.
	IPv6 bool
	// held keeps the programs attached.
	held *[]link.Link
}

// NewFloor returns the contestant.
func NewFloor() Floor { return Floor{held: &[]link.Link{}} }

// WithIPv6 returns f for IPv6.
func (f Floor) WithIPv6() Floor {
	f.IPv6 = true
	return f
}

// Name implements Contestant.
func (f Floor) Name() string { return ipv6Text("floor", f.IPv6, ipv6) }

// Describe implements Contestant.
func (f Floor) Describe() string {
	return ipv6Text("constant tc redirect without NAT, lookups or counters: the limit, not a product", f.IPv6, ", of IPv6")
}

// Options implements Contestant.
func (f Floor) Options() lab.Options { return Bridge{IPv6: f.IPv6}.Options() }

// Setup implements Contestant.
func (f Floor) Setup(ctx context.Context, l *lab.Lab) error { return f.setup(ctx, l, nil) }

// setup attaches the redirects. Each program first runs before on every packet of the
// family, with its context in R6.
func (f Floor) setup(ctx context.Context, l *lab.Lab, before asm.Instructions) error {
	c1, c2 := l.Containers[0], l.Containers[1]
	if err := leadBack(l, f.IPv6); err != nil {
		return err
	}
	in := func(n *lab.Namespace) netip.Addr { return addrIn(n, f.IPv6) }
	// First the kernel resolves the neighbours: the programs know only these addresses.
	for _, to := range []netip.Addr{in(c2), in(l.Outside)} {
		if _, err := c1.Ping(ctx, to, lab.PingOptions{Count: 1}); err != nil {
			return err
		}
	}
	macs, err := readMACs(l)
	if err != nil {
		return err
	}
	index := map[string]int{}
	for _, dev := range []string{"br0-1", "br0-2", "eth0"} {
		if index[dev], err = l.Host.Index(dev); err != nil {
			return err
		}
	}
	for dev, hops := range map[string][]hop{
		"br0-1": {{to: in(c2), index: index["br0-2"], peer: true}, {to: in(l.Outside), index: index["eth0"], macs: macs.out}},
		"br0-2": {{to: in(c1), index: index["br0-1"], peer: true}},
		"eth0":  {{to: in(c1), index: index["br0-1"], peer: true, macs: macs.in}},
	} {
		if err := f.attach(l, index[dev], redirects(before, hops)); err != nil {
			return fmt.Errorf("attaching a constant redirect to %s: %w", dev, err)
		}
	}
	return nil
}

// Flows implements Contestant.
func (f Floor) Flows() int { return 0 }

// Paths implements Contestant.
func (f Floor) Paths(context.Context, *lab.Lab) (Paths, bool, error) { return Paths{}, false, nil }

// Teardown implements Contestant.
func (f Floor) Teardown(context.Context, *lab.Lab) error {
	for _, l := range *f.held {
		_ = l.Close()
	}
	*f.held = nil
	return nil
}

func (f Floor) attach(l *lab.Lab, ifindex int, insns asm.Instructions) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fbr_bench_floor", Type: ebpf.SchedCLS, License: "GPL", Instructions: insns,
	})
	if err != nil {
		return err
	}
	defer func() { _ = prog.Close() }()
	return l.Host.Do(func() error {
		at, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			*f.held = append(*f.held, at)
		}
		return err
	})
}

// hop redirects packets for one address to one device.
type hop struct {
	to    netip.Addr
	index int
	peer  bool   // into the namespace at the device's other end
	macs  []byte // 12 bytes to write over destination and source; nil: keep them
}

const (
	etherIPv4       = 0x0800
	etherIPv6       = 0x86dd
	offsetProtocol  = 16 // of struct __sk_buff
	offsetSrc       = 14 + 12
	offsetDst       = 14 + 16
	offsetDstEnd6   = 14 + 36 // of the last word of IPv6's, which tells a lab's addresses apart
	nextProgram     = -1      // TCX_NEXT
	macsOnStack     = -16
	macsLength      = 12
	labelNext       = "next"
	flagsOfRedirect = 0
)

// redirects returns the program: before, then a chain of comparisons with
// constants.
func redirects(before asm.Instructions, hops []hop) asm.Instructions {
	ether, at := uint16(etherIPv4), int32(offsetDst)
	if slices.ContainsFunc(hops, func(h hop) bool { return h.to.Is6() }) {
		ether, at = etherIPv6, offsetDstEnd6
	}
	prog := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R0, asm.R6, offsetProtocol, asm.Word),
		// The field holds the ethertype in network byte order.
		asm.JNE.Imm(asm.R0, int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ether))), labelNext),
	}
	prog = append(prog, before...)
	prog = append(prog, asm.LoadAbs(at, asm.Word)) // into R0, in host byte order
	for i, h := range hops {
		skip := fmt.Sprintf("hop%d", i+1)
		if i == len(hops)-1 {
			skip = labelNext
		}
		to := h.to.AsSlice()
		test := asm.JNE.Imm32(asm.R0, int32(binary.BigEndian.Uint32(to[len(to)-4:])), skip)
		if i > 0 {
			test = test.WithSymbol(fmt.Sprintf("hop%d", i))
		}
		prog = append(prog, test)
		prog = append(prog, h.instructions()...)
	}
	return append(prog,
		asm.Mov.Imm(asm.R0, nextProgram).WithSymbol(labelNext),
		asm.Return(),
	)
}

func (h hop) instructions() asm.Instructions {
	var prog asm.Instructions
	if h.macs != nil {
		for i := 0; i < macsLength; i += 4 {
			word := int64(binary.NativeEndian.Uint32(h.macs[i:]))
			prog = append(prog, asm.StoreImm(asm.RFP, int16(macsOnStack+i), int64(int32(word)), asm.Word))
		}
		prog = append(prog,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, 0),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, macsOnStack),
			asm.Mov.Imm(asm.R4, macsLength),
			asm.Mov.Imm(asm.R5, 0),
			asm.FnSkbStoreBytes.Call(),
		)
	}
	redirect := asm.FnRedirect
	if h.peer {
		redirect = asm.FnRedirectPeer
	}
	return append(prog,
		asm.Mov.Imm(asm.R1, int32(h.index)),
		asm.Mov.Imm(asm.R2, flagsOfRedirect),
		redirect.Call(),
		asm.Return(),
	)
}

// macPairs are the destination and source address at the start of a frame, on
// the uplink and towards the first container.
type macPairs struct{ out, in []byte }

func readMACs(l *lab.Lab) (p macPairs, err error) {
	read := func(n *lab.Namespace, dev string) (mac net.HardwareAddr) {
		if err == nil {
			mac, err = n.MAC(dev)
		}
		return mac
	}
	p.out = append(append(p.out, read(l.Outside, "eth0")...), read(l.Host, "eth0")...)
	p.in = append(append(p.in, read(l.Containers[0], "eth0")...), read(l.Host, "br0")...)
	return p, err
}
