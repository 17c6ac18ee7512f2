package link

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Device is what fastbr needs to know about a network device.
type Device struct {
	Index    int
	Name     string
	Kind     string // "bridge", "veth", "device" (physical), …
	Alias    string // ifalias
	MAC      net.HardwareAddr
	MTU      int  // bytes
	Master   int  // ifindex of the bridge or bond it belongs to, 0: none
	Up       bool // administratively
	Carrier  bool // operationally
	Ethernet bool // ARPHRD_ETHER: frames carry an Ethernet header
	RawIP    bool // ARPHRD_NONE, ARPHRD_PPP: packets begin with the IP header (tun, WireGuard, ppp)
	Loopback bool
	// GSO is the largest IPv4 super-packet, in bytes, that SetGSO or the driver
	// has set. GSOMax is the largest that the driver supports, in bytes. GSOSegs
	// is the largest number of segments.
	GSO, GSOMax, GSOSegs int
	// Snooping: a bridge listens to membership reports.
	Snooping bool
}

func fromLink(l netlink.Link) Device {
	a := l.Attrs()
	b, isBridge := l.(*netlink.Bridge)
	return Device{
		Index: a.Index, Name: a.Name, Kind: l.Type(), Alias: a.Alias,
		MAC: a.HardwareAddr, MTU: a.MTU, Master: a.MasterIndex,
		Up:       a.Flags&net.FlagUp != 0,
		Carrier:  a.RawFlags&unix.IFF_LOWER_UP != 0 && a.OperState != netlink.OperDown,
		Ethernet: a.EncapType == "ether",
		RawIP:    a.EncapType == "none" || a.EncapType == "ppp",
		Loopback: a.Flags&net.FlagLoopback != 0,
		GSO:      int(a.GSOIPv4MaxSize), GSOMax: int(a.TSOMaxSize), GSOSegs: int(a.GSOMaxSegs),
		Snooping: isBridge && b.MulticastSnooping != nil && *b.MulticastSnooping,
	}
}

// ByName returns the device with a name. The error wraps ErrNotFound if there
// is none.
func (c *Conn) ByName(name string) (Device, error) {
	l, err := c.h.LinkByName(name)
	if err != nil {
		return Device{}, fmt.Errorf("%s: %w", name, sentinel(err))
	}
	return fromLink(l), nil
}

// ByIndex returns the device with an ifindex. The error wraps ErrNotFound if
// there is none.
func (c *Conn) ByIndex(index int) (Device, error) {
	l, err := c.h.LinkByIndex(index)
	if err != nil {
		return Device{}, fmt.Errorf("device with index %d: %w", index, sentinel(err))
	}
	return fromLink(l), nil
}

// Delete removes a device, and with a veth its peer. It succeeds when the
// device is gone.
func (c *Conn) Delete(index int) error {
	err := sentinel(c.h.LinkDel(ref(index)))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// DeleteAll removes devices as Delete does, but in one request: the kernel then
// waits for their last users once, not once per device. Nobody else can change
// devices meanwhile, so indexes should not be too many.
func (c *Conn) DeleteAll(indexes []int) error {
	if len(indexes) == 0 {
		return nil
	}
	if len(indexes) == 1 {
		return c.Delete(indexes[0])
	}
	// A random group, which nobody else uses: one of four billion.
	var b [4]byte
	rand.Read(b[:]) // never fails
	group := binary.NativeEndian.Uint32(b[:]) | 1
	for _, index := range indexes {
		err := sentinel(c.h.LinkSetGroup(ref(index), int(group)))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.Sockets = c.raw
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err = sentinel(err); errors.Is(err, ErrNotFound) {
		return nil // all were gone already
	}
	return err
}

// SetMAC changes the MAC address of a device.
func (c *Conn) SetMAC(index int, mac net.HardwareAddr) error {
	return sentinel(c.h.LinkSetHardwareAddr(ref(index), mac))
}

// SetUp sets a device up or down.
func (c *Conn) SetUp(index int, up bool) error {
	if up {
		return sentinel(c.h.LinkSetUp(ref(index)))
	}
	return sentinel(c.h.LinkSetDown(ref(index)))
}

// SetAlias sets the ifalias of a device.
func (c *Conn) SetAlias(index int, alias string) error {
	return sentinel(c.h.LinkSetAlias(ref(index), alias))
}

// SetMaster makes the device a port of the bridge.
func (c *Conn) SetMaster(index, bridge int) error {
	return sentinel(c.h.LinkSetMasterByIndex(ref(index), bridge))
}

// WaitCarrier waits until the device is operationally up, but no longer than limit. The
// kernel reports the carrier of a veth pair from a worker, a few milliseconds
// after the second end was set up. WaitCarrier reports whether the device came
// up in time.
func (c *Conn) WaitCarrier(index int, limit time.Duration) bool {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		l, err := c.h.LinkByIndex(index)
		if err == nil && l.Attrs().OperState == netlink.OperUp {
			return true
		}
		if err != nil || time.Now().After(end) {
			return false
		}
	}
}

// ref is the minimal link by which the library addresses a device.
func ref(index int) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Index = index
	return &netlink.Device{LinkAttrs: a}
}

// sentinel turns an error of the kernel or the library into this package's
// sentinel.
func sentinel(err error) error {
	var notFound netlink.LinkNotFoundError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &notFound), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ErrNotFound
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: %w", ErrExists, err)
	}
	return err
}
