package link

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Shaped returns the devices that somebody put a queueing discipline or tc
// filters on, either of which a redirect would bypass.
func (c *Conn) Shaped() (map[int]bool, error) {
	list, err := dump(c.qdiscs)
	if err != nil {
		return nil, fmt.Errorf("listing queueing disciplines: %w", sentinel(err))
	}
	shaped := map[int]bool{}
	for _, q := range list {
		index := q.Attrs().LinkIndex
		switch q.Type() {
		case "noqueue":
		case "clsact", "ingress":
			filtered, err := c.filtered(index)
			if err != nil {
				return nil, err
			}
			shaped[index] = shaped[index] || filtered
		default:
			shaped[index] = true
		}
	}
	return shaped, nil
}

// qdiscs lists those of every device.
func (c *Conn) qdiscs() ([]netlink.Qdisc, error) { return c.h.QdiscList(nil) }

// filtered reports whether a clsact or ingress qdisc has a filter.
func (c *Conn) filtered(index int) (bool, error) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
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
