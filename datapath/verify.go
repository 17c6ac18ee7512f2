package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"
)

// VerifyPort checks that a port is in the maps as AttachPort left it, except
// for Slow, and that its programs are attached. It changes nothing. The error
// wraps ErrDetached.
func (d *Datapath) VerifyPort(p Port) error {
	mac, err := mac6(p.MAC)
	if err != nil {
		return err
	}
	dev, ok, err := d.devs.device(p.Ifindex)
	if err != nil {
		return err
	}
	if !ok || dev.Flags&tcFbrDevFlagsFBR_DEV_PORT == 0 || dev.Ip != be32(p.IP) || dev.Mac != mac || dev.Bridge != uint32(p.Bridge) {
		return fmt.Errorf("port with ifindex %d: not in fbr_devs: %w", p.Ifindex, ErrDetached)
	}
	var owner uint32
	if err := d.maps.FbrHosts.Lookup(dev.Ip, &owner); err != nil || owner != dev.Ifindex {
		return fmt.Errorf("%s: not in fbr_hosts: %w", p.IP, ErrDetached)
	}
	fdb := tcFbrFdbKey{Mac: mac, Bridge: dev.Bridge}
	if err := d.maps.FbrFdb.Lookup(&fdb, &owner); err != nil || owner != dev.Ifindex {
		return fmt.Errorf("%s: not in fbr_fdb: %w", p.MAC, ErrDetached)
	}
	if err := d.allowed.verify(p); err != nil {
		return err
	}
	if err := d.devs.verifyAddr6(p, dev); err != nil {
		return err
	}
	return d.links.verifyLinks(dev)
}

// VerifyPublication checks that each port of a publication leads where Publish
// made it lead, and that the programs look for publications. It changes
// nothing. The error wraps ErrDetached.
func (d *Datapath) VerifyPublication(p Publication) error {
	o, err := d.families.of(p.Container)
	if err != nil {
		return fmt.Errorf("%w: %w", err, ErrDetached)
	}
	if err := o.pubs.verify(o, p); err != nil {
		return err
	}
	var conf tcFbrConf
	if err := d.maps.FbrConf.Lookup(uint32(0), &conf); err != nil {
		return fmt.Errorf("reading fbr_conf: %w", err)
	}
	if conf.Published == 0 {
		return fmt.Errorf("publications are off in fbr_conf: %w", ErrDetached)
	}
	return nil
}

// seenOfUplink are the flags of an uplink that the programs set themselves.
const seenOfUplink = tcFbrDevFlagsFBR_DEV_QUEUES | tcFbrDevFlagsFBR_DEV_WAYS | tcFbrDevFlagsFBR_DEV_WAYS6

// VerifyUplink checks the same for an uplink, as AttachUplink left it, except
// for Closed and Closed6.
func (d *Datapath) VerifyUplink(u Uplink) error {
	if err := d.HasUplink(u); err != nil {
		return err
	}
	return d.links.verifyLinks(d.families.uplink(u))
}

// HasUplink is VerifyUplink without a look at the programs.
func (d *Datapath) HasUplink(u Uplink) error {
	dev, ok, err := d.devs.device(u.Ifindex)
	if err != nil {
		return err
	}
	want := d.families.uplink(u)
	const closed = tcFbrDevFlagsFBR_DEV_CLOSED | tcFbrDevFlagsFBR_DEV_CLOSED6
	dev.Stats, dev.Flags, want.Flags = 0, dev.Flags&^(seenOfUplink|closed), want.Flags&^closed
	if !ok || dev != want {
		return fmt.Errorf("uplink with ifindex %d: not in fbr_devs: %w", u.Ifindex, ErrDetached)
	}
	return nil
}

// Unpinned returns those of the ports and uplinks, by ifindex, of which a
// program's link has lost its pin: the program is detached then. It reads one
// directory for all. VerifyPort and VerifyUplink check more.
func (d *Datapath) Unpinned(devices []int) (out []int, err error) {
	if len(devices) == 0 {
		return nil, nil
	}
	pins, err := os.ReadDir(filepath.Join(d.dir, linksDir))
	if err != nil {
		return nil, fmt.Errorf("reading the links: %w", err)
	}
	there := make(map[string]bool, len(pins))
	for _, pin := range pins {
		there[pin.Name()] = true
	}
	for _, o := range d.families.loaded() {
		for _, ifindex := range devices {
			if there[o.link(ifindex, "in")] && there[o.link(ifindex, "out")] || slices.Contains(out, ifindex) {
				continue
			}
			if o.flag != 0 {
				if dev, _, err := d.devs.device(ifindex); err != nil {
					return nil, err
				} else if dev.Flags&o.flag == 0 {
					continue
				}
			}
			out = append(out, ifindex)
		}
	}
	return out, nil
}

// VerifyGuard checks that the links of AttachGuard are pinned. While they are pinned
// they are attached.
func (d *Datapath) VerifyGuard() error {
	names := []string{neighboursLink}
	for _, o := range d.families.loaded() {
		names = append(names, inputLink+o.suffix, guardLink+o.suffix, defragLink+o.suffix)
	}
	for _, name := range names {
		if _, err := os.Stat(linkPath(d.dir, name)); err != nil {
			return fmt.Errorf("link %s is not pinned: %w", name, ErrDetached)
		}
	}
	return nil
}

// verifyLinks checks that both programs of a device, of each family it has, are attached.
func (ls links) verifyLinks(dev tcFbrDev) error {
	for _, o := range ls.d.families.loaded() {
		if dev.Flags&o.flag != o.flag {
			continue
		}
		for _, hook := range []string{"in", "out"} {
			if err := ls.verifyLink(int(dev.Ifindex), o.link(int(dev.Ifindex), hook)); err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyLink checks that the link of a name is attached to a device.
func (ls links) verifyLink(ifindex int, name string) error {
	l, err := link.LoadPinnedLink(linkPath(ls.d.dir, name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("link %s is not pinned: %w", name, ErrDetached)
	} else if err != nil {
		return fmt.Errorf("opening link %s: %w", name, err)
	}
	info, err := l.Info()
	l.Close()
	if err != nil {
		return fmt.Errorf("reading link %s: %w", name, err)
	}
	at := 0
	if tcx := info.TCX(); tcx != nil {
		at = int(tcx.Ifindex)
	} else if xdp := info.XDP(); xdp != nil {
		at = int(xdp.Ifindex)
	}
	if at != ifindex {
		return fmt.Errorf("link %s is not attached any more: %w", name, ErrDetached)
	}
	return nil
}
