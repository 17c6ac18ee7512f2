package bench

import (
	"context"
	"errors"
	"os"

	"github.com/fastbr/fastbr/internal/lab"
)

// Contestant is one way to connect the containers of a lab.
type Contestant interface {
	// Name is short: a column's head and a key in the results.
	Name() string
	// Describe is one line for the report.
	Describe() string
	// Options of the lab that Setup gets; Containers is always 2.
	Options() lab.Options
	// Setup connects the containers; their Addr must be set afterwards. What it
	// makes outside of the lab's namespaces, Teardown removes.
	Setup(ctx context.Context, l *lab.Lab) error
	// Flows is how many can be live at a time; 0: any number.
	Flows() int
	// Paths reads how many packets took which way; ok is false where there is
	// only one.
	Paths(ctx context.Context, l *lab.Lab) (p Paths, ok bool, err error)
	// Teardown undoes Setup, also half of it. The lab is closed afterwards.
	Teardown(ctx context.Context, l *lab.Lab) error
}

// Paths counts packets of all ports, both directions, since the start.
type Paths struct{ Fast, Slow uint64 }

// FastShare is the share of fast packets between two readings; ok is false if
// there were none at all.
func (p Paths) FastShare(before Paths) (share float64, ok bool) {
	fast, slow := p.Fast-before.Fast, p.Slow-before.Slow
	if fast+slow == 0 {
		return 0, false
	}
	return float64(fast) / float64(fast+slow), true
}

// Build makes a lab for a contestant, two containers, a host and an outside,
// and sets the contestant up in it. Close undoes both; nothing is left after a
// failure.
func Build(ctx context.Context, c Contestant) (*lab.Lab, error) {
	o := c.Options()
	o.Containers = 2
	l, err := lab.New(ctx, o)
	if err != nil {
		return nil, err
	}
	err = c.Setup(ctx, l)
	if err == nil {
		// Conntrack would verify the generator's checksums, which it need not do
		// with a container's own packets: that would flatter fastbr.
		err = l.Host.SetSysctl("net.netfilter.nf_conntrack_checksum", "0")
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, Close(c, l))
	}
	return l, nil
}
