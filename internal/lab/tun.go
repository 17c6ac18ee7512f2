package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Addresses of a tunnel, from the documentation and benchmarking ranges.
var (
	tunHostAddr    = netip.MustParsePrefix("198.18.0.1/24")
	tunOutsideAddr = netip.MustParsePrefix("198.18.0.2/24")
	tunServerAddr  = netip.MustParsePrefix("192.0.2.31/32")
)

// Tunnel is an uplink without an Ethernet header, like those of WireGuard, ppp
// and VPN programs. It has a TUN device in the host and one outside, and this
// process carries packets between them. It checks each packet that leaves the
// host, as a Capture does.
type Tunnel struct {
	// Outside is the far side of the tunnel. Its Addr is a server's and not on
	// the link.
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
	for i, end := range []struct {
		n    *Namespace
		addr netip.Prefix
	}{{l.Host, tunHostAddr}, {o, tunOutsideAddr}} {
		if t.ends[i], err = openTun(end.n, dev); err != nil {
			t.close()
			return nil, err
		}
		if err := end.n.AddAddr(dev, end.addr); err != nil {
			t.close()
			return nil, err
		}
		if err := end.n.SetUp(dev); err != nil {
			t.close()
			return nil, err
		}
	}
	if err := o.AddAddr(dev, tunServerAddr); err != nil {
		t.close()
		return nil, err
	}
	o.Addr = tunServerAddr.Addr()
	if err := l.Host.AddRoute(tunServerAddr, tunOutsideAddr.Addr()); err != nil {
		t.close()
		return nil, err
	}
	t.running.Go(func() { carry(t.ends[0], t.ends[1], t.look) })
	t.running.Go(func() { carry(t.ends[1], t.ends[0], func([]byte) {}) })
	l.tunnels = append(l.tunnels, t)
	return t, nil
}

// HostAddr returns the host's address on the tunnel, which may appear outside.
func (t *Tunnel) HostAddr() netip.Addr { return tunHostAddr.Addr() }

// OutsideAddr returns the address at the other end of the tunnel.
func (t *Tunnel) OutsideAddr() netip.Addr { return tunOutsideAddr.Addr() }

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
	if len(packet) == 0 || packet[0]>>4 != 4 {
		return
	}
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
