package lab

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tapSnap is the longest frame a tap returns whole: a super-packet of BIG TCP.
const tapSnap = 256 << 10

// Tap sees every frame of one device, in both directions, and what the kernel
// knows about it besides its bytes. Not for concurrent use.
type Tap struct {
	fd  int
	buf []byte
	oob []byte
}

// Tapped is one frame at a tap.
type Tapped struct {
	// Frame begins with the link layer header. A tag that the kernel has taken
	// out of it is in its place again.
	Frame []byte
	// Sent: the device sends it; else it has received it.
	Sent bool
	// Partial: the L4 checksum holds the sum of the pseudo header only, and is to
	// be filled in by whoever sends the frame on a wire.
	Partial bool
}

// NewTap opens one; it sees what comes from now on. Close it.
func (n *Namespace) NewTap(dev string) (*Tap, error) {
	fd, err := n.packetSocket(dev, unix.ETH_P_ALL, func(fd int) error {
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

// Drain calls see with each frame that has come by since the last call, without
// waiting for any. A frame is see's until it returns. The error says that the tap
// is dead, or that it has lost frames.
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

// Close ends the tap.
func (t *Tap) Close() { _ = unix.Close(t.fd) }
