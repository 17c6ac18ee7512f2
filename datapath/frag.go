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
// which inbound fragments are sent: for both families, as far as the kernel has
// them, whether or not a network has IPv6 yet. The pinned links also keep that namespace
// alive without a process or a mount, because a link holds a reference to its
// namespace. They replace the links of an earlier namespace.
func (d *Datapath) AttachDefrag() (err error) {
	for _, f := range []family{inet4, inet6} {
		if _, none := os.Stat(f.sysctls); errors.Is(none, os.ErrNotExist) {
			continue
		}
		err = errors.Join(err, attachNetfilter(linkPath(d.dir, fragmentsLink+f.suffix), d.reassembly.defragOptions(f), true))
	}
	return err
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
	dev := d.reassembly.device(tcFbrDev{Ifindex: uint32(ifindex), Flags: tcFbrDevFlagsFBR_DEV_FRAGS, Mac: mac})
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
	return errors.Join(detach(linkPath(d.dir, fragmentsLink)), detach(linkPath(d.dir, fragmentsLink+inet6.suffix)))
}

// device returns the entry of the device that leads to the namespace, with the flag for
// IPv6 if a network has it and the namespace puts IPv6 fragments in order: one that an
// older build made does not.
func (ra reassembly) device(dev tcFbrDev) tcFbrDev {
	if _, err := os.Stat(linkPath(ra.d.dir, fragmentsLink+inet6.suffix)); err == nil && ra.d.six != nil {
		dev.Flags |= inet6.flag
	}
	return dev
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
	for _, o := range d.families.loaded() {
		if dev.Flags&o.flag != o.flag {
			return fmt.Errorf("device with ifindex %d: %s fragments: %w", ifindex, o.name, ErrDetached)
		}
		if err := d.links.verifyLink(ifindex, o.link(ifindex, "in")); err != nil {
			return err
		}
	}
	return nil
}

func (ra reassembly) sendFragments(ifindex uint32) error {
	return ra.d.control.changeConf(func(c *tcFbrConf) error {
		c.Frags = ifindex
		return nil
	})
}
