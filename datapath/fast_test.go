package datapath

import (
	"encoding/binary"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// Offsets in an untagged frame without IP options.
const (
	offTotLen = 16
	offUDPLen = 38
	offDoff   = 46
	offFlags  = 47
)

// putLen changes a length field and keeps the header checksum right, so that only the
// length can be the reason for the verdict.
func putLen(off int, change int) func([]byte) []byte {
	return func(b []byte) []byte {
		binary.BigEndian.PutUint16(b[off:], uint16(int(binary.BigEndian.Uint16(b[off:]))+change))
		ip := b[14:34]
		copy(ip[10:], []byte{0, 0})
		binary.BigEndian.PutUint16(ip[10:], ^testutil.Sum(0, ip))
		return b
	}
}

func padded(n int) func([]byte) []byte {
	return func(b []byte) []byte { return append(b, make([]byte, n)...) }
}

// The kernel drops a frame that is shorter than its header says and trims one that is
// longer. Connection tracking calls headers invalid that do not fit their packet. The
// fast path does none of that, so it must take none of these packets.
func TestMalformedLengthsAreTheKernels(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	samples := h.samples()
	eports := map[string]uint16{}
	for name, f := range samples {
		if f.TCP == nil {
			f.Payload = []byte("hello") // short enough to be padded on the wire
			samples[name] = f
		}
		eports[name] = h.open(t, f)
	}
	gso := func(s *skb) { s.GSOSize, s.GSOSegs = 1000, 2 }
	for name, tc := range map[string]struct {
		sample  string
		change  func([]byte) []byte
		ctx     func(*skb)
		out, in int32
	}{
		"tcp":                   {"tcp", padded(0), nil, redirect, redirect},
		"cut short":             {"tcp", putLen(offTotLen, 1), nil, next, next},
		"longer than it says":   {"tcp", padded(4), nil, next, next},
		"padding on the wire":   {"udp", padded(60 - 47), nil, next, redirect},
		"more than padding":     {"udp", padded(61 - 47), nil, next, next},
		"header only":           {"tcp", putLen(offTotLen, -34), nil, next, next},
		"length 0":              {"tcp", putLen(offTotLen, -54), nil, next, next},
		"BIG TCP":               {"tcp", putLen(offTotLen, -54), gso, redirect, redirect},
		"BIG UDP is unknown":    {"udp", putLen(offTotLen, -33), gso, next, next},
		"doff below 5":          {"tcp", func(b []byte) []byte { b[offDoff] = 4 << 4; return b }, nil, next, next},
		"doff beyond the frame": {"tcp", func(b []byte) []byte { b[offDoff] = 15 << 4; return b }, nil, next, next},
		"no flags":              {"tcp", func(b []byte) []byte { b[offFlags] = 0; return b }, nil, next, next},
		"UDP too long":          {"udp", putLen(offUDPLen, 1), nil, next, next},
		"UDP too short":         {"udp", putLen(offUDPLen, -1), nil, next, next},
		"unchecked UDP":         {"udp0", padded(0), nil, redirect, redirect},
		"echo":                  {"echo", padded(0), nil, redirect, redirect},
		"half an echo":          {"echo", putLen(offTotLen, -9), nil, next, next},
	} {
		t.Run(name, func(t *testing.T) {
			f := samples[tc.sample]
			var ctx []func(*skb)
			if tc.ctx != nil {
				ctx = append(ctx, tc.ctx)
			}
			if got := h.portIn(t, tc.change(f.Bytes(t)), ctx...); got.verdict != tc.out {
				t.Errorf("out: verdict %d, want %d", got.verdict, tc.out)
			}
			if got := h.uplinkIn(t, tc.change(h.reply(f, eports[tc.sample]).Bytes(t)), ctx...); got.verdict != tc.in {
				t.Errorf("in: verdict %d, want %d", got.verdict, tc.in)
			}
		})
	}
}
