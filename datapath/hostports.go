package datapath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hostHooks are the cgroup hooks for the host's sockets, and the programs on them, in the
// order of attaching. The programs that show a socket the address it asked for come before
// those that redirect it.
var hostHooks = []struct {
	name string
	at   ebpf.AttachType
	prog string
}{
	{"host-bind4", ebpf.AttachCGroupInet4Bind, tcProgFbrBind4},
	{"host-bind6", ebpf.AttachCGroupInet6Bind, tcProgFbrBind6},
	{"host-recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, tcProgFbrRecvmsg4},
	{"host-recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, tcProgFbrRecvmsg6},
	{"host-getpeername4", ebpf.AttachCgroupInet4GetPeername, tcProgFbrGetpeername4},
	{"host-getpeername6", ebpf.AttachCgroupInet6GetPeername, tcProgFbrGetpeername6},
	{"host-sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, tcProgFbrSendmsg4},
	{"host-sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, tc6ProgFbrSendmsg6},
	{"host-connect4", ebpf.AttachCGroupInet4Connect, tcProgFbrConnect4},
	{"host-connect6", ebpf.AttachCGroupInet6Connect, tcProgFbrConnect6},
}

// hostLink is a program on such a hook.
type hostLink struct {
	name string
	at   ebpf.AttachType
	prog *ebpf.Program
	of   *object // the program's
}

// hostSockets leads sockets of the host itself to published ports.
type hostSockets struct{ d *Datapath }

// links returns the links on each hook that has any, in the order in which they stand there.
// Of two programs, that of IPv6 is the first: IPv4's does what that has left to it.
func (hs hostSockets) links() (out [][]hostLink) {
	for _, h := range hostHooks {
		var on []hostLink
		name := h.name
		for _, o := range slices.Backward(hs.d.families.loaded()) {
			if p := o.progs[h.prog]; p != nil {
				on = append(on, hostLink{name, h.at, p, o})
				name += "-mapped"
			}
		}
		if len(on) > 0 {
			out = append(out, on)
		}
	}
	return out
}

// AttachHost makes published ports reachable for the host's processes in the
// cgroup and below, and keeps them from binding such a port. cgroup is a
// directory of a cgroup2 mount. Programs of others on the same hooks keep
// running. Attached hooks keep their place. On an error nothing is attached.
func (d *Datapath) AttachHost(cgroup string) error {
	err := d.sockets.attachHost(cgroup)
	if errors.Is(err, unix.ENOLINK) { // the cgroup of some links is gone
		if err = d.DetachHost(); err == nil {
			err = d.sockets.attachHost(cgroup)
		}
	}
	if err != nil {
		return errors.Join(err, d.DetachHost())
	}
	return nil
}

// attachHost attaches what is missing, behind what is there. Then each link gets its
// program: so there is no moment without IPv4's while IPv6's comes to stand before it.
func (hs hostSockets) attachHost(cgroup string) error {
	for _, on := range hs.links() {
		for _, l := range on {
			if err := l.attach(hs.d.dir, cgroup); err != nil {
				return err
			}
		}
		for _, l := range on {
			if err := l.update(hs.d.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// attach attaches the program unless the link exists.
func (h hostLink) attach(dir, cgroup string) error {
	path := linkPath(dir, h.name)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.at, Program: h.prog})
	if err != nil {
		return fmt.Errorf("attaching %s to %s: %w", h.prog.String(), cgroup, err)
	}
	if err := l.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pinning link %s: %w", h.name, err), l.Close())
	}
	return l.Close()
}

// update puts the program on the link, if that exists. The error wraps unix.ENOLINK if the
// cgroup is gone.
func (h hostLink) update(dir string) error {
	l, err := link.LoadPinnedLink(linkPath(dir, h.name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening link %s: %w", h.name, err)
	}
	defer l.Close()
	if err := l.Update(h.prog); err != nil {
		return fmt.Errorf("updating link %s: %w", h.name, err)
	}
	return nil
}

// endHost ends the connections of the host's sockets that were led to ports
// that are no longer published.
func (hs hostSockets) endHost() error {
	for _, o := range hs.d.families.loaded() {
		for _, name := range []string{tcProgFbrEndTcp, tcProgFbrEndUdp} {
			if err := iterate(o.progs[name]); err != nil {
				return fmt.Errorf("ending connections of the host with %s: %w", o.progs[name], err)
			}
		}
	}
	return nil
}

// iterate runs an iterator program over everything.
func iterate(p *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// DetachHost undoes AttachHost. It succeeds when nothing is attached.
func (d *Datapath) DetachHost() error {
	for _, on := range slices.Backward(d.sockets.links()) {
		for _, l := range slices.Backward(on) {
			if err := l.detach(d.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h hostLink) detach(dir string) error {
	if err := detach(linkPath(dir, h.name)); err != nil {
		return fmt.Errorf("detaching %s: %w", h.name, err)
	}
	return nil
}

// leave takes the programs of IPv6 from the hooks. IPv4's take their places.
func (hs hostSockets) leave() error {
	for _, on := range hs.links() {
		if on[0].of != hs.d.six {
			continue
		}
		last := on[len(on)-1]
		if len(on) > 1 {
			moved := last
			moved.name = on[0].name
			if err := moved.update(hs.d.dir); err != nil && !errors.Is(err, unix.ENOLINK) {
				return err
			}
		}
		if err := last.detach(hs.d.dir); err != nil {
			return err
		}
	}
	return nil
}

// updateHost puts the current programs on the attached hooks. Where IPv4's has no link
// behind IPv6's yet, it keeps the place until AttachHost.
func (hs hostSockets) updateHost() error {
	for _, on := range hs.links() {
		if len(on) > 1 {
			if _, err := os.Stat(linkPath(hs.d.dir, on[1].name)); err != nil {
				on[1].name = on[0].name
				on = on[1:]
			}
		}
		for _, l := range on {
			if err := l.update(hs.d.dir); err != nil && !errors.Is(err, unix.ENOLINK) {
				return err
			}
		}
	}
	return nil
}

// SetLocal sets the addresses of the host.
func (d *Datapath) SetLocal(addrs []netip.Addr) error {
	for _, o := range d.families.loaded() {
		if err := o.setLocal(addrs); err != nil {
			return err
		}
	}
	return nil
}

// setLocal sets those of the family.
func (o *object) setLocal(addrs []netip.Addr) error {
	local := o.maps[tcMapFbrLocal]
	for _, a := range addrs {
		if !o.of(a) {
			continue
		}
		if err := local.Put(a.AsSlice(), uint32(0)); err != nil {
			return fmt.Errorf("writing fbr_local: %w", err)
		}
	}
	_, err := deleteEntries(local, func(key, _ []byte) bool {
		a, _ := netip.AddrFromSlice(key)
		return !slices.Contains(addrs, a)
	})
	if err != nil {
		return fmt.Errorf("removing addresses from fbr_local: %w", err)
	}
	return nil
}

// netnsCookie returns the unique number of the current network namespace
// (SO_NETNS_COOKIE, Linux 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("asking for the network namespace's cookie: %w", err)
	}
	return cookie, nil
}
