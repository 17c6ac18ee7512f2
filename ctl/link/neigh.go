package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AddFDB pins mac to the bridge port with a static entry: it does not age, and
// does not move when another port sends with the same address. (The "permanent"
// of bridge(8) means an address of the host itself.)
func (c *Conn) AddFDB(port int, mac net.HardwareAddr) error {
	err := c.h.NeighSet(&netlink.Neigh{
		LinkIndex: port, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("adding forwarding entry %s: %w", mac, sentinel(err))
	}
	return nil
}

// AddNeighbour sets a permanent neighbour on the device.
func (c *Conn) AddNeighbour(index int, ip netip.Addr, mac net.HardwareAddr) error {
	n := neighbour(index, ip)
	n.State, n.HardwareAddr = netlink.NUD_PERMANENT, mac
	if err := c.h.NeighSet(n); err != nil {
		return fmt.Errorf("adding neighbour %s: %w", ip, sentinel(err))
	}
	return nil
}

// DeleteNeighbour removes the entry. It succeeds when there is none.
func (c *Conn) DeleteNeighbour(index int, ip netip.Addr) error {
	err := c.h.NeighDel(neighbour(index, ip))
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(sentinel(err), ErrNotFound) {
		return nil
	}
	return fmt.Errorf("deleting neighbour %s: %w", ip, err)
}

// DropUnresolved deletes the device's incomplete neighbour entries, and with
// them the packets that wait for resolution.
func (c *Conn) DropUnresolved(index int) error {
	all, err := c.neighbours(netlink.Ndmsg{})
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.LinkIndex != index || n.State&netlink.NUD_INCOMPLETE == 0 {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok {
			if err := c.DeleteNeighbour(index, ip.Unmap()); err != nil {
				return err
			}
		}
	}
	return nil
}

// neighbourMessages lists the neighbours of all devices, or those of a kind: a family, or
// flags such as NTF_PROXY. The library's own call leaves the padding of its request
// uninitialised, and strict checking rejects it.
func neighbourMessages(c *Conn, kind netlink.Ndmsg) ([][]byte, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.Sockets = c.raw // without strict checking
		req.AddData(&kind)
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	})
	if err != nil {
		return nil, fmt.Errorf("listing neighbours: %w", sentinel(err))
	}
	return msgs, nil
}

// neighbours are the IPv4 and IPv6 ones of neighbourMessages.
func (c *Conn) neighbours(kind netlink.Ndmsg) ([]netlink.Neigh, error) {
	msgs, err := neighbourMessages(c, kind)
	if err != nil {
		return nil, err
	}
	var all []netlink.Neigh
	for _, m := range msgs {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return nil, fmt.Errorf("reading a neighbour: %w", err)
		}
		if n.Family == unix.AF_INET || n.Family == unix.AF_INET6 {
			all = append(all, *n)
		}
	}
	return all, nil
}

func neighbour(index int, ip netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: int(FamilyOf(ip)), IP: ip.AsSlice()}
}
