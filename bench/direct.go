package bench

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/fastbr/fastbr/internal/lab"
)

// Direct is only a veth pair between the two containers: what two namespaces
// can do without a host between them. The second container is also the outside.
type Direct struct{}

// Name implements Contestant.
func (Direct) Name() string { return "direct" }

// Describe implements Contestant.
func (Direct) Describe() string {
	return "a bare veth pair between sender and receiver, in every direction"
}

// Options implements Contestant.
func (Direct) Options() lab.Options { return lab.Options{Private: []netip.Prefix{}} }

// Setup implements Contestant.
func (Direct) Setup(_ context.Context, l *lab.Lab) error {
	c := l.Containers
	if err := lab.Veth(c[0], device, c[1], device, 0); err != nil {
		return err
	}
	for i, n := range c {
		addr := netip.MustParsePrefix(fmt.Sprintf("172.30.0.%d/16", i+2))
		if err := n.AddAddr(device, addr); err != nil {
			return err
		}
		n.SetAddr(addr.Addr())
	}
	l.Outside = c[1]
	return nil
}

// Flows implements Contestant.
func (Direct) Flows() int { return 0 }

// Paths implements Contestant.
func (Direct) Paths(context.Context, *lab.Lab) (Paths, bool, error) { return Paths{}, false, nil }

// Teardown implements Contestant: everything is inside the lab.
func (Direct) Teardown(context.Context, *lab.Lab) error { return nil }
