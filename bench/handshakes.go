package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/fastbr/fastbr/internal/lab"
)

// Handshakes are whole TCP connections of a container to one server, so many a
// second. Programs are both ends, so that the rate is not that of sockets. What
// gets lost, as in a queue of a machine with other things to do, is sent again
// when the port's turn comes again, some seconds later.
type Handshakes struct {
	Client, Server *lab.Namespace
	PerSecond      int
}

// Handshaken is what has become of them.
type Handshaken struct {
	Took time.Duration
	// Begun, and completed as the client and as the server have seen it.
	Begun, Completed, Served uint64
	// Repeated are segments that were sent again.
	Repeated uint64
	// Unfinished are connections that the server knew open when another came
	// from the same port. Unexpected are segments that no connection was waiting
	// for, resets above all.
	Unfinished, Unexpected uint64
}

// Failed is how many connections did not complete, as either end has seen it.
func (h Handshaken) Failed() uint64 { return h.Begun - min(h.Begun, h.Completed, h.Served) }

const (
	handshakeBytes = 58 // the longest segment
	// handshakePorts are the client's, one after the other.
	handshakeFirst, handshakePorts = 1024, 1<<16 - 1024
	// handshakeTries is how often the last connections get another chance.
	handshakeTries = 3
)

// Run makes n connections.
func (h Handshakes) Run(ctx context.Context, n int) (r Handshaken, err error) {
	var o connObjects
	if err := h.load(ctx, n, &o); err != nil {
		return r, fmt.Errorf("loading the ends of connections: %w", err)
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	links, err := h.attach(&o)
	defer func() {
		for _, l := range links {
			err = errors.Join(err, l.Close())
		}
	}()
	if err != nil {
		return r, err
	}
	l := live{from: h.Client, prog: o.FbrConnGenerate, size: handshakeBytes}
	begin := time.Now()
	for r.Begun < uint64(n) { // what was sent again began nothing
		if _, err := l.pace(ctx, n-int(r.Begun), h.PerSecond); err != nil {
			return r, err
		}
		if err := errors.Join(r.read(&o), ctx.Err()); err != nil {
			return r, err
		}
	}
	r.Took = time.Since(begin)
	for i := 0; i < handshakeTries && r.Failed() > 0; i++ {
		time.Sleep(time.Second / 2) // for what is still on the way
		if _, err := l.pace(ctx, handshakePorts, 10*h.PerSecond); err != nil {
			return r, err
		}
		if err := r.read(&o); err != nil {
			return r, err
		}
	}
	return r, ctx.Err()
}

func (h Handshakes) load(ctx context.Context, n int, o *connObjects) error {
	gateway, err := h.Client.NextHop(ctx, h.Server.Addr)
	if err != nil {
		return err
	}
	mac, err := h.Client.MAC(device)
	if err != nil {
		return err
	}
	index, err := h.Client.Index(device)
	if err != nil {
		return err
	}
	spec, err := loadConn()
	if err != nil {
		return err
	}
	var vars connVariableSpecs
	if err := spec.Assign(&vars); err != nil {
		return err
	}
	if err := errors.Join(
		vars.CfgClientMac.Set([6]byte(mac)),
		vars.CfgGatewayMac.Set([6]byte(gateway)),
		vars.CfgClient.Set(wireAddr(h.Client.Addr)),
		vars.CfgServer.Set(wireAddr(h.Server.Addr)),
		vars.CfgServerPort.Set(binary.NativeEndian.Uint16([]byte{connPort >> 8, connPort & 0xff})),
		vars.CfgFirstPort.Set(uint16(handshakeFirst)),
		vars.CfgPorts.Set(uint32(handshakePorts)),
		vars.CfgIfindex.Set(uint32(index)),
		vars.CfgTotal.Set(uint64(n)),
	); err != nil {
		return err
	}
	return spec.LoadAndAssign(o, nil)
}

// wireAddr is an address as it lies in a packet.
func wireAddr(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func (h Handshakes) attach(o *connObjects) (links []link.Link, err error) {
	client, err := h.Client.Index(device)
	if err != nil {
		return nil, err
	}
	server, err := h.Server.Index(device)
	if err != nil {
		return nil, err
	}
	for _, a := range []struct {
		at      *lab.Namespace
		ifindex int
		prog    *ebpf.Program
	}{{h.Server, server, o.FbrConnServerIn}, {h.Client, client, o.FbrConnClientIn}, {h.Client, loopback, o.FbrConnSend}} {
		l, err := attachTCX(a.at, a.ifindex, a.prog)
		if err != nil {
			return links, err
		}
		links = append(links, l)
	}
	return links, nil
}

func (h *Handshaken) read(o *connObjects) error {
	err := errors.Join(o.Begun.Get(&h.Begun), o.Completed.Get(&h.Completed), o.Served.Get(&h.Served), o.Repeated.Get(&h.Repeated),
		o.Unfinished.Get(&h.Unfinished), o.Unexpected.Get(&h.Unexpected))
	if err != nil {
		return fmt.Errorf("reading the counters of connections: %w", err)
	}
	return nil
}
