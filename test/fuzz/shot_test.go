package fuzz

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// The format of an input. Any bytes are a sequence of shots. Choices are taken modulo
// the number of options, and missing bytes are 0. A shot of zeros is an honest packet
// of the sender's own flow, so most random bytes are nearly valid.

// party is a sender.
type party int

const (
	a1       party = iota     // a hostile container
	b1                        // another, in an internal network
	o1                        // outside of eth0
	o2                        // outside of eth1
	n1                        // behind a device of the host that is no uplink
	shooters                  // the number of those above
	a2       party = iota - 1 // a container of a1's network, which is not hostile
	b2                        // a container of b1's network, not hostile either
)

func (p party) String() string { return [...]string{"a1", "b1", "o1", "o2", "n1", "a2", "b2"}[p] }

// The addresses of the lab.
var (
	a1IP, a2IP, gwA   = addr("172.30.0.2"), addr("172.30.0.3"), addr("172.30.0.1")
	b1IP, b2IP, gwB   = addr("172.28.0.2"), addr("172.28.0.3"), addr("172.28.0.1")
	netA, netB        = netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("172.28.0.0/24")
	host0IP, host1IP  = addr("198.51.100.1"), addr("203.0.113.1")
	o1IP, o2IP        = addr("198.51.100.2"), addr("203.0.113.2")
	server1, server2  = addr("192.0.2.11"), addr("192.0.2.12") // of o1
	server3           = addr("192.0.2.21")                     // of o2
	forbidden         = addr("192.0.2.13")                     // the host's firewall lets nothing out to this address
	lanIP, n1IP       = addr("10.20.0.1"), addr("10.20.0.2")
	broadcast, anyone = addr("255.255.255.255"), addr("0.0.0.0")

	addresses = []netip.Addr{{}, a1IP, a2IP, gwA, b1IP, b2IP, gwB, host0IP, host1IP, o1IP, o2IP, server1, server2, server3,
		forbidden, lanIP, n1IP, broadcast, anyone, addr("127.0.0.1"), addr("224.0.0.1"), addr("239.1.1.1"),
		addr("172.30.0.255"), addr("172.28.0.255"), addr("8.8.8.8"), addr("172.30.0.77"), addr("198.51.100.77")}

	a1MAC, a2MAC, brAMAC = containerMAC(a1IP), containerMAC(a2IP), containerMAC(gwA)
	b1MAC, b2MAC, brBMAC = containerMAC(b1IP), containerMAC(b2IP), containerMAC(gwB)
	host0MAC, o1MAC      = mac{2, 0, 0, 0, 0, 0x10}, mac{2, 0, 0, 0, 0, 0x11}
	host1MAC, o2MAC      = mac{2, 0, 0, 0, 0, 0x20}, mac{2, 0, 0, 0, 0, 0x21}
	lanMAC, n1MAC        = mac{2, 0, 0, 0, 0, 0x30}, mac{2, 0, 0, 0, 0, 0x31}
	allMAC               = mac{255, 255, 255, 255, 255, 255}

	macs = []mac{{}, a1MAC, a2MAC, brAMAC, b1MAC, b2MAC, brBMAC, host0MAC, host1MAC, o1MAC, allMAC,
		{1, 0, 0x5e, 0, 0, 1}, {1, 0x80, 0xc2, 0, 0, 0}, {2, 1, 2, 3, 4, 5}, {3, 0, 0, 0, 0, 1}, lanMAC}
)

type mac [6]byte

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// containerMAC is the MAC address that fastbr gives a container or a bridge with this
// address.
func containerMAC(a netip.Addr) (m mac) {
	m = mac{2, 0x42}
	copy(m[2:], a.AsSlice())
	return m
}

// Ports. A container's source port lies in the NAT range, so that it keeps it outside.
const (
	echoPort      = 7
	publishedPort = 8080 // of the host; leads to servicePort of a2
	servicePort   = 80
	ownPort       = 20001 // of a1's flows
	victimPort    = 20002 // of a2's flows
)

var ports = []uint16{0, echoPort, servicePort, publishedPort, ownPort, victimPort, 53, 40000, 1, 20003, 68, 67, 4789, 10000, 29999, 65535}

// own are the addresses in an honest packet of each sender.
var own = [shooters]struct {
	src, dst       netip.Addr
	srcMAC, dstMAC mac
	sport, dport   uint16
}{
	a1: {a1IP, server1, a1MAC, brAMAC, ownPort, echoPort},
	b1: {b1IP, b2IP, b1MAC, b2MAC, ownPort, echoPort},
	o1: {server1, host0IP, o1MAC, host0MAC, echoPort, ownPort},
	o2: {server3, host1IP, o2MAC, host1MAC, echoPort, ownPort},
	n1: {n1IP, lanIP, n1MAC, lanMAC, ownPort, echoPort},
}

// recipe is the fixed part of a shot in the input, one byte for each field.
type recipe struct {
	From     uint8 // bit 7: the rest of the input is the whole frame
	Shape    uint8
	MACs     uint8 // source << 4 | destination, of macs; 0: the sender's own
	Src, Dst uint8 // of addresses; 0: the sender's own
	Ports    uint8 // source << 4 | destination, of ports; 0: the sender's own
	Spoil    uint8 // what is wrong, see below
	Tags     uint8 // modulo 10: the number of tags
	Virtio   uint8 // modulo virtios: the header in front
	Patches  uint8 // modulo 4: the number of bytes that are changed at the end
	Size     uint8 // modulo sizes: what is done to the length
}

// The bits of Spoil. Bits 5 and 6 choose the TTL.
const (
	wrongIPSum = 1 << iota
	wrongL4Sum
	wrongLength
	wrongUDPLength
	noUDPSum
)

var ttls = []byte{64, 1, 2, 0}

// The virtio header in front of a frame.
const (
	noHeader = iota
	zeroHeader
	partial    // the L4 checksum is to be filled in
	partialAny // two more bytes: start and offset of the checksum
	gso        // one more byte: the segment size. The payload is long
	anyHeader  // ten more bytes
	virtios
)

// The change of a frame's length.
const (
	sizeKept  = iota
	truncated // two more bytes: the new length
	extended  // two more bytes: by how much. Lengths and checksums are corrected afterwards
	padded    // one more byte: by how much
	sizes
)

// shot is one frame of one sender.
type shot struct {
	from  party
	hdr   *lab.VirtioHeader // nil: none
	frame []byte
	mark  uint32
}

func (s shot) String() string {
	return fmt.Sprintf("%v sends %+v %x", s.from, s.hdr, s.frame[:min(len(s.frame), 300)])
}

// maxShots is the most shots in one input.
const maxShots = 8

// decode makes the shots of an input, numbered from first. mark makes the marks of
// their payloads.
func decode(data []byte, first uint32, mark func(uint32) []byte) (all []shot) {
	d := &decoder{data, mark}
	for len(d.rest) > 0 && len(all) < maxShots {
		all = append(all, d.shot(first+uint32(len(all))))
	}
	return all
}

type decoder struct {
	rest []byte
	mark func(uint32) []byte
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) uint16() uint16 { return uint16(d.byte())<<8 | uint16(d.byte()) }

func (d *decoder) shot(n uint32) shot {
	r := recipe{From: d.byte()}
	s := shot{from: party(r.From % byte(shooters)), mark: n}
	if r.From&0x80 != 0 {
		if h := d.byte(); h&1 != 0 {
			s.hdr = d.anyHeader()
		}
		s.frame, d.rest = d.rest, nil
		return s
	}
	for _, f := range []*uint8{&r.Shape, &r.MACs, &r.Src, &r.Dst, &r.Ports, &r.Spoil, &r.Tags, &r.Virtio, &r.Patches, &r.Size} {
		*f = d.byte()
	}
	d.build(&s, r)
	return s
}

// maker builds a packet between two addresses.
type maker struct {
	src, dst       netip.Addr
	srcMAC, dstMAC mac
	sport, dport   uint16
	payload        []byte
	more           *decoder
}

func (d *decoder) build(s *shot, r recipe) {
	o := own[s.from]
	m := &maker{o.src, o.dst, o.srcMAC, o.dstMAC, o.sport, o.dport, d.mark(s.mark), d}
	pick(&m.srcMAC, macs, r.MACs>>4)
	pick(&m.dstMAC, macs, r.MACs&0xf)
	pick(&m.src, addresses, r.Src)
	pick(&m.dst, addresses, r.Dst)
	pick(&m.sport, ports, r.Ports>>4)
	pick(&m.dport, ports, r.Ports&0xf)
	m.payload = append(m.payload, "the rest of the payload"...)

	virtio, size := r.Virtio%virtios, r.Size%sizes
	var segment byte
	if virtio == gso {
		segment = d.byte()
		m.payload = append(m.payload, make([]byte, 3*int(segment)*8)...)
	}
	if size == extended {
		m.payload = append(m.payload, make([]byte, d.uint16()%12000)...)
	}
	etherType, l3 := shapes[int(r.Shape)%len(shapes)](m)
	if etherType == etherIPv4 {
		l3[8] = ttls[r.Spoil>>5&3]
		mend(l3, r.Spoil, virtio == partial || virtio == gso)
	}
	f := append(append([]byte(nil), m.dstMAC[:]...), m.srcMAC[:]...)
	for range r.Tags % 10 {
		t := d.byte() // C-tag or S-tag, priority, VLAN id (mostly 0)
		f = binary.BigEndian.AppendUint16(f, []uint16{0x8100, 0x88a8}[t&1])
		f = binary.BigEndian.AppendUint16(f, uint16(t>>1&7)<<13|[]uint16{0, 0, 0, 5}[t>>4&3])
	}
	f = binary.BigEndian.AppendUint16(f, etherType)
	l3At := len(f)
	f = append(f, l3...)
	for range r.Patches % 4 {
		at, v := int(d.byte()), d.byte()
		f[at%len(f)] = v
	}
	switch size {
	case truncated:
		f = f[:min(len(f), int(d.uint16())%(len(f)+1))]
	case padded:
		f = append(f, make([]byte, d.byte())...)
	}
	s.frame = f
	s.hdr = d.header(virtio, segment, l3, l3At)
}

func pick[T any](to *T, from []T, i uint8) {
	if n := int(i) % len(from); n != 0 {
		*to = from[n]
	}
}

// header is a virtio header for a packet that begins at offset l3At of its frame.
func (d *decoder) header(kind, segment byte, l3 []byte, l3At int) *lab.VirtioHeader {
	const needsSum = 1
	l4At := l3At + 20
	field, gsoType := uint16(6), uint8(5) // UDP
	if len(l3) >= 20 {
		l4At = l3At + int(l3[0]&0xf)*4
		if l3[9] == protoTCP {
			field, gsoType = 16, 1
		}
	}
	switch kind {
	case zeroHeader:
		return &lab.VirtioHeader{}
	case partial:
		return &lab.VirtioHeader{Flags: needsSum, CsumStart: uint16(l4At), CsumOff: field}
	case partialAny:
		return &lab.VirtioHeader{Flags: needsSum, CsumStart: uint16(d.byte()), CsumOff: uint16(d.byte())}
	case gso:
		hdr := l4At + 8
		if gsoType == 1 {
			hdr = l4At + 20
		}
		return &lab.VirtioHeader{Flags: needsSum, GSOType: gsoType, HdrLen: uint16(hdr), GSOSize: uint16(segment) * 8,
			CsumStart: uint16(l4At), CsumOff: field}
	case anyHeader:
		return d.anyHeader()
	}
	return nil
}

func (d *decoder) anyHeader() *lab.VirtioHeader {
	return &lab.VirtioHeader{Flags: d.byte(), GSOType: d.byte(), HdrLen: d.uint16(), GSOSize: d.uint16(), CsumStart: d.uint16(), CsumOff: d.uint16()}
}

const (
	etherIPv4, etherARP, etherIPv6 = 0x0800, 0x0806, 0x86dd
	protoICMP, protoTCP, protoUDP  = 1, 6, 17
)

// mend corrects the lengths and checksums of a packet, except what spoil names.
func mend(ip []byte, spoil uint8, half bool) {
	hlen := int(ip[0]&0xf) * 4
	if spoil&wrongLength == 0 {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	}
	if spoil&wrongIPSum == 0 && len(ip) >= hlen {
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^testutil.Sum(0, ip[:hlen]))
	}
	if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || len(ip) < hlen+8 {
		return
	}
	l4 := ip[hlen:]
	pseudo := testutil.Sum(uint32(ip[9])+uint32(len(l4)), ip[12:20])
	var field []byte
	switch ip[9] {
	case protoICMP:
		field, pseudo, half = l4[2:4], 0, false
	case protoTCP:
		if len(l4) < 20 {
			return
		}
		field = l4[16:18]
	case protoUDP:
		field = l4[6:8]
		if spoil&wrongUDPLength == 0 {
			binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		}
	default:
		return
	}
	switch {
	case spoil&wrongL4Sum != 0:
		field[0], field[1] = 0x12, 0x34
	case ip[9] == protoUDP && spoil&noUDPSum != 0:
		field[0], field[1] = 0, 0
	case half:
		binary.BigEndian.PutUint16(field, pseudo)
	default:
		field[0], field[1] = 0, 0
		sum := ^testutil.Sum(uint32(pseudo), l4)
		if ip[9] == protoUDP && sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(field, sum)
	}
}
