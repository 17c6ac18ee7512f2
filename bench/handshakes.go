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

// Handshakes are complete TCP connections of a container to one server, at a
// fixed rate. BPF programs are both ends, so the rate is not limited by
// sockets. A segment that is lost, for instance in a queue of a busy machine,
// is sent again when the turn of its port comes again, some seconds later.
type Handshakes struct {
	Client, Server *lab.Namespace
	PerSecond      int
}

// Handshaken is the result of a run.
type Handshaken struct {
	Took time.Duration
	// Begun connections, and those completed from the client's and from the
	// server's view.
	Begun, Completed, Served uint64
	// Repeated is the number of segments that were sent again.
	Repeated uint64
	// Unfinished is the number of connections that were open at the server when
	// another came from the same port. Unexpected is the number of segments for
	// which no connection was waiting, above all resets.
	Unfinished, Unexpected uint64
}

// Failed returns the number of connections that did not complete from the view
// of either end.
func (h Handshaken) Failed() uint64 { return h.Begun - min(h.Begun, h.Completed, h.Served) }

const (
	handshakeBytes = 58 // the longest segment
	// handshakePorts is the number of the client's ports, which it uses in turn.
	handshakeFirst, handshakePorts = 1024, 1<<16 - 1024
	// handshakeTries is the number of further chances for the last connections.
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
	for r.Begun < uint64(n) { // a repeated segment begins no connection
		if _, err := l.pace(ctx, n-int(r.Begun), h.PerSecond); err != nil {
			return r, err
		}
		if err := errors.Join(r.read(&o), ctx.Err()); err != nil {
			return r, err
		}
	}
	r.Took = time.Since(begin)
	for i := 0; i < handshakeTries && r.Failed() > 0; i++ {
		time.Sleep(time.Second / 2) // for segments still on the way
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

// wireAddr returns an address as it lies in a packet.
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
