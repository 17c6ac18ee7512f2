// Package link is the only package of fastbr that uses rtnetlink and network
// namespaces. It knows devices, addresses, routes and neighbours, and nothing
// of fastbr. Its interface is plain values: netip, net.HardwareAddr and
// interface indexes.
//
// A Conn works in the namespace in which it was opened, whatever the calling
// thread does later. Dumps that the kernel interrupted are repeated.
package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Sentinels of this package.
var (
	// ErrNotFound: no such device.
	ErrNotFound = errors.New("no such device")
	// ErrExists: a device with that name or index exists.
	ErrExists = errors.New("device exists")
	// ErrNotNetns: the path is not a network namespace.
	ErrNotNetns = errors.New("not a network namespace")
	// ErrTarget: the target is neither a path nor netns:NAME nor pid:N.
	ErrTarget = errors.New("malformed target")
	// ErrGone: the target (path, name or process) does not exist.
	ErrGone = errors.New("no such network namespace")
)

// Conn is a set of rtnetlink sockets in one network namespace.
type Conn struct {
	h *netlink.Handle
	// raw holds sockets for requests that the library cannot make.
	raw map[int]*nl.SocketHandle
}

// Open connects to the namespace of the calling thread.
func Open() (*Conn, error) {
	return open(netns.None(), "the current namespace")
}

// OpenIn connects to the namespace ns. It enters ns only for the socket call.
func OpenIn(ns *Netns) (*Conn, error) {
	return open(netns.NsHandle(ns.file.Fd()), ns.String())
}

func open(ns netns.NsHandle, where string) (*Conn, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink in %s: %w", where, err)
	}
	sock, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("opening rtnetlink in %s: %w", where, err)
	}
	// With strict checking the kernel filters dumps. Without it the library
	// filters the answers.
	_ = h.SetStrictCheck(true)
	raw := map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}
	return &Conn{h: h, raw: raw}, nil
}

// Close releases the sockets.
func (c *Conn) Close() {
	c.h.Close()
	for _, s := range c.raw {
		s.Close()
	}
}
