package datapath

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// reassembly has fragments put in order before the programs see them.
type reassembly struct{ d *Datapath }

// AttachDefrag keeps defragmentation on in the current network namespace, to
// which inbound fragments are sent. The pinned link also keeps that namespace
// alive without a process or a mount, because a link holds a reference to its
// namespace. It replaces the link of an earlier namespace.
func (d *Datapath) AttachDefrag() error {
	return attachNetfilter(linkPath(d.dir, fragmentsLink), d.reassembly.defragOptions(), true)
}

// AttachFragments sends inbound fragments to ifindex from now on. ifindex is
// one end of a veth pair. The other end, with the MAC address peer, is in a
// namespace that forwards everything back (AttachDefrag). The error wraps
// ErrSlotTaken or ErrTooMany.
func (d *Datapath) AttachFragments(ifindex int, peer net.HardwareAddr) error {
	mac, err := mac6(peer)
	if err != nil {
		return err
	}
	dev := tcFbrDev{Ifindex: uint32(ifindex), Flags: tcFbrDevFlagsFBR_DEV_FRAGS, Mac: mac}
	if err := d.devs.putDevice(dev); err != nil {
		return err
	}
	if err := d.links.attachDevice(dev); err != nil {
		return errors.Join(err, d.devs.clearDevice(ifindex))
	}
	return d.reassembly.sendFragments(uint32(ifindex))
}

// DetachFragments undoes AttachFragments and AttachDefrag. It succeeds when
// nothing is attached. ifindex 0 means that no device was attached.
func (d *Datapath) DetachFragments(ifindex int) error {
	if err := d.reassembly.sendFragments(0); err != nil {
		return err
	}
	if ifindex != 0 {
		if err := errors.Join(d.links.detachDevice(ifindex), d.devs.clearDevice(ifindex)); err != nil {
			return err
		}
	}
	return detach(linkPath(d.dir, fragmentsLink))
}

// VerifyFragments checks that AttachDefrag and AttachFragments are in force.
// The error wraps ErrDetached.
func (d *Datapath) VerifyFragments(ifindex int) error {
	if _, err := os.Stat(linkPath(d.dir, fragmentsLink)); err != nil {
		return fmt.Errorf("link %s is not pinned: %w", fragmentsLink, ErrDetached)
	}
	dev, ok, err := d.devs.device(ifindex)
	if err != nil {
		return err
	}
	if !ok || dev.Flags&tcFbrDevFlagsFBR_DEV_FRAGS == 0 {
		return fmt.Errorf("device with ifindex %d: not in fbr_devs: %w", ifindex, ErrDetached)
	}
	return d.links.verifyLink(ifindex, deviceLink(ifindex, "in"))
}

func (ra reassembly) sendFragments(ifindex uint32) error {
	return ra.d.control.changeConf(func(c *tcFbrConf) error {
		c.Frags = ifindex
		return nil
	})
}
