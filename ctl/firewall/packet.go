package firewall

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tri is a truth value of three: no, may, yes.
type tri int8

const (
	no tri = iota
	may
	yes
)

func (t tri) not() tri { return yes - t }

// bits are bytes of which only the bits in mask are known. The others are 0 in val.
type bits struct{ val, mask []byte }

func unknown(n int) bits { return bits{make([]byte, n), make([]byte, n)} }

func known(b ...byte) bits { return bits{b, bytes.Repeat([]byte{0xff}, len(b))} }

// native is a number in the byte order of the host.
func native(v uint32) bits { return known(binary.NativeEndian.AppendUint32(nil, v)...) }

// port is a port in network byte order; 0 means any.
func port(p uint16) bits {
	if p == 0 {
		return unknown(2)
	}
	return known(binary.BigEndian.AppendUint16(nil, p)...)
}

// name is a device's name as nftables compares it: all 16 bytes.
func name(device string) bits {
	if device == "" {
		return unknown(unix.IFNAMSIZ)
	}
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, device)
	return known(b...)
}

func (b bits) whole() bool {
	return !slices.ContainsFunc(b.mask, func(m byte) bool { return m != 0xff })
}

// least and most are the smallest and the largest value that the bytes may have.
func (b bits) least() []byte { return b.val }

func (b bits) most() []byte {
	out := slices.Clone(b.val)
	for i := range out {
		out[i] |= ^b.mask[i]
	}
	return out
}

// is tells whether the bytes are v.
func (b bits) is(v []byte) tri {
	if len(v) != len(b.val) {
		return may
	}
	for i := range v {
		if (v[i]^b.val[i])&b.mask[i] != 0 {
			return no
		}
	}
	if b.whole() {
		return yes
	}
	return may
}

// within tells whether the bytes, as a big-endian number, are between two others.
func (b bits) within(lo, hi []byte) tri {
	least, most := b.least(), b.most()
	switch {
	case bytes.Compare(most, lo) < 0 || bytes.Compare(least, hi) > 0:
		return no
	case bytes.Compare(least, lo) >= 0 && bytes.Compare(most, hi) <= 0:
		return yes
	}
	return may
}

// compare is nftables' cmp.
func (b bits) compare(op expr.CmpOp, v []byte) tri {
	zero, full := make([]byte, len(v)), bytes.Repeat([]byte{0xff}, len(v))
	switch op {
	case expr.CmpOpEq:
		return b.is(v)
	case expr.CmpOpNeq:
		return b.is(v).not()
	case expr.CmpOpLte:
		return b.within(zero, v)
	case expr.CmpOpGt:
		return b.within(zero, v).not()
	case expr.CmpOpGte:
		return b.within(v, full)
	case expr.CmpOpLt:
		return b.within(v, full).not()
	}
	return may
}

// and is nftables' bitwise: (b & mask) ^ xor. Bits that the mask clears become known.
func (b bits) and(mask, xor []byte) bits {
	out := bits{slices.Clone(b.val), slices.Clone(b.mask)}
	for i := range out.val {
		out.mask[i] |= ^mask[i]
		out.val[i] = (out.val[i]&mask[i] ^ xor[i]) & out.mask[i]
	}
	return out
}

// Bits of conntrack's status (include/uapi/linux/netfilter/nf_conntrack_common.h).
const (
	statusSNAT = 1 << 4
	statusDNAT = 1 << 5
	// A rule has attached a helper to the connection. A helper rewrites addresses only for
	// a connection that the kernel translates.
	statusHelper = 1 << 13
)

// packet is a packet that rules are run on. A field of a zero packet is unknown.
type packet struct {
	family                   *Family
	in, out                  Device
	src, dst                 bits // 4 or 16 bytes
	dstType                  bits // of its route: 4 bytes, native
	proto                    bits // 1 byte
	sport, dport             bits // 2 bytes
	state, status            bits // conntrack's, 4 bytes, native
	origSrc, origDst         bits // of conntrack's original tuple
	origSrcPort, origDstPort bits

	first *packet // before the kernel has translated the destination; nil: it does not
}

// network is the IP header, with what is known of it. An IPv6 packet of a known protocol
// is taken for one without extension headers.
func (p packet) network() bits {
	f := p.family
	h := unknown(f.headerLen)
	h.val[0], h.mask[0] = 4<<4, 0xf0
	if f == IPv6 {
		h.val[0] = 6 << 4
	}
	for at, f := range map[int]bits{f.proto: p.proto, f.src: p.src, f.dst: p.dst} {
		copy(h.val[at:], f.val)
		copy(h.mask[at:], f.mask)
	}
	return h
}

// transport is the beginning of a TCP or UDP header.
func (p packet) transport() bits {
	return bits{slices.Concat(p.sport.val, p.dport.val), slices.Concat(p.sport.mask, p.dport.mask)}
}

// meta returns what nftables calls a meta key; 16 unknown bytes if it is not known.
func (p packet) meta(k expr.MetaKey) bits {
	index := func(d Device) bits {
		if d.Index == 0 {
			return unknown(4)
		}
		return native(uint32(d.Index))
	}
	switch k {
	case expr.MetaKeyIIFNAME:
		return name(p.in.Name)
	case expr.MetaKeyOIFNAME:
		return name(p.out.Name)
	case expr.MetaKeyIIF:
		return index(p.in)
	case expr.MetaKeyOIF:
		return index(p.out)
	case expr.MetaKeyNFPROTO:
		return known(p.family.nfproto)
	case expr.MetaKeyPROTOCOL:
		return known(big16(p.family.ethtype)...)
	case expr.MetaKeyL4PROTO:
		return p.proto
	}
	return unknown(16)
}

// ct returns what conntrack knows about the packet.
func (p packet) ct(e *expr.Ct) bits {
	original := e.Direction == 0
	switch {
	case e.Key == expr.CtKeySTATE:
		return p.state
	case e.Key == expr.CtKeySTATUS:
		return p.status
	case e.Key == expr.CtKeyPROTOCOL:
		return p.proto
	case original && (e.Key == expr.CtKeySRC || uint32(e.Key) == p.family.ctSrc):
		return p.origSrc
	case original && (e.Key == expr.CtKeyDST || uint32(e.Key) == p.family.ctDst):
		return p.origDst
	case original && e.Key == expr.CtKeyPROTOSRC:
		return p.origSrcPort
	case original && e.Key == expr.CtKeyPROTODST:
		return p.origDstPort
	}
	return unknown(16)
}
