package link

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Entry is a device in a listing: cheap enough to read for every device of a
// host with a thousand ports.
type Entry struct {
	Index  int
	Name   string
	Alias  string
	Kind   string
	Master int
	Lower  int // ifindex of the device below it (a VLAN's), or of its peer (a veth's); 0: none
	// Carrier: operationally up.
	Carrier bool
	STP     bool    // bridges only
	ID      [8]byte // bridges only: priority (2 bytes) and address
}

// skipStats is RTEXT_FILTER_SKIP_STATS: two thirds of a link's message are
// counters, and a veth's cost a walk over all CPUs.
const skipStats = 1 << 3

// List reads all devices of the namespace.
func (c *Conn) List() ([]Entry, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.Sockets = c.raw
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	out := make([]Entry, 0, len(msgs))
	for _, m := range msgs {
		e, err := parseEntry(m)
		if err != nil {
			return nil, fmt.Errorf("listing devices: %w", err)
		}
		out = append(out, e)
	}
	return out, nil
}

func parseEntry(m []byte) (Entry, error) {
	e := Entry{Index: int(nl.DeserializeIfInfomsg(m).Index)}
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return e, err
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			e.Name = text(a.Value)
		case unix.IFLA_IFALIAS:
			e.Alias = text(a.Value)
		case unix.IFLA_MASTER:
			e.Master = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_LINK:
			e.Lower = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_OPERSTATE:
			e.Carrier = len(a.Value) > 0 && a.Value[0] == netlink.OperUp
		case unix.IFLA_LINKINFO:
			if err := e.parseInfo(a.Value); err != nil {
				return e, err
			}
		}
	}
	return e, nil
}

func (e *Entry) parseInfo(b []byte) error {
	info, err := nl.ParseRouteAttrAsMap(b)
	if err != nil {
		return err
	}
	e.Kind = text(info[nl.IFLA_INFO_KIND].Value)
	if e.Kind != "bridge" {
		return nil
	}
	data, err := nl.ParseRouteAttrAsMap(info[nl.IFLA_INFO_DATA].Value)
	if err != nil {
		return err
	}
	if v := data[nl.IFLA_BR_STP_STATE].Value; len(v) >= 4 {
		e.STP = binary.NativeEndian.Uint32(v) != 0
	}
	copy(e.ID[:], data[nl.IFLA_BR_BRIDGE_ID].Value)
	return nil
}

// text is a C string; the library's own conversion wants the NUL to be there.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
