package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

//go:generate go tool bpf2go -tags linux -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3 -fno-strict-aliasing" pps ../bpf/bench/pps.bpf.c
//go:generate go tool bpf2go -tags linux -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3 -fno-strict-aliasing" conn ../bpf/bench/conn.bpf.c

// stream describes the generator's frames.
type stream struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       netip.AddrPort // of the first flow
	// sports and dports are the number of ports that count up from those of src
	// and dst: there are sports × dports flows.
	sports, dports int
	// arriveAt is the destination address on arrival, after translation.
	arriveAt netip.Addr
}

// aim sets the MAC addresses of frames that from sends to dst.
func (s *stream) aim(ctx context.Context, from *lab.Namespace) (err error) {
	if s.dstMAC, err = from.NextHop(ctx, s.dst.Addr()); err != nil {
		return err
	}
	s.srcMAC, err = from.MAC(device)
	return err
}

const (
	frameBytes = 64 // as the sender's kernel sees them: without the frame check sequence
	// burst is the number of frames per system call: they take a fraction of a
	// second.
	burst = 1 << 16
)

// udpAt returns the offset of the UDP header in the frames.
func (s stream) udpAt() int {
	if s.dst.Addr().Is6() {
		return 14 + 40
	}
	return 14 + 20
}

// template returns a frame without ports and UDP checksum, the sum of what the checksum
// covers, in memory order, and the mask of that part of the last word that is magic: in
// IPv6, 64 bytes leave room for two.
func (s stream) template(magic uint32) (frame [frameBytes]byte, udpSum, mask uint32) {
	copy(frame[0:], s.dstMAC)
	copy(frame[6:], s.srcMAC)
	ip, udp := frame[14:s.udpAt()], frame[s.udpAt():]
	src, dst := s.src.Addr().AsSlice(), s.dst.Addr().AsSlice()
	addrs := ip[len(ip)-2*len(dst):]
	copy(addrs, src)
	copy(addrs[len(src):], dst)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	if s.dst.Addr().Is6() {
		copy(frame[12:], []byte{0x86, 0xdd})
		ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_UDP, 64
		copy(ip[4:], udp[4:6])
		mask = binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff})
	} else {
		copy(frame[12:], []byte{0x08, 0x00})
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(ip[2:], frameBytes-14)
		binary.NativeEndian.PutUint16(ip[10:], ^uint16(fold(sum(ip))))
		mask = ^uint32(0)
	}
	binary.NativeEndian.PutUint32(frame[frameBytes-4:], magic&mask)
	pseudo := []byte{0, unix.IPPROTO_UDP, udp[4], udp[5]}
	return frame, fold(sum(addrs) + sum(pseudo) + sum(udp)), mask
}

// addrWords returns an address as it lies in a packet, and its length in words.
func addrWords(a netip.Addr) (w ppsFbrBenchAddr, n uint32) {
	b := a.AsSlice()
	for n < uint32(len(b)/4) {
		w.Words[n] = binary.NativeEndian.Uint32(b[4*n:])
		n++
	}
	return w, n
}

// sum adds 16-bit words in memory order.
func sum(b []byte) (s uint32) {
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.NativeEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint32 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return s
}

// generator sends the frames of a stream and counts those that arrive.
type generator struct {
	objects ppsObjects
	links   []link.Link
	from    *lab.Namespace
}

// run generates a stream for d, after open has sent what must precede it.
func (s stream) run(ctx context.Context, from, to *lab.Namespace, d time.Duration, open func(*generator) error, start func() error) (r rate, err error) {
	g, err := newGenerator(s, from, to)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if err := open(g); err != nil {
		return r, err
	}
	if err := start(); err != nil {
		return r, err
	}
	return g.flow(ctx, d)
}

// newGenerator loads the programs. Frames leave from by its eth0, and are
// counted and dropped at the eth0 of to. The caller closes the generator.
func newGenerator(s stream, from, to *lab.Namespace) (*generator, error) {
	in, err := to.Index(device)
	if err != nil {
		return nil, err
	}
	g, err := newSender(s, from)
	if err != nil {
		return nil, err
	}
	if err := g.attach(to, in, g.objects.FbrBenchSink); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// newSender loads a generator of frames that nobody counts. The caller closes
// it.
func newSender(s stream, from *lab.Namespace) (*generator, error) {
	out, err := from.Index(device)
	if err != nil {
		return nil, err
	}
	g := &generator{from: from}
	if err := g.load(s, out); err != nil {
		return nil, fmt.Errorf("loading the generator: %w", err)
	}
	if err := g.attach(from, loopback, g.objects.FbrBenchSend); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

const device = "eth0"

func (g *generator) attach(n *lab.Namespace, ifindex int, prog *ebpf.Program) error {
	l, err := attachTCX(n, ifindex, prog)
	if err == nil {
		g.links = append(g.links, l)
	}
	return err
}

func (g *generator) load(s stream, out int) error {
	magic := rand.Uint32()
	frame, udpSum, mask := s.template(magic)
	daddr, words := addrWords(s.arriveAt)
	spec, err := loadPps()
	if err != nil {
		return err
	}
	var vars ppsVariableSpecs
	if err := spec.Assign(&vars); err != nil {
		return err
	}
	var all ppsFbrBenchFrame
	for i := range all.Words {
		all.Words[i] = binary.NativeEndian.Uint32(frame[4*i:])
	}
	if err := errors.Join(
		vars.CfgFrame.Set(all),
		vars.CfgUdp.Set(uint32(s.udpAt())),
		vars.CfgUdpSum.Set(udpSum),
		vars.CfgSport.Set(s.src.Port()),
		vars.CfgSports.Set(uint32(s.sports)),
		vars.CfgDport.Set(s.dst.Port()),
		vars.CfgDports.Set(uint32(s.dports)),
		vars.CfgIfindex.Set(uint32(out)),
		vars.CfgDaddr.Set(daddr),
		vars.CfgAddrWords.Set(words),
		vars.CfgMagic.Set(magic&mask),
		vars.CfgMagicMask.Set(mask),
	); err != nil {
		return err
	}
	return spec.LoadAndAssign(&g.objects, nil)
}

// send generates at least so many frames (live.send).
func (g *generator) send(frames int) error {
	return live{g.from, g.objects.FbrBenchGenerate, frameBytes}.send(frames)
}

// flow sends bursts for about d.
func (g *generator) flow(ctx context.Context, d time.Duration) (r rate, err error) {
	before, err := g.read()
	if err != nil {
		return r, err
	}
	start := time.Now()
	for r.took < d {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if err := g.send(burst); err != nil {
			return r, err
		}
		r.took = time.Since(start)
	}
	after, err := g.read()
	r.sent, r.received = after.sent-before.sent, after.received-before.received
	return r, err
}

// rate is the number of frames that a generator sent in a time, and of those
// that arrived.
type rate struct {
	sent, received uint64
	took           time.Duration
}

func (g *generator) read() (r rate, err error) {
	if err := g.objects.Sent.Get(&r.sent); err != nil {
		return r, fmt.Errorf("reading the generator's counter: %w", err)
	}
	var perCPU []uint64
	if err := g.objects.FbrBenchCount.Lookup(uint32(0), &perCPU); err != nil {
		return r, fmt.Errorf("reading the sink's counter: %w", err)
	}
	for _, v := range perCPU {
		r.received += v
	}
	return r, nil
}

// Close detaches and frees the programs.
func (g *generator) Close() error {
	var errs []error
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, g.objects.Close())...)
}
