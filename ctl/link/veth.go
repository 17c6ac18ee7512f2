package link

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// Veth describes a pair: one end in this namespace, its peer in this or another
// one.
type Veth struct {
	Name     string // of this end
	Alias    string // of this end
	Index    int    // ifindex of this end; 0: the kernel chooses
	PeerName string
	PeerMAC  net.HardwareAddr
	PeerNS   *Netns // nil: this namespace
	MTU      int    // bytes, both ends
}

// CreateVeth makes the pair, both ends down. It returns the ifindexes of this
// end and of the peer. The error wraps ErrExists if a name or the index is
// taken.
func (c *Conn) CreateVeth(v Veth) (index, peer int, err error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Index = v.Name, v.MTU, v.Index
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
	// The kernel accepts no alias at creation.
	if err := c.SetAlias(index, v.Alias); err != nil {
		return index, peer, fmt.Errorf("marking %s: %w", v.Name, err)
	}
	return index, peer, nil
}
