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

// hostHook is a program on a cgroup hook for the host's sockets.
type hostHook struct {
	name string
	at   ebpf.AttachType
	prog *ebpf.Program
}

// hostSockets leads sockets of the host itself to published ports.
type hostSockets struct{ d *Datapath }

// hostHooks returns the hooks in the order of attaching. The programs that show
// a socket the address it asked for come before those that redirect it.
func (hs hostSockets) hostHooks() []hostHook {
	return []hostHook{
		{"host-bind4", ebpf.AttachCGroupInet4Bind, hs.d.progs.FbrBind4},
		{"host-bind6", ebpf.AttachCGroupInet6Bind, hs.d.progs.FbrBind6},
		{"host-recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, hs.d.progs.FbrRecvmsg4},
		{"host-recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, hs.d.progs.FbrRecvmsg6},
		{"host-getpeername4", ebpf.AttachCgroupInet4GetPeername, hs.d.progs.FbrGetpeername4},
		{"host-getpeername6", ebpf.AttachCgroupInet6GetPeername, hs.d.progs.FbrGetpeername6},
		{"host-sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, hs.d.progs.FbrSendmsg4},
		{"host-connect4", ebpf.AttachCGroupInet4Connect, hs.d.progs.FbrConnect4},
		{"host-connect6", ebpf.AttachCGroupInet6Connect, hs.d.progs.FbrConnect6},
	}
}

// AttachHost makes published ports reachable for the host's processes in the
// cgroup and below, and keeps them from binding such a port. cgroup is a
// directory of a cgroup2 mount. Programs of others on the same hooks keep
// running. Attached hooks keep their place. On an error nothing is attached.
func (d *Datapath) AttachHost(cgroup string) error {
	if err := d.sockets.attachHost(cgroup); err != nil {
		return errors.Join(err, d.DetachHost())
	}
	return nil
}

func (hs hostSockets) attachHost(cgroup string) error {
	for _, h := range hs.hostHooks() {
		path := linkPath(hs.d.dir, h.name)
		found, err := updateCgroup(path, h.prog)
		if err != nil {
			return err
		}
		if found {
			continue
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.at, Program: h.prog})
		if err != nil {
			return fmt.Errorf("attaching %s to %s: %w", h.prog.String(), cgroup, err)
		}
		if err := l.Pin(path); err != nil {
			return errors.Join(fmt.Errorf("pinning link %s: %w", h.name, err), l.Close())
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// updateCgroup puts the program on an existing link and reports whether there
// is one. It removes the link of a cgroup that is gone.
func updateCgroup(path string, prog *ebpf.Program) (found bool, err error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening link %s: %w", path, err)
	}
	defer l.Close()
	err = l.Update(prog)
	if errors.Is(err, unix.ENOLINK) {
		return false, os.Remove(path)
	}
	if err != nil {
		return false, fmt.Errorf("updating link %s: %w", path, err)
	}
	return true, nil
}

// endHost ends the connections of the host's sockets that were led to ports
// that are no longer published.
func (hs hostSockets) endHost() error {
	for _, p := range []*ebpf.Program{hs.d.progs.FbrEndTcp, hs.d.progs.FbrEndUdp} {
		if err := iterate(p); err != nil {
			return fmt.Errorf("ending connections of the host with %s: %w", p, err)
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
	hooks := d.sockets.hostHooks()
	slices.Reverse(hooks)
	for _, h := range hooks {
		if err := detach(linkPath(d.dir, h.name)); err != nil {
			return fmt.Errorf("detaching %s: %w", h.name, err)
		}
	}
	return nil
}

// updateHost puts the current programs on the attached hooks.
func (hs hostSockets) updateHost() error {
	for _, h := range hs.hostHooks() {
		if _, err := updateCgroup(linkPath(hs.d.dir, h.name), h.prog); err != nil {
			return err
		}
	}
	return nil
}

// SetLocal sets the IPv4 addresses of the host.
func (d *Datapath) SetLocal(addrs []netip.Addr) error {
	var old []uint32
	var addr, unused uint32
	it := d.maps.FbrLocal.Iterate()
	for it.Next(&addr, &unused) {
		old = append(old, addr)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("reading fbr_local: %w", err)
	}
	for _, a := range addrs {
		addr := be32(a)
		old = slices.DeleteFunc(old, func(o uint32) bool { return o == addr })
		if err := d.maps.FbrLocal.Put(addr, uint32(0)); err != nil {
			return fmt.Errorf("writing fbr_local: %w", err)
		}
	}
	for _, addr := range old {
		if err := deleteKey(d.maps.FbrLocal, addr); err != nil {
			return fmt.Errorf("removing %s from fbr_local: %w", addrOf(addr), err)
		}
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
