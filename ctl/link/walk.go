package link

import (
	"encoding/binary"
	"errors"
	"iter"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries bounds the repetitions of an interrupted dump: each is a full walk
// of the kernel's table.
const dumpTries = 20

// dump repeats a dump until the kernel delivers it uninterrupted, dumpTries
// times at most.
func dump[T any](f func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := f()
		if try < dumpTries && (errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)) {
			continue
		}
		return v, err
	}
}

// walk sends a dump request and passes each answer to add, which must not use
// the Conn. Before each attempt it calls start, which discards what an
// interrupted attempt has added.
func (c *Conn) walk(req *nl.NetlinkRequest, start func(), add func(msg []byte) error) error {
	req.Sockets = c.raw
	_, err := dump(func() (struct{}, error) {
		start()
		var malformed error
		err := req.ExecuteIter(unix.NETLINK_ROUTE, 0, func(msg []byte) bool {
			malformed = add(msg)
			return malformed == nil
		})
		return struct{}{}, errors.Join(err, malformed)
	})
	return sentinel(err)
}

// attributes yields the attributes of a message, by type. The library's parser
// would add 6 ms to a listing of a thousand devices, which takes 10.
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
			b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}
