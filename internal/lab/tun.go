package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Tunnel is an uplink without an Ethernet header, like those of WireGuard, ppp
// and VPN programs. It has a TUN device in the host and one outside, and this
// process carries packets between them. It checks each packet that leaves the
// host, as a Capture does.
type Tunnel struct {
	// Outside is the far side of the tunnel. Its addresses are a server's and not
	// on the link.
	Outside *Namespace

	private []netip.Prefix
	ends    [2]*os.File
	running sync.WaitGroup

	mu    sync.Mutex
	leaks []Leak
}

// AddTunnel makes the device dev in the host and an outside beyond it, with a
// route to its server. The lab's Close removes them.
func (l *Lab) AddTunnel(dev string) (*Tunnel, error) {
	o, err := l.Add("o-" + dev)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{Outside: o, private: l.opts.Private}
	for i, n := range []*Namespace{l.Host, o} {
		if t.ends[i], err = openTun(n, dev); err == nil {
			err = n.SetUp(dev)
		}
		if err != nil {
			t.close()
			return nil, err
		}
	}
	for _, p := range l.opts.plans() {
		err := errors.Join(
			l.Host.AddAddr(dev, p.tunHost), o.AddAddr(dev, p.tunOutside), o.AddAddr(dev, p.tunServer),
			l.Host.AddRoute(p.tunServer, p.tunOutside.Addr()))
		if err != nil {
			t.close()
			return nil, err
		}
		o.SetAddr(p.tunServer.Addr())
	}
	t.running.Go(func() { carry(t.ends[0], t.ends[1], t.look) })
	t.running.Go(func() { carry(t.ends[1], t.ends[0], func([]byte) {}) })
	l.tunnels = append(l.tunnels, t)
	return t, nil
}

// HostAddr returns the host's IPv4 address on the tunnel, which may appear outside.
func (t *Tunnel) HostAddr() netip.Addr { return plan4.tunHost.Addr() }

// HostAddr6 returns the host's IPv6 address on the tunnel.
func (t *Tunnel) HostAddr6() netip.Addr { return plan6.tunHost.Addr() }

// OutsideAddr returns the IPv4 address at the other end of the tunnel.
func (t *Tunnel) OutsideAddr() netip.Addr { return plan4.tunOutside.Addr() }

// OutsideAddr6 returns the IPv6 address at the other end of the tunnel.
func (t *Tunnel) OutsideAddr6() netip.Addr { return plan6.tunOutside.Addr() }

// openTun makes a TUN device that lives as long as the file is open.
func openTun(n *Namespace, dev string) (*os.File, error) {
	var fd int
	err := n.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(dev)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			_ = unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making TUN device %s in %s: %w", dev, n.Name, err)
	}
	return os.NewFile(uintptr(fd), dev), nil
}

// carry writes to one end what it reads from the other, until either is closed.
// A packet that the other end does not accept (its device is down) is lost.
func carry(from, to *os.File, look func(packet []byte)) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		look(buf[:n])
		_, _ = to.Write(buf[:n])
	}
}

// look records a packet that must not have left the host.
func (t *Tunnel) look(packet []byte) {
	why := packetLeakReason(packet, t.private)
	if why == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.leaks) < maxLeaks {
		t.leaks = append(t.leaks, Leak{Why: why, Frame: bytes.Clone(packet[:min(len(packet), snapLen)])})
	}
}

// Leaks returns what was recorded since the tunnel was made.
func (t *Tunnel) Leaks() []Leak {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Leak(nil), t.leaks...)
}

func (t *Tunnel) close() {
	for _, f := range t.ends {
		if f != nil {
			_ = f.Close()
		}
	}
	t.running.Wait()
}
