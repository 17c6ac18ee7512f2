package link

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Limit is a token bucket: Rate limits the average, Burst what passes at once.
type Limit struct {
	Rate  uint64 // bytes a second, not 0
	Burst uint64 // bytes
}

const (
	// shapeQueue is how long a packet may wait for tokens, in milliseconds. The
	// value is that of the reference bandwidth plugin.
	shapeQueue = 25
	// shapeFrames is the least number of frames that may wait. At low rates
	// shapeQueue is less than TCP's smallest window.
	shapeFrames = 24
	// ethernet is the length of an Ethernet header, in bytes.
	ethernet = 14
)

// tbf returns the queueing discipline for a limit on a device with this MTU.
// Its bucket holds at least two frames: a bucket smaller than a frame would let
// none pass.
func (l Limit) tbf(index, mtu int) *netlink.Tbf {
	frame := uint64(mtu + ethernet)
	burst := min(max(l.Burst, 2*frame), math.MaxInt32)
	queue := max(l.Rate/1000*shapeQueue, shapeFrames*frame)
	ticks := float64(burst) * netlink.TIME_UNITS_PER_SEC / float64(l.Rate) * netlink.TickInUsec()
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       l.Rate,
		Buffer:     uint32(min(ticks, math.MaxUint32)),
		Limit:      uint32(min(burst+queue, math.MaxUint32)),
	}
}

// Shape limits what a device sends. It fails if the device is already limited.
// mtu is the device's, in bytes.
func (c *Conn) Shape(index, mtu int, l Limit) error {
	if err := c.h.QdiscAdd(l.tbf(index, mtu)); err != nil {
		return fmt.Errorf("limiting the rate with tbf: %w", missing(err))
	}
	return nil
}

// ShapedBy reports whether Shape's limit is on the device.
func (c *Conn) ShapedBy(index, mtu int, l Limit) (bool, error) {
	list, err := dump(func() ([]netlink.Qdisc, error) { return c.h.QdiscList(ref(index)) })
	if err != nil {
		return false, fmt.Errorf("listing queueing disciplines: %w", sentinel(err))
	}
	want := l.tbf(index, mtu)
	for _, q := range list {
		if have, ok := q.(*netlink.Tbf); ok && have.Parent == want.Parent {
			return have.Rate == want.Rate && have.Buffer == want.Buffer && have.Limit == want.Limit, nil
		}
	}
	return false, nil
}

// CreateIFB makes a device that passes what was redirected to it on to where it
// came from: a queue for what another device receives. The device is down.
// CreateIFB returns its ifindex, or an error wrapping ErrExists.
func (c *Conn) CreateIFB(name, alias string, mtu int) (int, error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, mtu
	if err := c.h.LinkAdd(&netlink.Ifb{LinkAttrs: a}); err != nil {
		return 0, fmt.Errorf("creating %s: %w", name, missing(sentinel(err)))
	}
	d, err := c.ByName(name)
	if err != nil {
		return 0, fmt.Errorf("creating %s: %w", name, err)
	}
	if err := c.SetAlias(d.Index, alias); err != nil {
		return 0, fmt.Errorf("marking %s: %w", name, err)
	}
	return d.Index, nil
}

// RedirectReceived redirects everything that a device receives to an IFB, after
// the tcx programs have seen it.
func (c *Conn) RedirectReceived(from, ifb int) error {
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := c.h.QdiscAdd(q); err != nil {
		return fmt.Errorf("adding an ingress queue: %w", missing(err))
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: q.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(ifb)},
	}
	if err := c.h.FilterAdd(all); err != nil {
		return fmt.Errorf("redirecting to an ifb with u32 and mirred: %w", missing(err))
	}
	return nil
}

// RedirectsReceived reports whether the filter of RedirectReceived is there.
func (c *Conn) RedirectsReceived(from, ifb int) (bool, error) {
	list, err := dump(func() ([]netlink.Filter, error) { return c.h.FilterList(ref(from), netlink.MakeHandle(0xffff, 0)) })
	if err != nil {
		return false, fmt.Errorf("listing filters: %w", sentinel(err))
	}
	for _, f := range list {
		u, ok := f.(*netlink.U32)
		if !ok {
			continue
		}
		for _, a := range u.Actions {
			if m, ok := a.(*netlink.MirredAction); ok && m.Ifindex == ifb {
				return true, nil
			}
		}
	}
	return false, nil
}

// missing adds to an error that the kernel lacks the feature.
func missing(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("this kernel does not have it: %w", err)
	}
	return err
}
