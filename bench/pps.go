package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// PPS is small UDP packets as fast as one core can generate, forward and count
// them. They leave the sender by its eth0, without a socket or a stack.
type PPS struct {
	Direction Direction
	// Flows is the number of concurrent flows; 0: one. More than one need a
	// direction in which the sender can open flows.
	Flows int
	// IPv6 is the family; the frames have 64 bytes in both.
	IPv6 bool
	// opening is the time in which the flows begin; 0: as fast as they can.
	opening time.Duration
}

// Ports of the flows. NATs forget flows to an answering low port sooner.
const (
	ppsSourcePort = 20000
	ppsServerPort = 40000
	// ppsSourcePorts is the number of source ports. Each takes one of the NAT's
	// external ports, whatever the number of destinations.
	ppsSourcePorts = 1000
)

// Name implements Workload.
func (p PPS) Name() string {
	name := [...]string{"pps-c2c", "pps-c2o", "pps-o2c"}[p.Direction]
	switch {
	case p.Flows >= 1_000_000:
		name += fmt.Sprintf("-%dm", p.Flows/1_000_000)
	case p.Flows >= 1000:
		name += fmt.Sprintf("-%dk", p.Flows/1000)
	}
	return ipv6Text(name, p.IPv6, ipv6)
}

// Title implements Workload.
func (p PPS) Title() string {
	title := "UDP, 64 bytes, " + p.Direction.String()
	if p.Flows > 1 {
		title += ", " + thousands(p.Flows) + " flows"
	}
	return ipv6Text(title, p.IPv6, ", IPv6")
}

// thousands formats a number with commas.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// Unit implements Workload.
func (p PPS) Unit() string { return mpps }

// mpps is the unit of PPS: million frames received a second.
const mpps = "Mpps"

// Run implements Workload.
func (p PPS) Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error) {
	from, to := l.Containers[0], l.Outside
	switch p.Direction {
	case ContainerToContainer:
		to = l.Containers[1]
	case OutsideToContainer:
		from, to = to, from
	}
	s, err := p.stream(ctx, from, to)
	if err != nil {
		return Sample{}, err
	}
	r, err := s.run(ctx, from, to, d, func(g *generator) error { return p.open(ctx, g) }, start)
	if err != nil {
		return Sample{}, err
	}
	lost := 1 - float64(r.received)/float64(r.sent)
	sample := Sample{Value: float64(r.received) / r.took.Seconds() / 1e6, Lost: &lost}
	if r.received == 0 {
		return sample, errors.New("no frame arrived")
	}
	return sample, nil
}

// stream returns the stream from from to to, with its addresses.
func (p PPS) stream(ctx context.Context, from, to *lab.Namespace) (s stream, err error) {
	flows := max(1, p.Flows)
	src, dst := addrIn(from, p.IPv6), addrIn(to, p.IPv6)
	s = stream{
		src: netip.AddrPortFrom(src, ppsSourcePort), dst: netip.AddrPortFrom(dst, ppsServerPort),
		sports: min(flows, ppsSourcePorts), dports: max(1, flows/ppsSourcePorts), arriveAt: dst,
	}
	if p.Direction == OutsideToContainer {
		s.src = netip.AddrPortFrom(src, ppsServerPort)
		if s.dst, err = openInside(ctx, to, from, s.src); err != nil {
			return s, err
		}
	}
	err = s.aim(ctx, from)
	return s, err
}

// openInside makes inside open a flow to a socket of outside. It returns the
// source address that outside saw.
func openInside(ctx context.Context, inside, outside *lab.Namespace, at netip.AddrPort) (netip.AddrPort, error) {
	server, err := outside.ServeUDPEcho(at)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer server.Close()
	c, err := inside.ListenUDP(netip.AddrPortFrom(addrIn(inside, at.Addr().Is6()), ppsSourcePort))
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = c.Close() }()
	if err := lab.EchoUDPOn(ctx, c, at, "open"); err != nil {
		return netip.AddrPort{}, err
	}
	for seen := range server.Peers() {
		return seen, nil
	}
	return netip.AddrPort{}, fmt.Errorf("%s saw nobody", outside.Name)
}

// leaseTime is fastbr's default lease: each flow renews its lease once in that
// time.
const leaseTime = 10 * time.Second

// leasedBy returns the workload for a contestant. If the contestant has leases,
// many flows open spread over one lease time. So their leases are renewed a few
// at a time, as on a host that has been up for long.
func (p PPS) leasedBy(c Contestant) PPS {
	if _, ok := c.(Fastbr); ok {
		p.opening = leaseTime
	}
	return p
}

// open begins every flow and warms up everything else. At the end every flow
// sends once more: a continuous flow would have renewed a lease that ended
// meanwhile.
func (p PPS) open(ctx context.Context, g *generator) error {
	if p.Flows <= 1 {
		return g.send(burst)
	}
	const steps = 100
	for range steps {
		next := time.Now().Add(p.opening / steps)
		if err := g.send(p.Flows/steps + 1); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(next)):
		}
	}
	return g.send(p.Flows)
}
