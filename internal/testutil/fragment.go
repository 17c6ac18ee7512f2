package testutil

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
)

const (
	etherHdr = 14
	moreBit  = 0x2000
	offMask  = 0x1fff
)

func isIPv6(frame []byte) bool { return frame[12] == 0x86 && frame[13] == 0xdd }

// Fragments cuts an untagged frame into fragments with the given id. The payload of each
// is size bytes (a multiple of 8); that of the last may be shorter. In an IPv6 frame the
// hop-by-hop options and the routing header are repeated (RFC 8200 section 4.5).
func Fragments(t testing.TB, frame []byte, size int, id uint32) [][]byte {
	t.Helper()
	if size <= 0 || size%8 != 0 {
		t.Fatalf("fragments of %d bytes", size)
	}
	fragment, hlen := fragment4, etherHdr+int(frame[etherHdr]&0xf)*4
	if isIPv6(frame) {
		fragment, hlen = fragment6, etherHdr+repeated6(frame[etherHdr:])
	}
	payload := frame[hlen:]
	var out [][]byte
	for off := 0; off < len(payload); off += size {
		end := min(off+size, len(payload))
		out = append(out, fragment(frame[:hlen], payload[off:end], off, end < len(payload), id))
	}
	return out
}

func fragment4(head, data []byte, off int, more bool, id uint32) []byte {
	f := append(append([]byte(nil), head...), data...)
	ip := f[etherHdr:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], uint16(id))
	flags := uint16(off / 8)
	if more {
		flags |= moreBit
	}
	binary.BigEndian.PutUint16(ip[6:], flags)
	setIPSum(ip[:len(head)-etherHdr])
	return f
}

func fragment6(head, data []byte, off int, more bool, id uint32) []byte {
	f := append([]byte(nil), head...)
	number := &f[etherHdr+6]
	for at := etherHdr + ip6Hdr; at < len(head); at += 8 + 8*int(head[at+1]) {
		number = &f[at]
	}
	next := *number
	*number = FragmentHdr
	f = append(append(f, FragmentHeader(uint16(off/8), more, id).header(next)...), data...)
	binary.BigEndian.PutUint16(f[etherHdr+4:], uint16(len(f)-etherHdr-ip6Hdr))
	return f
}

// repeated6 is the length of an IPv6 packet's headers that stand in each fragment.
func repeated6(ip []byte) int {
	hlen := ip6Hdr
	for next := ip[6]; next == HopByHop || next == Routing; {
		next, hlen = ip[hlen], hlen+8+8*int(ip[hlen+1])
	}
	return hlen
}

// piece is a fragment.
type piece struct {
	head, data []byte // head without a fragment header, and with the next header's number
	off        int    // bytes
	more       bool
	id         uint32
}

func pieceOf(frame []byte) (piece, error) {
	if err := CheckSums(frame); err != nil {
		return piece{}, err
	}
	ip := frame[etherHdr:]
	if !isIPv6(frame) {
		flags, hlen := binary.BigEndian.Uint16(ip[6:]), etherHdr+int(ip[0]&0xf)*4
		data := frame[hlen : etherHdr+int(binary.BigEndian.Uint16(ip[2:]))]
		return piece{frame[:hlen], data, int(flags&offMask) * 8, flags&moreBit != 0, uint32(binary.BigEndian.Uint16(ip[4:]))}, nil
	}
	u, err := upper6(ip)
	if err != nil || u.header == 0 {
		return piece{}, fmt.Errorf("no fragment header (%v)", err)
	}
	head := append([]byte(nil), frame[:etherHdr+u.header]...)
	head[etherHdr+u.next] = ip[u.header]
	word := binary.BigEndian.Uint16(ip[u.header+2:])
	end := ip6Hdr + int(binary.BigEndian.Uint16(ip[4:]))
	if end > len(ip) {
		return piece{}, fmt.Errorf("%d bytes of %d", len(ip), end)
	}
	return piece{head, ip[u.header+8 : end], int(word &^ 7), word&1 != 0, binary.BigEndian.Uint32(ip[u.header+4:])}, nil
}

// Join reassembles fragments that come in order. It verifies all checksums of the whole
// frame, and that only one id was used.
func Join(frags ...[]byte) ([]byte, error) {
	if len(frags) == 0 {
		return nil, fmt.Errorf("no fragment")
	}
	var first piece
	var whole []byte
	for i, f := range frags {
		p, err := pieceOf(f)
		if i == 0 {
			first, whole = p, append([]byte(nil), p.head...)
		}
		switch at := len(whole) - len(first.head); {
		case err != nil:
			return nil, fmt.Errorf("fragment %d: %w", i, err)
		case p.off != at:
			return nil, fmt.Errorf("fragment %d begins at %d, want %d", i, p.off, at)
		case p.more != (i < len(frags)-1):
			return nil, fmt.Errorf("fragment %d of %d: more is %v", i, len(frags), p.more)
		case p.id != first.id:
			return nil, fmt.Errorf("fragment %d has id %d, the first %d", i, p.id, first.id)
		case addresses(f) != addresses(frags[0]):
			return nil, fmt.Errorf("fragment %d has other addresses than the first", i)
		}
		whole = append(whole, p.data...)
	}
	ip := whole[etherHdr:]
	if isIPv6(whole) {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ip6Hdr))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[6:], 0)
		setIPSum(ip[:len(first.head)-etherHdr])
	}
	return whole, CheckSums(whole)
}

// FragmentID is the id of an IPv4 frame, or of an IPv6 frame's fragment header; 0: it has
// none.
func FragmentID(frame []byte) uint32 {
	if !isIPv6(frame) {
		return uint32(binary.BigEndian.Uint16(frame[etherHdr+4:]))
	}
	if u, err := upper6(frame[etherHdr:]); err == nil && u.header != 0 {
		return binary.BigEndian.Uint32(frame[etherHdr+u.header+4:])
	}
	return 0
}

// Addresses are the source and the destination of a frame.
func Addresses(frame []byte) (src, dst netip.Addr) {
	a := addresses(frame)
	src, _ = netip.AddrFromSlice([]byte(a[:len(a)/2]))
	dst, _ = netip.AddrFromSlice([]byte(a[len(a)/2:]))
	return src, dst
}

func addresses(frame []byte) string {
	ip := frame[etherHdr:]
	if isIPv6(frame) {
		return string(ip[8:ip6Hdr])
	}
	return string(ip[12:20])
}

func setIPSum(hdr []byte) {
	binary.BigEndian.PutUint16(hdr[10:], 0)
	binary.BigEndian.PutUint16(hdr[10:], ^Sum(0, hdr))
}
