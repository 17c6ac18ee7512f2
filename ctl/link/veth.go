package link

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// Veth describes a pair: one end here, the other here too or in another namespace.
type Veth struct {
	Name     string // of the end here
	Alias    string // of the end here
	Index    int    // ifindex of the end here, 0: the kernel chooses
	PeerName string
	PeerMAC  net.HardwareAddr
	PeerNS   *Netns // nil: here
	MTU      int    // bytes, both ends
	GSO      int    // of the end here, as SetGSO; 0: the kernel's
}

// CreateVeth makes the pair, both ends down. Returns the ifindexes of the end
// here and of the peer. An error wraps ErrExists if one of the names (or the
// index) is taken.
func (c *Conn) CreateVeth(v Veth) (index, peer int, err error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Index, a.GSOIPv4MaxSize = v.Name, v.MTU, v.Index, uint32(v.GSO)
	pair := &netlink.Veth{
		LinkAttrs: a,
		PeerName:  v.PeerName, PeerHardwareAddr: v.PeerMAC,
	}
	if v.PeerNS != nil {
		pair.PeerNamespace = netlink.NsFd(v.PeerNS.file.Fd())
	}
	if err := c.h.LinkAdd(pair); err != nil {
		return 0, 0, fmt.Errorf("creating %s: %w", v.Name, sentinel(err))
	}
	l, err := c.h.LinkByName(v.Name)
	if err != nil {
		return 0, 0, fmt.Errorf("creating %s: %w", v.Name, sentinel(err))
	}
	index, peer = l.Attrs().Index, l.Attrs().ParentIndex
	// The kernel takes no alias at creation.
	if err := c.SetAlias(index, v.Alias); err != nil {
		return index, peer, fmt.Errorf("marking %s: %w", v.Name, err)
	}
	return index, peer, nil
}
