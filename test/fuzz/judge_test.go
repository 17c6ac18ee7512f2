package fuzz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// judge decides for each frame that arrives somewhere whether it may be there. tell has
// told it about each hostile packet before that was sent. It has seen what each
// container asked for.
type judge struct {
	key      maphash.Seed
	told     [8192]told // the last ones, by mark
	lastWild time.Time
	contacts map[contact]struct{}
	remotes  map[remote]struct{}
}

// told is what a sent packet was like.
type told struct {
	mark    uint32
	from    party
	wild    bool   // it cannot be known what should arrive
	error   uint16 // of the L4 checksum, see l4Error
	proto   byte
	payload []byte
}

// contact is a flow that a party has begun, as the party sees it. For an echo, local is
// the id.
type contact struct {
	of           party
	proto        byte
	remote       netip.Addr
	local, rport uint16
}

// remote is an address to which a party has sent a packet of a protocol.
type remote struct {
	of    party
	proto byte
	addr  netip.Addr
}

func newJudge() *judge {
	return &judge{key: maphash.MakeSeed(), contacts: map[contact]struct{}{}, remotes: map[remote]struct{}{}}
}

// wildFor is how long after a wild packet the checksums of packets without a mark are
// not judged.
const wildFor = 5 * time.Second

// markMagic begins a mark. The number of the shot and bytes that nobody can guess
// follow. So a mutated mark is no mark.
var markMagic = [4]byte{0xf5, 0xb2, 0x9c, 0x61}

const markLen = 12

// mark is the beginning of a payload, by which the packet is recognised wherever it
// arrives.
func (j *judge) mark(n uint32) []byte {
	b := binary.BigEndian.AppendUint32(markMagic[:], n)
	return binary.BigEndian.AppendUint32(b, uint32(maphash.Bytes(j.key, b)))
}

// find is what was told about the packet whose mark is in b, or nil.
func (j *judge) find(b []byte) *told {
	for {
		i := bytes.Index(b, markMagic[:])
		if i < 0 || len(b) < i+markLen {
			return nil
		}
		b = b[i:]
		n := binary.BigEndian.Uint32(b[4:])
		if t := &j.told[n%uint32(len(j.told))]; t.mark == n && bytes.Equal(b[:markLen], j.mark(n)) {
			return t
		}
		b = b[1:]
	}
}

// tell records a shot before it is sent.
func (j *judge) tell(s shot) {
	t := told{mark: s.mark, from: s.from, wild: true}
	f := parse(s.frame)
	if p := f.ipv4(); p != nil && f.vlan == 0 && p.whole() && p.headerOK() && (s.hdr == nil || s.hdr.GSOType == 0) {
		half := false
		if s.hdr != nil && s.hdr.Flags&1 != 0 {
			at, ok := sumAt(p.proto)
			half = ok && int(s.hdr.CsumStart) == len(s.frame)-len(f.l3)+p.hlen && int(s.hdr.CsumOff) == at
			ok = half
			t.wild = !ok
		} else {
			t.wild = false
		}
		if e, ok := p.l4Error(half); !t.wild && ok {
			t.error, t.proto, t.payload = e, p.proto, bytes.Clone(p.payload())
		} else if !ok {
			t.wild = true
		}
	}
	j.told[s.mark%uint32(len(j.told))] = t
	if t.wild || t.error != 0 {
		j.lastWild = time.Now()
	}
}

// frame is the link layer of a frame. Tags are skipped.
type frame struct {
	dst, src mac
	tags     int
	vlan     uint16 // the first VLAN id that is not 0
	etype    uint16
	l3       []byte
}

func parse(b []byte) (f frame) {
	if len(b) < 14 {
		return f
	}
	copy(f.dst[:], b)
	copy(f.src[:], b[6:])
	f.etype, f.l3 = binary.BigEndian.Uint16(b[12:]), b[14:]
	for (f.etype == 0x8100 || f.etype == 0x88a8) && len(f.l3) >= 4 {
		f.tags++
		if n := binary.BigEndian.Uint16(f.l3) & 0xfff; f.vlan == 0 {
			f.vlan = n
		}
		f.etype, f.l3 = binary.BigEndian.Uint16(f.l3[2:]), f.l3[4:]
	}
	return f
}

// packet is an IPv4 packet, or the part of it that a frame holds.
type packet struct {
	ip           []byte // header and payload, without padding
	hlen, total  int
	proto        byte
	src, dst     netip.Addr
	frag         uint16 // MF and the offset
	l4           []byte
	sport, dport uint16 // of an echo: the id in both
}

// ipv4 is the frame's IPv4 packet, or nil if there is no IPv4 header.
func (f *frame) ipv4() *packet {
	if f.etype != etherIPv4 {
		return nil
	}
	return parseIPv4(f.l3)
}

func parseIPv4(b []byte) *packet {
	if len(b) < 20 || b[0]>>4 != 4 {
		return nil
	}
	p := &packet{ip: b, hlen: int(b[0]&0xf) * 4, total: int(binary.BigEndian.Uint16(b[2:])), proto: b[9],
		src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])), frag: binary.BigEndian.Uint16(b[6:]) & 0x3fff}
	if p.hlen < 20 || p.hlen > len(b) {
		return nil
	}
	if p.total == 0 && len(b) > 0xffff { // a BIG TCP super-packet
		p.total = len(b)
	}
	if p.total >= p.hlen && p.total < len(b) {
		p.ip = b[:p.total]
	}
	p.l4 = p.ip[p.hlen:]
	if p.frag&0x1fff != 0 {
		return p
	}
	switch {
	case (p.proto == protoTCP || p.proto == protoUDP) && len(p.l4) >= 4:
		p.sport, p.dport = binary.BigEndian.Uint16(p.l4), binary.BigEndian.Uint16(p.l4[2:])
	case p.proto == protoICMP && len(p.l4) >= 8 && (p.l4[0] == 0 || p.l4[0] == 8):
		p.sport = binary.BigEndian.Uint16(p.l4[4:])
		p.dport = p.sport
	}
	return p
}

func (p *packet) whole() bool { return p.frag == 0 && len(p.ip) == p.total }

func (p *packet) headerOK() bool {
	if p.total == 0 && p.proto == protoTCP { // the kernel takes it for a BIG TCP super-packet
		return testutil.Sum(0, p.ip[:p.hlen]) == 0xffff
	}
	return p.total >= p.hlen && len(p.ip) >= p.hlen && testutil.Sum(0, p.ip[:p.hlen]) == 0xffff
}

// isError reports whether a packet is an ICMP error.
func (p *packet) isError() bool {
	return p.proto == protoICMP && p.frag&0x1fff == 0 && len(p.l4) >= 8 && slices.Contains([]byte{3, 4, 5, 11, 12}, p.l4[0])
}

func (p *packet) quoted() *packet { return parseIPv4(p.l4[8:]) }

// sumAt is the offset of a protocol's checksum in its header.
func sumAt(proto byte) (int, bool) {
	at, ok := map[byte]int{protoICMP: 2, protoTCP: 16, protoUDP: 6}[proto]
	return at, ok
}

// l4Error is how far the L4 checksum is off, 0 if it is right. Translating a packet
// does not change this difference. half: the checksum is still to be filled in. The
// result is false if the packet has no L4 checksum, or is not complete.
func (p *packet) l4Error(half bool) (uint16, bool) {
	at, ok := sumAt(p.proto)
	if !ok || !p.whole() || len(p.l4) < map[byte]int{protoICMP: 8, protoTCP: 20, protoUDP: 8}[p.proto] {
		return 0, false
	}
	pseudo := uint16(0)
	if p.proto != protoICMP {
		pseudo = testutil.Sum(uint32(p.proto)+uint32(len(p.l4)), p.ip[12:20])
	}
	l4 := p.l4
	switch {
	case half && p.proto == protoUDP && l4[6] == 0 && l4[7] == 0:
		return 0, false // it looks like no checksum; no pseudo header has this sum
	case half:
		l4 = bytes.Clone(l4)
		binary.BigEndian.PutUint16(l4[at:], ^testutil.Sum(0, l4))
	case p.proto == protoUDP && l4[6] == 0 && l4[7] == 0:
		return 0, false
	}
	e := ^testutil.Sum(uint32(pseudo), l4)
	if e == 0xffff {
		e = 0
	}
	return e, true
}

func (p *packet) payload() []byte {
	n := 8
	if p.proto == protoTCP {
		n = max(20, int(p.l4[12]>>4)*4)
	}
	return p.l4[min(n, len(p.l4)):]
}

// intact reports whether a packet has arrived as it was sent, and whether its sender may
// be heard there.
func (j *judge) intact(p *packet, half bool, mayHear func(party) bool) error {
	t := j.find(p.ip)
	if t != nil && !mayHear(t.from) {
		return fmt.Errorf("it has the payload of a packet of %v's", t.from)
	}
	e, ok := p.l4Error(half)
	switch {
	case t == nil:
		if ok && e != 0 && time.Since(j.lastWild) > wildFor {
			return fmt.Errorf("its checksum is wrong by %#x", e)
		}
		return nil
	case t.wild || !ok:
		return nil
	case e != 0 && e != t.error:
		return fmt.Errorf("its checksum is wrong by %#x, and was by %#x when it was sent", e, t.error)
	}
	if got := p.payload(); !p.isError() && p.proto == t.proto && len(got) == len(t.payload) && !bytes.Equal(got, t.payload) {
		return fmt.Errorf("its payload was %x", t.payload)
	}
	return nil
}

// container is one end of a port.
type container struct {
	who         party
	ip          netip.Addr
	mac         mac
	siblingIP   netip.Addr // of the other container in its network
	siblingMAC  mac
	gateway     netip.Addr
	gatewayMAC  mac
	internal    bool
	publication bool // servicePort is published
}

// hosts are the addresses of the host that are not a gateway's.
var hosts = slices.Clip([]netip.Addr{host0IP, host1IP, lanIP})

// ownAddrs are all addresses of the host.
var ownAddrs = append(hosts, gwA, gwB)

// see judges a frame that a container sends or receives.
func (c *container) see(j *judge, t lab.Tapped) error {
	f := parse(t.Frame)
	if t.Sent {
		if p := f.ipv4(); p != nil && f.src == c.mac && p.src == c.ip {
			j.contacted(c.who, p)
		}
		return nil
	}
	switch {
	case f.tags > 0:
		return fmt.Errorf("it is tagged")
	case f.dst == c.siblingMAC || f.dst == c.gatewayMAC:
		return fmt.Errorf("it is for somebody else")
	case f.src != c.siblingMAC && f.src != c.gatewayMAC:
		return fmt.Errorf("its MAC address is a stranger's")
	}
	from, fromMAC := c.gateway, c.gatewayMAC
	if f.src == c.siblingMAC {
		from, fromMAC = c.siblingIP, c.siblingMAC
	}
	switch f.etype {
	case etherARP:
		if f.src == c.gatewayMAC && !c.internal && isReply(f.l3, c.gatewayMAC, append(hosts, gwB)) {
			return nil // the kernel answers for each address of the host
		}
		return judgeARP(f.l3, fromMAC, from)
	case etherIPv6:
		if f.src != c.siblingMAC {
			return fmt.Errorf("it is IPv6 of the host's")
		}
		return judgeIPv6(f.l3)
	case etherIPv4:
	default:
		return fmt.Errorf("its ethertype is %#x", f.etype)
	}
	p := f.ipv4()
	if p == nil {
		if f.src == c.siblingMAC {
			return nil // the bridge does not look at headers; the container's kernel does
		}
		return fmt.Errorf("it has no IPv4 header")
	}
	if f.src == c.siblingMAC && p.src != c.siblingIP {
		return fmt.Errorf("its source %v is not that of who sent it", p.src)
	}
	if f.src == c.gatewayMAC {
		if err := c.routed(j, p); err != nil {
			return err
		}
	}
	return j.intact(p, t.Partial, func(from party) bool {
		if c.internal {
			return from == b1
		}
		return from != b1 && from != n1
	})
}

// routed judges a packet that the host has sent or forwarded.
func (c *container) routed(j *judge, p *packet) error {
	switch {
	case !p.headerOK():
		return fmt.Errorf("its header is wrong")
	case p.src == c.gateway && p.dst.IsMulticast():
		return nil // the host's own, such as IGMP when the bridge comes up
	case p.dst != c.ip:
		return fmt.Errorf("its destination is %v", p.dst)
	case p.src == c.siblingIP || p.src == c.ip:
		return nil // through the gateway
	case p.src == c.gateway:
	case c.internal:
		return fmt.Errorf("its source %v is not of this internal network", p.src)
	case p.src == gwB: // the host's, on which a published port answers as on all of its
	// Anybody outside may use the address of another network of the host's, n1's too:
	// rp_filter, which would find that, is the host's own choice.
	case netA.Contains(p.src), netB.Contains(p.src), p.src.IsLoopback(), p.src.IsMulticast(), p.src == broadcast, p.src == anyone:
		return fmt.Errorf("its source %v has nothing to say here", p.src)
	}
	if !c.isOurs(j, p) {
		return fmt.Errorf("%v has nothing to do with %v", c.who, p.src)
	}
	return nil
}

// isOurs reports whether a packet belongs to a flow that this container has begun, or to
// a port that it has published.
func (c *container) isOurs(j *judge, p *packet) bool {
	_, spoken := j.remotes[remote{c.who, p.proto, p.src}]
	service := c.publication && (p.proto == protoTCP || p.proto == protoUDP)
	switch {
	case p.isError():
		q := p.quoted()
		if p.l4[0] == 5 || q == nil || q.src != c.ip {
			return false
		}
		if q.frag&0x1fff != 0 || q.proto != protoTCP && q.proto != protoUDP && !(q.proto == protoICMP && len(q.l4) >= 8 && q.l4[0] == 8) {
			_, spoken = j.remotes[remote{c.who, q.proto, q.dst}]
			return spoken
		}
		_, known := j.contacts[contact{c.who, q.proto, q.dst, q.sport, q.dport}]
		return known || c.publication && q.sport == servicePort
	case p.frag&0x1fff != 0:
		return spoken || service
	case p.proto == protoTCP || p.proto == protoUDP:
		_, known := j.contacts[contact{c.who, p.proto, p.src, p.dport, p.sport}]
		return known || service && p.dport == servicePort
	case p.proto == protoICMP && len(p.l4) >= 8 && p.l4[0] == 0:
		_, known := j.contacts[contact{c.who, p.proto, p.src, p.dport, p.sport}]
		return known
	case p.proto == protoICMP && !slices.Contains(hosts, p.src) && p.src != c.gateway:
		// The kernel translates what asks for a timestamp, information or an address mask.
		return spoken && len(p.l4) > 0 && slices.Contains([]byte{14, 16, 18}, p.l4[0])
	default: // another protocol, which the kernel translates, or an answer of the host itself
		return spoken && p.l4 != nil && !(p.proto == protoICMP && len(p.l4) > 0 && p.l4[0] == 8)
	}
}

func (j *judge) contacted(who party, p *packet) {
	j.contacts[contact{who, p.proto, p.dst, p.sport, p.dport}] = struct{}{}
	j.remotes[remote{who, p.proto, p.dst}] = struct{}{}
}

// judgeARP checks that a sender of ARP tells the truth about itself.
func judgeARP(b []byte, m mac, a netip.Addr) error {
	if len(b) < 28 {
		return fmt.Errorf("it is cut off")
	}
	says := netip.AddrFrom4([4]byte(b[14:18]))
	if mac(b[8:14]) != m || says != a && says != anyone {
		return fmt.Errorf("it says that %v has %x", says, b[8:14])
	}
	return nil
}

// isReply reports whether a packet is an ARP reply that gives this MAC address for one of
// these addresses.
func isReply(b []byte, m mac, addrs []netip.Addr) bool {
	return len(b) >= 28 && b[7] == 2 && mac(b[8:14]) == m && slices.Contains(addrs, netip.AddrFrom4([4]byte(b[14:18])))
}

// judgeIPv6 checks that no container acts as a router. Otherwise containers may talk
// IPv6 to each other.
func judgeIPv6(b []byte) error {
	if len(b) < 40 {
		return nil
	}
	const routerAdvertisement, redirect = 134, 137
	next, rest := b[6], b[40:]
	for range 8 {
		switch {
		case next == 58 && len(rest) > 0 && (rest[0] == routerAdvertisement || rest[0] == redirect):
			return fmt.Errorf("a container plays the router")
		case next == 44 && len(rest) >= 8 && binary.BigEndian.Uint16(rest[2:])&0xfff8 == 0:
			next, rest = rest[0], rest[8:]
		case (next == 0 || next == 43 || next == 60) && len(rest) >= 8 && len(rest) >= int(rest[1])*8+8:
			next, rest = rest[0], rest[int(rest[1])*8+8:]
		default:
			return nil
		}
	}
	return nil
}

// outside is the other end of an uplink, or of another device of the host.
type outside struct {
	who     party
	mac     mac
	hostMAC mac
	lan     bool // no uplink
}

func (o *outside) see(j *judge, t lab.Tapped) error {
	f := parse(t.Frame)
	p := f.ipv4()
	if t.Sent {
		if p != nil && o.lan {
			j.contacted(o.who, p)
		}
		return nil
	}
	switch {
	case f.tags > 0:
		return fmt.Errorf("it is tagged")
	case f.src != o.hostMAC:
		return fmt.Errorf("its MAC address is not the host's")
	case f.dst != o.mac && f.etype != etherARP && f.dst[0]&1 == 0: // a neighbour may say it is a group
		return fmt.Errorf("it is for somebody else")
	}
	switch {
	case f.etype == etherARP:
		if !isReply(f.l3, o.hostMAC, ownAddrs) && (len(f.l3) < 28 || mac(f.l3[8:14]) != o.hostMAC || !slices.Contains(hosts, netip.AddrFrom4([4]byte(f.l3[14:18])))) {
			return fmt.Errorf("it does not speak of the host")
		}
		return nil
	case f.etype != etherIPv4 || p == nil:
		return fmt.Errorf("it is not IPv4, but %#x", f.etype)
	case !p.headerOK():
		return fmt.Errorf("its header is wrong")
	case !slices.Contains(ownAddrs, p.src):
		return fmt.Errorf("its source %v is not the host's", p.src)
	case ours(p.dst) || p.dst == forbidden:
		return fmt.Errorf("its destination is %v", p.dst)
	}
	if p.isError() {
		if q := p.quoted(); q != nil && (ours(q.src) || ours(q.dst)) {
			return fmt.Errorf("it quotes a packet from %v to %v", q.src, q.dst)
		}
	}
	return j.intact(p, t.Partial, func(from party) bool {
		return from != b1 // the host also answers n1, and senders with forged addresses
	})
}

// ours reports whether an address is in one of the networks. No packet outside may come
// from there or lead there.
func ours(a netip.Addr) bool { return netA.Contains(a) || netB.Contains(a) }

// bridge is the host's end of a network. What arrives here enters the host's stack.
type bridge struct {
	subnet   netip.Prefix
	gateway  netip.Addr
	internal bool
}

func (b *bridge) see(_ *judge, t lab.Tapped) error {
	f := parse(t.Frame)
	if t.Sent {
		return nil
	}
	if f.tags > 0 {
		return fmt.Errorf("it is tagged")
	}
	switch f.etype {
	case etherARP:
		if len(f.l3) < 28 {
			return fmt.Errorf("it is cut off")
		}
		a := netip.AddrFrom4([4]byte(f.l3[14:18]))
		if !b.subnet.Contains(a) && a != anyone || a == b.gateway || mac(f.l3[8:14]) != f.src || a != anyone && f.src != containerMAC(a) {
			return fmt.Errorf("it says that %v has %x", a, f.l3[8:14])
		}
	case etherIPv4:
		p := f.ipv4()
		if p == nil {
			return nil // the kernel decides
		}
		if p.frag != 0 && (f.src == host0MAC || f.src == host1MAC || f.src == containerMAC(b.gateway)) {
			return nil // a reassembled packet leaves in the very buffers that the tap still reads
		}
		switch {
		case !b.subnet.Contains(p.src), p.src == b.gateway, f.src != containerMAC(p.src):
			return fmt.Errorf("its source %v is not that of who sent it", p.src)
		case b.internal && !b.subnet.Contains(p.dst) && !p.dst.IsMulticast() && p.dst != broadcast:
			return fmt.Errorf("its destination %v is not in this internal network", p.dst)
		case !b.internal && netB.Contains(p.dst):
			return fmt.Errorf("its destination %v is in another network", p.dst)
		}
	case etherIPv6:
		if f.dst[0]&1 == 0 {
			return fmt.Errorf("it is IPv6 for the host, which has none here")
		}
	default:
		return fmt.Errorf("its ethertype is %#x", f.etype)
	}
	return nil
}
