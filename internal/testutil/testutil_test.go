package testutil

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
)

var (
	macA = net.HardwareAddr{2, 0x42, 172, 30, 0, 2}
	macB = net.HardwareAddr{2, 0x42, 172, 30, 0, 1}
	ipA  = netip.MustParseAddr("172.30.0.2")
	ipB  = netip.MustParseAddr("192.0.2.11")
)

func valid() Frame {
	return Frame{SrcMAC: macA, DstMAC: macB, Src: ipA, Dst: ipB, TCP: &TCP{SrcPort: 1, DstPort: 2, SYN: true}, Payload: []byte("odd")}
}

func TestFrameHasRightChecksums(t *testing.T) {
	inner := valid().IP(t)
	for name, f := range map[string]Frame{
		"tcp":         valid(),
		"tcp options": valid().With(func(f *Frame) { f.TCP.Options = make([]byte, 12) }),
		"udp":         valid().With(func(f *Frame) { f.TCP, f.UDP = nil, &UDP{1, 2} }),
		"udp none":    valid().With(func(f *Frame) { f.TCP, f.UDP, f.UncheckedUDP = nil, &UDP{1, 2}, true }),
		"echo":        valid().With(func(f *Frame) { f.TCP, f.Echo = nil, &Echo{ID: 7, Seq: 1} }),
		"icmp":        valid().With(func(f *Frame) { f.TCP, f.ICMP = nil, &ICMPError{Type: 3, Code: 4, MTU: 1400, Inner: inner} }),
		"ip options":  valid().With(func(f *Frame) { f.Options = []byte{1, 1, 1, 0} }),
		"fragment":    valid().With(func(f *Frame) { f.FragOff, f.MF = 1, true }),
	} {
		if err := CheckSums(f.Bytes(t)); err != nil {
			t.Errorf("%s: %v\n% x", name, err, f.Bytes(t))
		}
	}
}

func TestCheckSumsFindsErrors(t *testing.T) {
	good := valid().Bytes(t)
	good6 := valid6().Bytes(t)
	for _, c := range []struct {
		good []byte
		at   []int
	}{{good, []int{14 + 8, 14 + 12, 14 + 20 + 4, len(good) - 1}}, {good6, []int{14 + 5, 14 + 8, 14 + 39, 14 + 40 + 4, len(good6) - 1}}} {
		for _, at := range c.at {
			bad := bytes.Clone(c.good)
			bad[at] ^= 0x10
			if CheckSums(bad) == nil {
				t.Errorf("byte %d of % x changed, and no checksum is wrong", at, c.good[:14])
			}
		}
	}
	if err := CheckSums(valid6().With(func(f *Frame) { f.TCP, f.UDP, f.UncheckedUDP = nil, &UDP{1, 2}, true }).Bytes(t)); err == nil {
		t.Error("UDP without a checksum is right for IPv6")
	}
}

func TestFrameTags(t *testing.T) {
	b := valid().With(func(f *Frame) { f.VLAN = []uint16{5, 6} }).Bytes(t)
	want := []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0, 0x45}
	if !bytes.Equal(b[12:12+len(want)], want) {
		t.Errorf("tags % x, want % x", b[12:12+len(want)], want)
	}
}

func TestWithLeavesOriginal(t *testing.T) {
	f := valid()
	_ = f.With(func(f *Frame) { f.TCP.DstPort = 99 })
	if f.TCP.DstPort != 2 {
		t.Error("With changed the frame it started from")
	}
}

func TestVersionAtLeast(t *testing.T) {
	for _, c := range []struct {
		have, want string
		ok         bool
	}{{"6.6.1-x", "6.6", true}, {"6.12.0", "6.6", true}, {"6.1.0-37-amd64", "6.6", false}, {"7.0", "6.6", true}, {"5.19", "6.1", false}} {
		if versionAtLeast(t, c.have, c.want) != c.ok {
			t.Errorf("%s at least %s: want %v", c.have, c.want, c.ok)
		}
	}
}

func TestNetnsIsAnother(t *testing.T) {
	n := NewNetns(t)
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	n.Do(t, func() { inside, _ = os.Readlink("/proc/thread-self/ns/net") })
	path, err := os.Readlink(n.Path())
	if err != nil || inside == "" || inside == here || path != inside {
		t.Errorf("here %s, inside %s, path %s (%v)", here, inside, path, err)
	}
	t.Run("enter", func(t *testing.T) {
		n.Enter(t)
		if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != inside {
			t.Errorf("entered %s, want %s", now, inside)
		}
	})
}

func TestBPFFSTakesPins(t *testing.T) {
	dir := BPFFS(t)
	if err := os.Mkdir(dir+"/x", 0o700); err != nil {
		t.Error(err)
	}
}
