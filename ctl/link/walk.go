package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// walkBuffer is the size of the largest part of a dump, in bytes.
const walkBuffer = 32 << 10

// walk sends a dump request and calls f with each answer. msg is valid only
// during the call. The library keeps all answers of a dump, which are megabytes
// on a host with a thousand ports. walk repeats a dump that the kernel
// interrupted: it calls start before each attempt, which discards what f has
// collected.
func (c *Conn) walk(req *nl.NetlinkRequest, start func(), f func(msg []byte) error) error {
	if c.part == nil {
		c.part = make([]byte, walkBuffer)
	}
	for try := 1; ; try++ {
		start()
		err := c.walkOnce(req, f)
		if try < dumpTries && (errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)) {
			continue
		}
		return sentinel(err)
	}
}

func (c *Conn) walkOnce(req *nl.NetlinkRequest, f func(msg []byte) error) error {
	sock := c.raw[unix.NETLINK_ROUTE]
	sock.Seq++
	req.Seq = sock.Seq
	if err := sock.Socket.Send(req); err != nil {
		return err
	}
	var interrupted, failed error
	for {
		n, err := c.receivePart(sock.Socket.GetFd())
		if err != nil {
			return err
		}
		for part := c.part[:n]; len(part) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(part))
			if size < unix.SizeofNlMsghdr || size > len(part) {
				return fmt.Errorf("a dump's message of %d bytes", size)
			}
			kind, flags := binary.NativeEndian.Uint16(part[4:]), binary.NativeEndian.Uint16(part[6:])
			seq, body := binary.NativeEndian.Uint32(part[8:]), part[unix.SizeofNlMsghdr:size]
			part = part[min(len(part), aligned(size)):]
			switch {
			case seq != req.Seq: // of an earlier request that was given up
				continue
			case kind == unix.NLMSG_DONE, kind == unix.NLMSG_ERROR:
				return errors.Join(errnoOf(body), interrupted, failed)
			case flags&unix.NLM_F_DUMP_INTR != 0:
				interrupted = netlink.ErrDumpInterrupted
			case failed == nil: // after an error the rest is only read off the socket
				failed = f(body)
			}
		}
	}
}

// aligned rounds a size up to NLMSG_ALIGNTO.
func aligned(size int) int { return (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// receivePart reads the next part of a dump into c.part.
func (c *Conn) receivePart(fd int) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, c.part, 0)
		switch {
		case err == nil:
			return n, nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return 0, err
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, err
		}
	}
}

// errnoOf returns the error in the last message of a dump. The kernel sends a
// negated errno, or 0.
func errnoOf(b []byte) error {
	if len(b) < 4 {
		return nil
	}
	if errno := int32(binary.NativeEndian.Uint32(b)); errno != 0 {
		return unix.Errno(-errno)
	}
	return nil
}

// attributes yields the attributes of a message, by type.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(len(b), aligned(size)):]
		}
	}
}
