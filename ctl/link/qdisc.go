package link

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tcaKind is TCA_KIND of include/uapi/linux/rtnetlink.h: the name of a queueing
// discipline.
const tcaKind = 1

// Queues returns the devices that have a queueing discipline, by ifindex. A
// device that has ever been up has one, if only "noqueue". The value reports
// whether it has another qdisc or a tc filter: a redirect would bypass either.
// This is the shortest listing of devices that the kernel gives.
func (c *Conn) Queues() (map[int]bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETQDISC, unix.NLM_F_DUMP)
	req.AddData(&nl.TcMsg{})
	var (
		shaped map[int]bool
		hooks  []int // with a clsact or ingress qdisc, which may be empty
	)
	err := c.walk(req, func() { shaped, hooks = map[int]bool{}, nil }, func(m []byte) error {
		if len(m) < nl.SizeofTcMsg {
			return fmt.Errorf("a message of %d bytes", len(m))
		}
		index := int(nl.DeserializeTcMsg(m).Ifindex)
		for kind, value := range attributes(m[nl.SizeofTcMsg:]) {
			if kind != tcaKind {
				continue
			}
			name := text(value)
			if name == "clsact" || name == "ingress" {
				hooks = append(hooks, index)
			} else {
				shaped[index] = shaped[index] || name != "noqueue"
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing queueing disciplines: %w", err)
	}
	for _, index := range hooks {
		filtered, err := c.filtered(index, bothWays...)
		if err != nil {
			return nil, err
		}
		shaped[index] = shaped[index] || filtered
	}
	return shaped, nil
}

// bothWays are the two places of a clsact qdisc. An ingress qdisc has the first.
var bothWays = []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS}

// filtered reports whether a clsact or ingress qdisc has a filter in one of the places.
func (c *Conn) filtered(index int, parents ...uint32) (bool, error) {
	for _, parent := range parents {
		list, err := dump(func() ([]netlink.Filter, error) { return c.h.FilterList(ref(index), parent) })
		if err != nil {
			return false, fmt.Errorf("listing filters: %w", sentinel(err))
		}
		if len(list) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// Queueing returns what makes Queues report true for a device: the kinds of its
// queueing disciplines ("tbf"), and "filter" for tc filters.
func (c *Conn) Queueing(index int) (kinds []string, err error) {
	list, err := dump(func() ([]netlink.Qdisc, error) { return c.h.QdiscList(ref(index)) })
	if err != nil {
		return nil, fmt.Errorf("listing queueing disciplines: %w", sentinel(err))
	}
	for _, q := range list {
		if t := q.Type(); t != "noqueue" && t != "clsact" && t != "ingress" && !slices.Contains(kinds, t) {
			kinds = append(kinds, t)
		}
	}
	filtered, err := c.filtered(index, bothWays...)
	if filtered {
		kinds = append(kinds, "filter")
	}
	return kinds, err
}

// classful are the queueing disciplines that sort packets into classes by filters.
var classful = []string{"drr", "ets", "hfsc", "htb", "multiq", "prio", "qfq", "sfb"}

// Sorting returns what on a device needs packets as the kernel's path makes them: the
// kinds of its classful queueing disciplines ("htb"), and "ingress filter" for tc filters
// on what comes in.
func (c *Conn) Sorting(index int) ([]string, error) {
	kinds, err := c.Queueing(index)
	if err != nil {
		return nil, err
	}
	kinds = slices.DeleteFunc(kinds, func(k string) bool { return !slices.Contains(classful, k) })
	filtered, err := c.filtered(index, netlink.HANDLE_MIN_INGRESS)
	if filtered {
		kinds = append(kinds, "ingress filter")
	}
	return kinds, err
}
