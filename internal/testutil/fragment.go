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

// Fragments cuts an untagged IPv4 frame into fragments with the given IP id. The IP
// payload of each is size bytes (a multiple of 8); that of the last may be shorter.
func Fragments(t testing.TB, frame []byte, size int, id uint16) [][]byte {
	t.Helper()
	if size <= 0 || size%8 != 0 {
		t.Fatalf("fragments of %d bytes", size)
	}
	hlen := etherHdr + int(frame[etherHdr]&0xf)*4
	payload := frame[hlen:]
	var out [][]byte
	for off := 0; off < len(payload); off += size {
		end := min(off+size, len(payload))
		f := append(append([]byte(nil), frame[:hlen]...), payload[off:end]...)
		ip := f[etherHdr:]
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], id)
		flags := uint16(off / 8)
		if end < len(payload) {
			flags |= moreBit
		}
		binary.BigEndian.PutUint16(ip[6:], flags)
		setIPSum(ip[:hlen-etherHdr])
		out = append(out, f)
	}
	return out
}

// Join reassembles fragments that come in order. It verifies all checksums of the whole
// frame, and that only one id was used.
func Join(frags ...[]byte) ([]byte, error) {
	if len(frags) == 0 {
		return nil, fmt.Errorf("no fragment")
	}
	hlen := etherHdr + int(frags[0][etherHdr]&0xf)*4
	whole := append([]byte(nil), frags[0][:hlen]...)
	for i, f := range frags {
		ip := f[etherHdr:]
		if err := CheckSums(f); err != nil {
			return nil, fmt.Errorf("fragment %d: %w", i, err)
		}
		flags := binary.BigEndian.Uint16(ip[6:])
		switch {
		case int(flags&offMask)*8 != len(whole)-hlen:
			return nil, fmt.Errorf("fragment %d begins at %d, want %d", i, int(flags&offMask)*8, len(whole)-hlen)
		case flags&moreBit == 0 != (i == len(frags)-1):
			return nil, fmt.Errorf("fragment %d of %d: flags %#x", i, len(frags), flags)
		case FragmentID(f) != FragmentID(frags[0]):
			return nil, fmt.Errorf("fragment %d has id %d, the first %d", i, FragmentID(f), FragmentID(frags[0]))
		case string(ip[12:20]) != string(frags[0][etherHdr+12:etherHdr+20]):
			return nil, fmt.Errorf("fragment %d has other addresses than the first", i)
		}
		whole = append(whole, f[hlen:etherHdr+int(binary.BigEndian.Uint16(ip[2:]))]...)
	}
	ip := whole[etherHdr:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[6:], 0)
	setIPSum(ip[:hlen-etherHdr])
	return whole, CheckSums(whole)
}

// FragmentID is the IP id of a frame.
func FragmentID(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[etherHdr+4:]) }

// Addresses are the source and the destination of an IPv4 frame.
func Addresses(frame []byte) (src, dst netip.Addr) {
	ip := frame[etherHdr:]
	return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
}

func setIPSum(hdr []byte) {
	binary.BigEndian.PutUint16(hdr[10:], 0)
	binary.BigEndian.PutUint16(hdr[10:], ^Sum(0, hdr))
}

// SetFragmentID changes the IP id of a frame.
func SetFragmentID(frame []byte, id uint16) {
	ip := frame[etherHdr:]
	binary.BigEndian.PutUint16(ip[4:], id)
	setIPSum(ip[:int(ip[0]&0xf)*4])
}
