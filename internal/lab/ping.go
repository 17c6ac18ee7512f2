package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
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

// Ping sends echo requests from inside the namespace. It sends each after the
// reply to the previous one, or its time-out. An error means that sending
// failed; loss shows in the result.
func (n *Namespace) Ping(ctx context.Context, to netip.Addr, o PingOptions) (PingResult, error) {
	o = o.withDefaults()
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return PingResult{}, fmt.Errorf("opening an ICMP socket in %s: %w", n.Name, err)
	}
	defer func() { _ = c.Close() }()
	if o.TTL > 0 {
		if err := ipv4.NewPacketConn(c).SetTTL(o.TTL); err != nil {
			return PingResult{}, fmt.Errorf("setting the TTL: %w", err)
		}
	}
	var r PingResult
	for seq := 1; seq <= o.Count && ctx.Err() == nil; seq++ {
		if err := o.one(c, to, seq, &r); err != nil {
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

func (o PingOptions) one(c net.PacketConn, to netip.Addr, seq int, r *PingResult) error {
	msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(o.ID), Seq: seq, Data: make([]byte, o.Size)}}
	raw, err := msg.Marshal(nil)
	if err != nil {
		return err
	}
	sent := time.Now()
	if _, err := c.WriteTo(raw, &net.IPAddr{IP: to.AsSlice()}); err != nil {
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
		switch m, err := icmp.ParseMessage(protoICMP, buf[:n]); {
		case err != nil:
		case m.Type == ipv4.ICMPTypeEchoReply:
			if e, ok := m.Body.(*icmp.Echo); ok && e.ID == int(o.ID) && e.Seq == seq && addr.Unmap() == to {
				r.Received++
				r.RTT = append(r.RTT, time.Since(sent))
				return nil
			}
		case aboutEcho(m, o.ID, seq):
			r.Errors = append(r.Errors, addr.Unmap())
			return nil
		}
	}
}

// aboutEcho reports whether m is an error about our echo request.
func aboutEcho(m *icmp.Message, id uint16, seq int) bool {
	var data []byte
	switch b := m.Body.(type) {
	case *icmp.DstUnreach:
		data = b.Data
	case *icmp.TimeExceeded:
		data = b.Data
	case *icmp.PacketTooBig:
		data = b.Data
	}
	if len(data) < ipHdrLen {
		return false
	}
	hlen := int(data[0]&0xf) * 4
	if len(data) < hlen+icmpHdrLen {
		return false
	}
	e := data[hlen:]
	return e[0] == byte(ipv4.ICMPTypeEcho) && int(e[4])<<8|int(e[5]) == int(id) && int(e[6])<<8|int(e[7]) == seq
}
