package fuzz

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestJudgeCondemns shows the judge frames that must not arrive, each with one thing
// wrong, and frames that may. A judge that condemns nothing would prove nothing.
func TestJudgeCondemns(t *testing.T) {
	inA := &container{a2, a2IP, a2MAC, a1IP, a1MAC, gwA, brAMAC, false, true}
	inB := &container{b2, b2IP, b2MAC, b1IP, b1MAC, gwB, brBMAC, true, false}
	out := &outside{o1, o1MAC, host0MAC, false}
	hostA, hostB := &bridge{netA, gwA, false}, &bridge{netB, gwB, true}
	m := func(srcMAC, dstMAC mac, src, dst netip.Addr, sport, dport uint16, s shape) []byte {
		k := &maker{src, dst, srcMAC, dstMAC, sport, dport, []byte("payload"), &decoder{}}
		etherType, l3 := s(k)
		if etherType == etherIPv4 {
			l3[8] = 64
			mend(l3, 0, false)
		}
		b := append(append([]byte(nil), dstMAC[:]...), srcMAC[:]...)
		return append(binary.BigEndian.AppendUint16(b, etherType), l3...)
	}
	with := func(b []byte, at int, v byte) []byte { b = bytes.Clone(b); b[at] ^= v; return b }
	tagged := func(b []byte) []byte { return slices.Insert(bytes.Clone(b), 12, 0x81, 0, 0, 0) }
	reply := m(brAMAC, a2MAC, server1, a2IP, echoPort, victimPort, udp)
	left := m(host0MAC, o1MAC, host0IP, server1, victimPort, echoPort, udp)
	quoting := m(host0MAC, o1MAC, host0IP, server1, echoPort, victimPort, icmpError)
	copy(quoting[14+20+8+16:], a2IP.AsSlice())
	mend(quoting[14:], 0, false)
	for _, c := range []struct {
		name  string
		see   func(*judge, lab.Tapped) error
		frame []byte
		why   string // "": it may be there
	}{
		{"a reply", inA.see, reply, ""},
		{"a reply to another port", inA.see, m(brAMAC, a2MAC, server1, a2IP, echoPort, ownPort, udp), "nothing to do"},
		{"a reply of another server", inA.see, m(brAMAC, a2MAC, server2, a2IP, echoPort, victimPort, udp), "nothing to do"},
		{"to the published port", inA.see, m(brAMAC, a2MAC, server2, a2IP, 1, servicePort, tcp(2)), ""},
		{"to another one", inA.see, m(brAMAC, a2MAC, server2, a2IP, 1, 22, tcp(2)), "nothing to do"},
		{"a ping", inA.see, m(brAMAC, a2MAC, server1, a2IP, 1, 1, echo(8)), "nothing to do"},
		{"an error about its own", inA.see, m(brAMAC, a2MAC, server1, a2IP, echoPort, victimPort, icmpError), ""},
		{"an error about another's", inA.see, m(brAMAC, a2MAC, server1, a2IP, echoPort, ownPort, icmpError), "nothing to do"},
		{"a wrong header", inA.see, with(reply, 24, 1), "header"},
		{"a wrong checksum", inA.see, with(reply, 40, 1), "checksum"},
		{"for the sibling", inA.see, m(brAMAC, a1MAC, server1, a2IP, echoPort, victimPort, udp), "somebody else"},
		{"from another network", inA.see, m(brAMAC, a2MAC, b1IP, a2IP, echoPort, victimPort, udp), "nothing to say"},
		{"a tag", inA.see, tagged(reply), "tagged"},
		{"a stranger", inA.see, m(o1MAC, a2MAC, server1, a2IP, echoPort, victimPort, udp), "stranger"},
		{"the sibling", inA.see, m(a1MAC, a2MAC, a1IP, a2IP, 1, 2, udp), ""},
		{"the sibling as the gateway", inA.see, m(a1MAC, a2MAC, gwA, a2IP, 1, 2, udp), "not that of who sent it"},
		{"the sibling's ARP", inA.see, m(a1MAC, a2MAC, a1IP, a2IP, 0, 0, arp(2)), ""},
		{"the sibling's ARP for the gateway", inA.see, m(a1MAC, a2MAC, gwA, a2IP, 0, 0, arp(2)), "it says"},
		{"the sibling's router advertisement", inA.see, m(a1MAC, a2MAC, a1IP, a2IP, 0, 0, advertisement6), "router"},
		{"another protocol", inA.see, m(a1MAC, a2MAC, a1IP, a2IP, 0, 0, other(0x88b5)), "ethertype"},
		{"outside in an internal network", inB.see, m(brBMAC, b2MAC, server1, b2IP, echoPort, victimPort, udp), "internal"},
		{"the host's other address there", inB.see, m(brBMAC, b2MAC, host0IP, b2IP, echoPort, victimPort, udp), "internal"},
		{"a packet that leaves", out.see, left, ""},
		{"a container's address outside", out.see, m(host0MAC, o1MAC, a2IP, server1, victimPort, echoPort, udp), "not the host's"},
		{"a foreign address outside", out.see, m(host0MAC, o1MAC, server2, server1, victimPort, echoPort, udp), "not the host's"},
		{"a container's MAC address outside", out.see, m(a2MAC, o1MAC, host0IP, server1, victimPort, echoPort, udp), "MAC"},
		{"to where nothing may go", out.see, m(host0MAC, o1MAC, host0IP, forbidden, victimPort, echoPort, udp), "destination"},
		{"to a container's address outside", out.see, m(host0MAC, o1MAC, host0IP, a1IP, victimPort, echoPort, udp), "destination"},
		{"a wrong header outside", out.see, with(left, 24, 1), "header"},
		{"a wrong checksum outside", out.see, with(left, 40, 1), "checksum"},
		{"a quoted address outside", out.see, quoting, "quotes"},
		{"ARP about a container", out.see, m(host0MAC, o1MAC, a2IP, o1IP, 0, 0, arp(1)), "host"},
		{"IPv6 outside", out.see, m(host0MAC, o1MAC, a2IP, o1IP, 0, 0, udp6), "IPv4"},
		{"a tunnel", out.see, m(host0MAC, o1MAC, host0IP, server1, 0, 0, inIP(47)), ""},
		{"a container's tunnel", out.see, m(host0MAC, o1MAC, a2IP, server1, 0, 0, inIP(47)), "not the host's"},
		{"a stranger's tunnel", inA.see, m(brAMAC, a2MAC, server1, a2IP, 0, 0, inIP(47)), "nothing to do"},
		{"to the host", hostA.see, m(a1MAC, brAMAC, a1IP, host0IP, 1, 2, udp), ""},
		{"to another network", hostA.see, m(a1MAC, brAMAC, a1IP, b1IP, 1, 2, udp), "another network"},
		{"in another's name", hostA.see, m(a1MAC, brAMAC, a2IP, host0IP, 1, 2, udp), "not that of who sent it"},
		{"out of an internal network", hostB.see, m(b1MAC, allMAC, b1IP, host0IP, 1, 2, udp), "internal"},
		{"to an internal gateway", hostB.see, m(b1MAC, brBMAC, b1IP, gwB, 1, 2, udp), ""},
	} {
		j := newJudge()
		sent := m(a2MAC, brAMAC, a2IP, server1, victimPort, echoPort, udp)
		if err := inA.see(j, lab.Tapped{Frame: sent, Sent: true}); err != nil {
			t.Fatal(err)
		}
		err := c.see(j, lab.Tapped{Frame: c.frame})
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.name, err, c.why)
		}
	}
}

// TestJudgeKnowsPayloads: a packet with a mark must arrive as it was sent, and only
// where its sender may be heard.
func TestJudgeKnowsPayloads(t *testing.T) {
	j := newJudge()
	out := &outside{o1, o1MAC, host0MAC, false}
	translated := func(b []byte, src netip.Addr) []byte {
		b = bytes.Clone(b)
		copy(b, o1MAC[:])
		copy(b[6:], host0MAC[:])
		copy(b[26:], src.AsSlice())
		mend(b[14:], 0, false)
		return b
	}
	honest := decode([]byte{byte(a1)}, 1, j.mark)[0]
	inner := decode([]byte{byte(b1), 0, 0, 0, 11}, 2, j.mark)[0]
	wrong := decode([]byte{byte(a1), 0, 0, 0, 0, 0, wrongL4Sum}, 3, j.mark)[0]
	for _, s := range []shot{honest, inner, wrong} {
		j.tell(s)
	}
	see := func(b []byte) error { return out.see(j, lab.Tapped{Frame: b}) }
	if err := see(translated(honest.frame, host0IP)); err != nil {
		t.Error(err)
	}
	changed := bytes.Clone(honest.frame)
	changed[len(changed)-1] ^= 1
	if err := see(translated(changed, host0IP)); err == nil || !strings.Contains(err.Error(), "payload") {
		t.Errorf("a changed payload: %v", err)
	}
	if err := see(translated(inner.frame, host0IP)); err == nil || !strings.Contains(err.Error(), "b1") {
		t.Errorf("an internal container's payload outside: %v", err)
	}
	as := func(sum uint16) []byte {
		b := bytes.Clone(wrong.frame)
		p := parse(b)
		e, _ := p.ipv4().l4Error(false)
		b = translated(b, host0IP)
		field := b[40:42]
		binary.BigEndian.PutUint16(field, ^testutil.Sum(uint32(^binary.BigEndian.Uint16(field))+uint32(e)+uint32(sum), nil))
		return b
	}
	if err := see(as(0)); err != nil {
		t.Errorf("as wrong as it was: %v", err)
	}
	if err := see(as(0x0101)); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("another wrong checksum: %v", err)
	}
}
