package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// xdpHook names the link of an uplink's XDP program.
const xdpHook = "xdp"

// AttachXDP attaches fbr_uplink_xdp to an uplink, in native mode only. It
// updates an existing link and replaces one whose device is gone. The error
// wraps ErrXDPTaken, or ErrNotSupported if the driver has no XDP.
func (d *Datapath) AttachXDP(ifindex int) error {
	return d.links.attachLink(deviceLink(ifindex, xdpHook), d.progs.FbrUplinkXdp, func() (link.Link, error) {
		l, err := link.AttachXDP(link.XDPOptions{Program: d.progs.FbrUplinkXdp, Interface: ifindex, Flags: link.XDPDriverMode})
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
			return nil, fmt.Errorf("%w: %w", ErrXDPTaken, err)
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
			return nil, fmt.Errorf("%w: %w", ErrNotSupported, err)
		case err != nil:
			return nil, fmt.Errorf("attaching XDP to ifindex %d: %w", ifindex, err)
		}
		return l, nil
	})
}

// DetachXDP removes what AttachXDP attached. It succeeds when nothing is
// attached or the device is gone.
func (d *Datapath) DetachXDP(ifindex int) error {
	return detach(linkPath(d.dir, deviceLink(ifindex, xdpHook)))
}

// VerifyXDP checks that fbr_uplink_xdp is attached to an uplink. The error
// wraps ErrDetached.
func (d *Datapath) VerifyXDP(ifindex int) error {
	return d.links.verifyLink(ifindex, deviceLink(ifindex, xdpHook))
}

// updateXDP puts the current program on an uplink that has an older one.
func (ls links) updateXDP(ifindex int) error {
	if _, err := os.Stat(linkPath(ls.d.dir, deviceLink(ifindex, xdpHook))); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return ls.d.AttachXDP(ifindex)
}
