package lab

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// controlType is the ethertype of control frames, by which a capture proves
	// that it works. IEEE reserves it for local experiments.
	controlType  = 0x88b5
	etherHdrLen  = 14
	snapLen      = 256     // bytes kept of each frame: enough for an ICMP error and the packet it quotes
	captureQueue = 8 << 20 // bytes of receive buffer; only matching frames use it
	controlWait  = 10 * time.Second
	maxLeaks     = 1000 // kept; further leaks are only counted
)

// Leak is a frame that must not have arrived outside.
type Leak struct {
	// Why names the rule: "IPv4 source 172.30.0.2", "ARP sender …", "ICMP error about …".
	Why string
	// Frame is the beginning of the frame, from the link layer header on.
	Frame []byte
}

func (l Leak) String() string { return fmt.Sprintf("%s: % x", l.Why, l.Frame) }

// Capture watches what the outside end of an uplink receives. It records every
// frame that has an address of the private prefixes as IP source, as ARP sender,
// as the target of neighbour discovery, or in the packet that an ICMP error quotes.
//
// A capture that sees nothing proves nothing, so it has two positive controls.
// When it starts, it must record one forged frame of each kind. And each call
// of Leaks sends a control frame over the uplink and waits until the capture
// sees it. The queue keeps the order, so the capture has then seen everything
// that arrived before.
type Capture struct {
	// Dev is the host's uplink: "eth0".
	Dev string

	private []netip.Prefix
	sock    *os.File // AF_PACKET, on the outside end
	send    func(frame []byte) error
	closers []func()
	done    chan struct{}

	mu       sync.Mutex
	leaks    []Leak
	total    int
	controls map[string]chan struct{} // by payload
	dead     error                    // why the reader stopped
}

// newCapture starts a capture on dev of outside, the peer of hostDev of host. The
// prefixes are those of o.
func newCapture(host *Namespace, hostDev string, outside *Namespace, dev string, o Options) (*Capture, error) {
	c := &Capture{Dev: hostDev, private: o.Private, done: make(chan struct{}), controls: map[string]chan struct{}{}}
	fd, err := packetSocket(outside, dev, unix.ETH_P_ALL, func(fd int) error {
		if err := attachFilter(fd, o.Private, o.Excepted); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureQueue)
	})
	if err != nil {
		return nil, err
	}
	c.sock = os.NewFile(uintptr(fd), "capture")
	inj, err := host.NewInjector(hostDev)
	if err != nil {
		_ = c.sock.Close()
		return nil, err
	}
	c.send = inj.Send
	c.closers = append(c.closers, inj.Close)
	go c.read()
	if err := c.selfTest(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// selfTest proves, on the idle link, that each kind of leak is recorded.
func (c *Capture) selfTest() error {
	for _, p := range c.private {
		for i, f := range forgeries(p.Masked().Addr().Next()) {
			if err := c.send(f); err != nil {
				return fmt.Errorf("sending forgery %d for %v: %w", i, p, err)
			}
			leaks, err := c.Leaks()
			if err != nil {
				return err
			}
			if len(leaks) != 1 {
				return fmt.Errorf("the capture recorded %d of one forged frame (kind %d) from %v", len(leaks), i, p)
			}
			c.reset()
		}
	}
	return nil
}

func (c *Capture) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaks, c.total = nil, 0
}

// read runs until the socket is closed.
func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, snapLen)
	for {
		n, err := c.sock.Read(buf)
		switch {
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINTR):
			continue // reported once when the device goes down; it may come up again
		case err != nil:
			c.mu.Lock()
			c.dead = err
			c.mu.Unlock()
			return
		}
		c.take(bytes.Clone(buf[:n]))
	}
}

func (c *Capture) take(f []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if payload, ok := controlPayload(f); ok {
		if ch := c.controls[string(payload)]; ch != nil {
			delete(c.controls, string(payload))
			close(ch)
		}
		return
	}
	why := leakReason(f, c.private)
	if why == "" {
		return
	}
	c.total++
	if len(c.leaks) < maxLeaks {
		c.leaks = append(c.leaks, Leak{Why: why, Frame: f})
	}
}

// Leaks returns what was recorded since the capture started. An error means
// that the capture is dead or has lost frames: an empty result then proves
// nothing.
func (c *Capture) Leaks() ([]Leak, error) {
	if err := c.control(); err != nil {
		return nil, fmt.Errorf("capture outside of %s: %w", c.Dev, err)
	}
	lost, err := c.lost()
	if err != nil {
		return nil, fmt.Errorf("capture outside of %s: %w", c.Dev, err)
	}
	if lost > 0 {
		return nil, fmt.Errorf("capture outside of %s lost %d frames", c.Dev, lost)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Leak(nil), c.leaks...), nil
}

// control sends a control frame and waits until the capture has seen it.
func (c *Capture) control() error {
	payload := make([]byte, 46)
	_, _ = rand.Read(payload) // never fails
	seen := make(chan struct{})
	c.mu.Lock()
	c.controls[string(payload)] = seen
	dead := c.dead
	c.mu.Unlock()
	if dead != nil {
		return fmt.Errorf("it has ended: %w", dead)
	}
	if err := c.send(controlFrame(payload)); err != nil {
		return fmt.Errorf("sending the control frame: %w", err)
	}
	select {
	case <-seen:
		return nil
	case <-time.After(controlWait):
		return fmt.Errorf("it did not see the control frame within %v", controlWait)
	case <-c.done:
		return errors.New("it has ended")
	}
}

// lost returns and resets the number of frames for which the socket's queue had
// no room.
func (c *Capture) lost() (uint32, error) {
	conn, err := c.sock.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st *unix.TpacketStats
	var serr error
	err = conn.Control(func(fd uintptr) {
		st, serr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(err, serr); err != nil {
		return 0, fmt.Errorf("reading packet statistics: %w", err)
	}
	return st.Drops, nil
}

// Close ends the capture. It is idempotent.
func (c *Capture) Close() {
	_ = c.sock.Close()
	<-c.done
	for _, f := range c.closers {
		f()
	}
	c.closers = nil
}

// Leaks returns the leaks of all captures of the lab. It fails if there is no
// capture.
func (l *Lab) Leaks() ([]Leak, error) {
	if len(l.Captures) == 0 {
		return nil, errors.New("the lab has no capture")
	}
	var all []Leak
	for _, c := range l.Captures {
		leaks, err := c.Leaks()
		if err != nil {
			return nil, err
		}
		all = append(all, leaks...)
	}
	for _, t := range l.tunnels {
		all = append(all, t.Leaks()...)
	}
	return all, nil
}

// Watch adds a capture on a device of the lab that is not an uplink: dev of n,
// the peer of hostDev of the host.
func (l *Lab) Watch(hostDev string, n *Namespace, dev string) error {
	c, err := newCapture(l.Host, hostDev, n, dev, l.opts)
	if err != nil {
		return fmt.Errorf("capturing outside of %s: %w", hostDev, err)
	}
	l.Captures = append(l.Captures, c)
	return nil
}
