package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// XDPFeatures is the set of XDP features of a device's driver (enum
// netdev_xdp_act, include/uapi/linux/netdev.h).
type XDPFeatures uint64

const (
	// XDPNative: the driver can run programs.
	XDPNative XDPFeatures = 1
	// XDPTakes: the device transmits frames that programs of other devices
	// redirect to it. A veth that is up does so while its peer runs NAPI, because
	// of GRO or a program of its own.
	XDPTakes XDPFeatures = 4
)

// Constants of the generic netlink family "netdev", Linux 6.3.
const (
	netdevFamily       = "netdev"
	netdevDevGet       = 1
	netdevAttrIfindex  = 1
	netdevAttrFeatures = 3
)

// genlHeader is struct genlmsghdr: command, version and two reserved bytes. The
// library's type lacks the reserved bytes.
type genlHeader [nl.SizeofGenlmsg]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// XDP returns the XDP features of devices of the current namespace by ifindex.
// It leaves out devices that have none or do not exist. It asks for each device
// singly, because the kernel does not mark the parts of its listing as a
// multipart message.
func XDP(indexes ...int) (map[int]XDPFeatures, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return nil, fmt.Errorf("looking for the kernel's XDP features: %w", err)
	}
	sock, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("opening generic netlink: %w", err)
	}
	defer sock.Close()
	sockets := map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: sock}}
	out := map[int]XDPFeatures{}
	for _, index := range indexes {
		req := nl.NewNetlinkRequest(int(family.ID), 0)
		req.Sockets = sockets
		req.AddData(genlHeader{netdevDevGet, 1})
		req.AddData(nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(index))))
		msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil || len(msgs) != 1 {
			return nil, fmt.Errorf("reading XDP features: %d answers, %w", len(msgs), err)
		}
		attrs, err := nl.ParseRouteAttrAsMap(msgs[0][nl.SizeofGenlmsg:])
		if err != nil {
			return nil, fmt.Errorf("reading XDP features: %w", err)
		}
		if v := attrs[netdevAttrFeatures].Value; len(v) >= 8 && binary.NativeEndian.Uint64(v) != 0 {
			out[index] = XDPFeatures(binary.NativeEndian.Uint64(v))
		}
	}
	return out, nil
}
