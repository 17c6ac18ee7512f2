package lab

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tapSnap is the longest frame, in bytes, that a tap returns whole: a BIG TCP
// super-packet.
const tapSnap = 256 << 10

// Tap sees every frame of one device in both directions, with the kernel's
// metadata. It is not safe for concurrent use.
type Tap struct {
	fd  int
	buf []byte
	oob []byte
}

// Tapped is one frame at a tap.
type Tapped struct {
	// Frame begins with the link layer header. A VLAN tag that the kernel has
	// removed is back in its place.
	Frame []byte
	// Sent: the device sent the frame; otherwise it received it.
	Sent bool
	// Partial: the L4 checksum covers only the pseudo header. Whoever sends the
	// frame on a wire completes it.
	Partial bool
}

// NewTap opens a tap, which sees frames from now on. The caller closes it.
func (n *Namespace) NewTap(dev string) (*Tap, error) {
	fd, err := packetSocket(n, dev, unix.ETH_P_ALL, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureQueue)
	})
	if err != nil {
		return nil, err
	}
	return &Tap{fd: fd, buf: make([]byte, tapSnap), oob: make([]byte, 256)}, nil
}

// Drain calls see with each frame since the last call. It does not wait. A
// frame is valid until see returns. An error means that the tap is dead or has
// lost frames.
func (t *Tap) Drain(see func(Tapped)) error {
	for {
		n, oobn, _, from, err := unix.Recvmsg(t.fd, t.buf, t.oob, unix.MSG_DONTWAIT)
		switch err {
		case nil:
		case unix.EAGAIN:
			return t.lost()
		case unix.EINTR, unix.ENETDOWN: // reported once when the device goes down
			continue
		default:
			return fmt.Errorf("reading a tap: %w", err)
		}
		f := Tapped{Frame: t.buf[:n]}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			f.Sent = ll.Pkttype == unix.PACKET_OUTGOING
		}
		if err := f.auxiliary(t.oob[:oobn]); err != nil {
			return err
		}
		see(f)
	}
}

// auxiliary reads struct tpacket_auxdata (linux/if_packet.h).
func (f *Tapped) auxiliary(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("reading a tap: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			continue
		}
		aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
		f.Partial = aux.Status&unix.TP_STATUS_CSUMNOTREADY != 0
		if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 && len(f.Frame) >= 12 {
			proto := uint16(unix.ETH_P_8021Q)
			if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
				proto = aux.Vlan_tpid
			}
			b := append([]byte(nil), f.Frame[:12]...)
			b = binary.BigEndian.AppendUint16(b, proto)
			b = binary.BigEndian.AppendUint16(b, aux.Vlan_tci)
			f.Frame = append(b, f.Frame[12:]...)
		}
	}
	return nil
}

// lost returns an error if the socket's queue had no room for some frames.
func (t *Tap) lost() error {
	st, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("reading packet statistics: %w", err)
	}
	if st.Drops > 0 {
		return fmt.Errorf("a tap lost %d frames", st.Drops)
	}
	return nil
}

// Close closes the tap.
func (t *Tap) Close() { _ = unix.Close(t.fd) }
