package link

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Entry is a device in a listing. It holds only what is cheap to read for every
// device of a host with a thousand ports.
type Entry struct {
	Index  int
	Name   string
	Alias  string
	Kind   string
	Master int
	Lower  int // ifindex of the device below (VLAN) or of the peer (veth); 0: none
	// Carrier reports whether the device is operationally up.
	Carrier bool
	STP     bool    // bridges only
	ID      [8]byte // bridges only: priority (2 bytes) and address
}

// skipStats is RTEXT_FILTER_SKIP_STATS. Counters are two thirds of a link
// message, and a veth's cost a walk over all CPUs.
const skipStats = 1 << 3

// List returns all devices of the namespace. It takes some milliseconds for a
// thousand.
func (c *Conn) List() ([]Entry, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	var out []Entry
	err := c.walk(req, func() { out = nil }, func(m []byte) error {
		e, err := parseEntry(m)
		out = append(out, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	return out, nil
}

func parseEntry(m []byte) (Entry, error) {
	if len(m) < unix.SizeofIfInfomsg {
		return Entry{}, fmt.Errorf("a message of %d bytes", len(m))
	}
	e := Entry{Index: int(nl.DeserializeIfInfomsg(m).Index)}
	for kind, value := range attributes(m[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			e.Name = text(value)
		case unix.IFLA_IFALIAS:
			e.Alias = text(value)
		case unix.IFLA_MASTER:
			e.Master = int(binary.NativeEndian.Uint32(value))
		case unix.IFLA_LINK:
			e.Lower = int(binary.NativeEndian.Uint32(value))
		case unix.IFLA_OPERSTATE:
			e.Carrier = len(value) > 0 && value[0] == netlink.OperUp
		case unix.IFLA_LINKINFO:
			e.parseInfo(value)
		}
	}
	return e, nil
}

func (e *Entry) parseInfo(b []byte) {
	for kind, value := range attributes(b) {
		switch kind {
		case nl.IFLA_INFO_KIND:
			e.Kind = text(value)
		case nl.IFLA_INFO_DATA:
			if e.Kind == "bridge" { // the kind comes first
				e.parseBridge(value)
			}
		}
	}
}

func (e *Entry) parseBridge(b []byte) {
	for kind, value := range attributes(b) {
		switch kind {
		case nl.IFLA_BR_STP_STATE:
			e.STP = len(value) >= 4 && binary.NativeEndian.Uint32(value) != 0
		case nl.IFLA_BR_BRIDGE_ID:
			copy(e.ID[:], value)
		}
	}
}

// text converts a C string. The library's conversion fails without a NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}
