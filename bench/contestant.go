// Package bench compares ways to connect containers: fastbr and plain kernel
// bridges, in labs that differ only in the datapath.
//
// Contestants run in turn within each round (A B A B ...), so that other load
// on the machine affects all of them. The result is the median of the ratios of
// the rounds, with a bootstrap confidence interval. README.md beside this file
// says how to read the numbers. This package renders it.
package bench

import (
	"context"
	"errors"
	"os"

	"github.com/fastbr/fastbr/internal/lab"
)

// Contestant is one way to connect a lab's containers.
type Contestant interface {
	// Name is short: it heads a column and is a key in the results.
	Name() string
	// Describe is one line for the report.
	Describe() string
	// Options returns the options of the lab for Setup. Containers is always 2.
	Options() lab.Options
	// Setup connects the containers and sets their Addr. Teardown removes what
	// it makes outside the lab's namespaces.
	Setup(ctx context.Context, l *lab.Lab) error
	// Flows returns the number of flows that can be live at a time; 0: any
	// number.
	Flows() int
	// Paths returns the number of packets on each path. ok is false if there is
	// only one path.
	Paths(ctx context.Context, l *lab.Lab) (p Paths, ok bool, err error)
	// Teardown undoes Setup, even one that failed halfway. The lab is closed
	// afterwards.
	Teardown(ctx context.Context, l *lab.Lab) error
}

// Paths counts the packets of all ports in both directions since the start.
type Paths struct{ Fast, Slow uint64 }

// FastShare returns the share of fast packets between two readings. ok is false
// if there were no packets.
func (p Paths) FastShare(before Paths) (share float64, ok bool) {
	fast, slow := p.Fast-before.Fast, p.Slow-before.Slow
	if fast+slow == 0 {
		return 0, false
	}
	return float64(fast) / float64(fast+slow), true
}

// Build makes a lab for a contestant (two containers, a host and an outside)
// and sets the contestant up in it. Close undoes both. A failed Build leaves
// nothing.
func Build(ctx context.Context, c Contestant) (*lab.Lab, error) {
	o := c.Options()
	o.Containers = 2
	l, err := lab.New(ctx, o)
	if err != nil {
		return nil, err
	}
	err = c.Setup(ctx, l)
	if err == nil {
		// Conntrack would verify the generator's checksums. It does not do so for
		// packets of real containers, so that would flatter fastbr.
		err = l.Host.SetSysctl("net.netfilter.nf_conntrack_checksum", "0")
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, Close(c, l))
	}
	return l, nil
}
