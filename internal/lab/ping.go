package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// PingOptions are the options of a series of echo requests.
type PingOptions struct {
	// Count is the number of requests; 0: 3.
	Count int
	// Size of the payload in bytes; 0: 56, as ping(8).
	Size int
	// TTL of the requests; 0: the kernel's.
	TTL int
	// ID of the requests; 0: a constant.
	ID uint16
	// Wait bounds the wait for each reply; 0: one second.
	Wait time.Duration
}

// PingResult is the result of a series.
type PingResult struct {
	Sent, Received int
	// RTT of each received reply.
	RTT []time.Duration
	// Errors are the senders of ICMP errors about the requests, in order.
	Errors []netip.Addr
}

const pingID = 0xfb

// echo is what a ping needs to know of a family.
type echo struct {
	network        string // of Go's raw sockets
	proto          int
	request, reply icmp.Type
	setTTL         func(net.PacketConn, int) error
	headerLen      func(ip []byte) int // in bytes
	minHeaderLen   int
}

var (
	echo4 = echo{"ip4:icmp", protoICMP, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply,
		func(c net.PacketConn, n int) error { return ipv4.NewPacketConn(c).SetTTL(n) },
		func(ip []byte) int { return int(ip[0]&0xf) * 4 }, ipHdrLen}
	echo6 = echo{"ip6:ipv6-icmp", protoICMPv6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply,
		func(c net.PacketConn, n int) error { return ipv6.NewPacketConn(c).SetHopLimit(n) },
		func([]byte) int { return ip6HdrLen }, ip6HdrLen}
)

// echoTo returns the echo of a's family.
func echoTo(a netip.Addr) *echo {
	if a.Is6() {
		return &echo6
	}
	return &echo4
}

// Ping sends echo requests from inside the namespace. It sends each after the
// reply to the previous one, or its time-out. An error means that sending
// failed; loss shows in the result.
func (n *Namespace) Ping(ctx context.Context, to netip.Addr, o PingOptions) (PingResult, error) {
	o = o.withDefaults()
	e := echoTo(to)
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = net.ListenPacket(e.network, unspecified(to).String())
		return err
	})
	if err != nil {
		return PingResult{}, fmt.Errorf("opening an ICMP socket in %s: %w", n.Name, err)
	}
	defer func() { _ = c.Close() }()
	if o.TTL > 0 {
		if err := e.setTTL(c, o.TTL); err != nil {
			return PingResult{}, fmt.Errorf("setting the TTL: %w", err)
		}
	}
	var r PingResult
	for seq := 1; seq <= o.Count && ctx.Err() == nil; seq++ {
		if err := o.one(e, c, to, seq, &r); err != nil {
			return r, fmt.Errorf("pinging %v from %s: %w", to, n.Name, err)
		}
	}
	return r, ctx.Err()
}

func (o PingOptions) withDefaults() PingOptions {
	if o.Count == 0 {
		o.Count = 3
	}
	if o.Size == 0 {
		o.Size = 56
	}
	if o.ID == 0 {
		o.ID = pingID
	}
	if o.Wait == 0 {
		o.Wait = time.Second
	}
	return o
}

func (o PingOptions) one(e *echo, c net.PacketConn, to netip.Addr, seq int, r *PingResult) error {
	msg := icmp.Message{Type: e.request, Body: &icmp.Echo{ID: int(o.ID), Seq: seq, Data: make([]byte, o.Size)}}
	raw, err := msg.Marshal(nil)
	if err != nil {
		return err
	}
	sent := time.Now()
	if _, err := c.WriteTo(raw, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()}); err != nil {
		return err
	}
	r.Sent++
	if err := c.SetReadDeadline(sent.Add(o.Wait)); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return nil //nolint:nilerr // a time-out is a lost reply
		}
		addr, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		switch m, err := icmp.ParseMessage(e.proto, buf[:n]); {
		case err != nil:
		case m.Type == e.reply:
			if b, ok := m.Body.(*icmp.Echo); ok && b.ID == int(o.ID) && b.Seq == seq && addr.Unmap() == to.WithZone("") {
				r.Received++
				r.RTT = append(r.RTT, time.Since(sent))
				return nil
			}
		case e.quotedBy(m, o.ID, seq):
			r.Errors = append(r.Errors, addr.Unmap())
			return nil
		}
	}
}

// quotedBy reports whether m is an error about our echo request.
func (e *echo) quotedBy(m *icmp.Message, id uint16, seq int) bool {
	var data []byte
	switch b := m.Body.(type) {
	case *icmp.DstUnreach:
		data = b.Data
	case *icmp.TimeExceeded:
		data = b.Data
	case *icmp.PacketTooBig:
		data = b.Data
	}
	if len(data) < e.minHeaderLen {
		return false
	}
	hlen := e.headerLen(data)
	if len(data) < hlen+icmpHdrLen {
		return false
	}
	want, err := (&icmp.Message{Type: e.request, Body: &icmp.Echo{ID: int(id), Seq: seq}}).Marshal(nil)
	q := data[hlen:]
	return err == nil && q[0] == want[0] && bytes.Equal(q[4:8], want[4:8])
}
