package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// netfilterIPDefrag is BPF_F_NETFILTER_IP_DEFRAG of include/uapi/linux/bpf.h.
// (ebpf-go's constant of that name is 0, which has no effect.)
const netfilterIPDefrag = 1

// links attaches programs to devices and hooks, and pins what holds them there.
type links struct{ d *Datapath }

// attachTCX makes sure that a program of a family runs on a hook of ifindex, "in" or
// "out": that of IPv4 before all other programs, another right behind it. It updates an
// existing link in place and replaces a defunct one.
func (ls links) attachTCX(f family, ifindex int, hook string, prog *ebpf.Program) error {
	at := ebpf.AttachTCXIngress
	if hook == "out" {
		at = ebpf.AttachTCXEgress
	}
	return ls.attachLink(f.link(ifindex, hook), prog, func() (link.Link, error) {
		anchor := link.Head()
		if f.dir != "" {
			first, err := link.LoadPinnedLink(linkPath(ls.d.dir, inet4.link(ifindex, hook)), nil)
			if err != nil {
				return nil, fmt.Errorf("opening the link of the IPv4 program: %w", err)
			}
			defer first.Close()
			anchor = link.AfterLink(first)
		}
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: ifindex,
			Program:   prog,
			Attach:    at,
			Anchor:    anchor,
		})
		if err != nil {
			return nil, fmt.Errorf("attaching %s to ifindex %d: %w", prog.String(), ifindex, err)
		}
		return l, nil
	})
}

// attachLink makes sure that prog runs through the link pinned under name. If
// there is no link that it can update, attach makes one.
func (ls links) attachLink(name string, prog *ebpf.Program, attach func() (link.Link, error)) error {
	path := linkPath(ls.d.dir, name)
	l, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		err = l.Update(prog)
		closeErr := l.Close()
		if err == nil {
			return closeErr
		}
		if !errors.Is(err, unix.ENOLINK) { // the device is gone
			return fmt.Errorf("updating link %s: %w", name, err)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("unpinning defunct link %s: %w", name, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("opening link %s: %w", name, err)
	}
	if l, err = attach(); err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pinning link %s: %w", name, err), l.Close())
	}
	return l.Close()
}

// programsOf returns the names of a device's programs, according to its kind. A bridge has
// none.
func programsOf(dev tcFbrDev) (in, out string) {
	switch {
	case dev.Flags&tcFbrDevFlagsFBR_DEV_PORT != 0:
		return tcProgFbrPortIn, tcProgFbrPortOut
	case dev.Flags&tcFbrDevFlagsFBR_DEV_RAW_IP != 0:
		return tcProgFbrTunIn, tcProgFbrTunOut
	case dev.Flags&tcFbrDevFlagsFBR_DEV_UPLINK != 0:
		return tcProgFbrUplinkIn, tcProgFbrUplinkOut
	case dev.Flags&tcFbrDevFlagsFBR_DEV_FRAGS != 0:
		return tcProgFbrFragIn, ""
	}
	return "", ""
}

// attachDevice attaches the programs of a device; those for IPv6 where the device's flag
// says so.
func (ls links) attachDevice(dev tcFbrDev) error {
	in, out := programsOf(dev)
	for _, o := range ls.d.families.loaded() {
		if dev.Flags&o.flag != o.flag {
			continue
		}
		// Egress first: what the ingress program lets in must pass the last check on
		// its way out.
		for _, p := range []struct{ hook, name string }{{"out", out}, {"in", in}} {
			if p.name == "" {
				continue
			}
			prog, err := ls.d.families.program(o, p.name)
			if err != nil {
				return err
			}
			if err := ls.attachTCX(o.family, int(dev.Ifindex), p.hook, prog); err != nil {
				return err
			}
		}
	}
	return nil
}

func (ls links) detachDevice(ifindex int) error {
	return errors.Join(
		detach(linkPath(ls.d.dir, deviceLink(ifindex, xdpHook))),
		ls.detachFamily(inet4, ifindex),
		ls.detachFamily(inet6, ifindex),
	)
}

// detachFamily detaches the programs of a family. Whoever detaches those for IPv6 only
// clears the device's flag first.
func (ls links) detachFamily(f family, ifindex int) error {
	return errors.Join(
		detach(linkPath(ls.d.dir, f.link(ifindex, "in"))),
		detach(linkPath(ls.d.dir, f.link(ifindex, "out"))),
	)
}

// detach removes a pinned link and its attachment. It succeeds when the link is
// gone. It detaches explicitly: that takes effect at once, while the kernel
// frees a link some time after its last reference is gone.
func detach(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(detachNow(l), l.Close())
	}
	return errors.Join(err, os.Remove(path))
}

func detachNow(l link.Link) error {
	err := l.Detach()
	if errors.Is(err, link.ErrNotSupported) || errors.Is(err, unix.ENOLINK) {
		return nil // unpinning removes it; the device is gone
	}
	return err
}

// AttachGuard makes sure that the links of the network namespace exist: those of
// netfilter, in the current one, and the one that follows its neighbours. Create has
// already called it.
func (d *Datapath) AttachGuard() error {
	return errors.Join(d.links.attachInput(false), d.links.attachGuard(false))
}

// attachInput attaches fbr_input. Without it the programs of uplinks hold back
// no refusal. renew is as in attachGuard.
func (ls links) attachInput(renew bool) error {
	var errs []error
	for _, o := range ls.d.families.loaded() {
		errs = append(errs, attachNetfilter(linkPath(ls.d.dir, inputLink+o.suffix), link.NetfilterOptions{
			Program:        o.progs[tcProgFbrInput],
			ProtocolFamily: o.pf,
			Hook:           link.NetfilterInetLocalIn,
			// After every rule. math.MaxInt32 is the priority at which conntrack
			// confirms, and BPF may not use it.
			Priority: math.MaxInt32 - priorities,
		}, renew))
	}
	return errors.Join(errs...)
}

// attachGuard attaches the other links of the namespace. renew replaces existing ones,
// because links of these kinds cannot be updated: the new one is attached before the
// old one goes.
func (ls links) attachGuard(renew bool) error {
	var errs []error
	for _, o := range ls.d.families.loaded() {
		errs = append(errs, attachNetfilter(linkPath(ls.d.dir, defragLink+o.suffix), ls.d.reassembly.defragOptions(o.family), renew))
		errs = append(errs, attachNetfilter(linkPath(ls.d.dir, guardLink+o.suffix), link.NetfilterOptions{
			Program:        o.progs[tcProgFbrGuard],
			ProtocolFamily: o.pf,
			Hook:           link.NetfilterInetPostRouting,
			// After every NAT rule: an address that somebody else has translated is
			// no leak.
			Priority: 1 << 30,
		}, renew))
	}
	return errors.Join(append(errs,
		attachAnew(linkPath(ls.d.dir, neighboursLink), renew, func() (link.Link, error) {
			return link.AttachTracing(link.TracingOptions{Program: ls.d.progs.FbrNeighbour})
		}),
	)...)
}

// defragOptions are those of the link that keeps defragmentation on for a family. The
// program does nothing, and is one for both.
func (ra reassembly) defragOptions(f family) link.NetfilterOptions {
	return link.NetfilterOptions{
		Program:        ra.d.progs.FbrDefrag,
		ProtocolFamily: f.pf,
		Hook:           link.NetfilterInetPreRouting,
		Priority:       1 << 30,
		NetfilterFlags: netfilterIPDefrag,
	}
}

// priorities is the number of priorities that an upgrade tries. Two links of a
// hook cannot have the same priority, and the kernel may free an old link late.
const priorities = 16

func attachNetfilter(path string, opts link.NetfilterOptions, renew bool) error {
	return attachAnew(path, renew, func() (l link.Link, err error) {
		for range priorities {
			if l, err = link.AttachNetfilter(opts); !errors.Is(err, unix.EBUSY) {
				break
			}
			opts.Priority++
		}
		if err != nil {
			err = fmt.Errorf("attaching %s: %w", opts.Program.String(), err)
		}
		return l, err
	})
}

// attachAnew makes sure that a link that cannot be updated is pinned under path.
// renew replaces an existing one by what attach makes.
func attachAnew(path string, renew bool, attach func() (link.Link, error)) error {
	if _, err := os.Stat(path); err == nil && !renew {
		return nil
	}
	tmp := path + "-next"
	if err := detach(tmp); err != nil { // left by a killed upgrade
		return err
	}
	l, err := attach()
	if err != nil {
		return err
	}
	if err := l.Pin(tmp); err != nil {
		return errors.Join(fmt.Errorf("pinning %s: %w", tmp, err), l.Close())
	}
	// rename(2) drops the pin of the old link, and so its attachment.
	return errors.Join(os.Rename(tmp, path), l.Close())
}
