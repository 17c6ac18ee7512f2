package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// packetSocket opens a non-blocking AF_PACKET socket on dev. proto is in host
// byte order; with 0 the socket receives nothing. prepare runs before the
// socket sees traffic.
func packetSocket(n *Namespace, dev string, proto uint16, prepare func(fd int) error) (int, error) {
	idx, err := n.Index(dev)
	if err != nil {
		return -1, err
	}
	fd := -1
	err = n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err == nil && prepare != nil {
		err = prepare(fd)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: idx})
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return -1, fmt.Errorf("opening a packet socket on %s in %s: %w", dev, n.Name, err)
	}
	return fd, nil
}

// Injector sends raw frames on one device.
type Injector struct{ f *os.File }

// NewInjector opens an injector on dev. The caller closes it.
func (n *Namespace) NewInjector(dev string) (*Injector, error) {
	fd, err := packetSocket(n, dev, 0, nil)
	if err != nil {
		return nil, err
	}
	return &Injector{os.NewFile(uintptr(fd), "inject "+dev)}, nil
}

// Send sends one frame, which begins with the link layer header.
func (i *Injector) Send(frame []byte) error {
	_, err := i.f.Write(frame)
	return err
}

// Close closes the injector. It is idempotent.
func (i *Injector) Close() { _ = i.f.Close() }

// VirtioHeader is struct virtio_net_hdr, which precedes a frame: offloads that
// the sender asks for.
type VirtioHeader struct {
	Flags     uint8 // 1: the checksum must be completed
	GSOType   uint8 // 0: not a super-packet
	HdrLen    uint16
	GSOSize   uint16
	CsumStart uint16 // bytes from the beginning of the frame
	CsumOff   uint16 // of the checksum, from CsumStart
}

// NewVirtioInjector is NewInjector for SendVirtio.
func (n *Namespace) NewVirtioInjector(dev string) (*Injector, error) {
	fd, err := packetSocket(n, dev, 0, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	})
	if err != nil {
		return nil, err
	}
	return &Injector{os.NewFile(uintptr(fd), "inject "+dev)}, nil
}

// SendVirtio sends one frame with a virtio header. The kernel rejects some
// headers with EINVAL.
func (i *Injector) SendVirtio(h VirtioHeader, frame []byte) error {
	b, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		return err
	}
	return i.Send(append(b, frame...))
}

// Inject sends frames on dev.
func (n *Namespace) Inject(dev string, frames ...[]byte) error {
	i, err := n.NewInjector(dev)
	if err != nil {
		return err
	}
	defer i.Close()
	for k, f := range frames {
		if err := i.Send(f); err != nil {
			return fmt.Errorf("sending frame %d on %s in %s: %w", k, dev, n.Name, err)
		}
	}
	return nil
}

// Sniffer receives the raw frames of one device.
type Sniffer struct{ f *os.File }

// NewSniffer opens a sniffer. It sees frames that arrive or leave from now on.
// The caller closes it.
func (n *Namespace) NewSniffer(dev string) (*Sniffer, error) {
	fd, err := packetSocket(n, dev, unix.ETH_P_ALL, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureQueue)
	})
	if err != nil {
		return nil, err
	}
	return &Sniffer{os.NewFile(uintptr(fd), "sniff "+dev)}, nil
}

// Next returns the next frame for which match is true (nil: any). If ctx ends
// first, the error wraps ctx.Err(), and a later call continues where this one
// stopped.
func (s *Sniffer) Next(ctx context.Context, match func([]byte) bool) ([]byte, error) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = s.f.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() { // the deadline must not outlive ctx: the next call has its own
			<-fired
			_ = s.f.SetReadDeadline(time.Time{})
		}
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := s.f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("waiting for a frame: %w", ctx.Err())
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("waiting for a frame: %w", err)
		}
		if match == nil || match(buf[:n]) {
			return append([]byte(nil), buf[:n]...), nil
		}
	}
}

// Close closes the sniffer. It is idempotent.
func (s *Sniffer) Close() { _ = s.f.Close() }
