package ctl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
)

// StateVersion is the layout of state.json; it changes only when an older
// build would misread the file.
const StateVersion = 1

// state is what an instance owns: the truth for every command. It is written
// before a change to the kernel (with Pending set) and again after it. In the
// file it is a JSON text for everything but the ports, and then one for each
// port (portRecord), each on a line: so neither reading nor writing it ever
// needs memory for all of it.
type state struct {
	Version  int                 `json:"version"`
	Boot     string              `json:"boot"` // the kernel's boot id: what an earlier boot owned is gone
	Settings settings            `json:"settings"`
	Networks map[string]*network `json:"networks"`
	Uplinks  []uplink            `json:"uplinks,omitempty"` // attached ones
	XDP      []uplinkXDP         `json:"xdp,omitempty"`     // of the attached ones
	BigTCP   superPackets        `json:"big_tcp,omitzero"`
	Raised   []raisedUplink      `json:"raised,omitempty"`
	hostconf.Record
	// Features are the kernel's, as they were found when the programs were loaded.
	// To find them again takes longer than the rest of `status`: the kernel's type
	// information has to be read.
	Features []FeatureView `json:"features,omitempty"`
	// Fragments is the namespace that puts inbound fragments in order; nil: none.
	Fragments *fragments `json:"fragments,omitempty"`
}

// settings belong to the instance, not to a network.
type settings struct {
	Uplinks  []string      `json:"uplinks"` // as asked: device names or "auto"
	XDP      string        `json:"xdp"`     // XDPOff, XDPAuto or XDPNative; "": XDPAuto
	BigTCP   string        `json:"big_tcp"` // BigTCPOff, BigTCPAuto or BigTCPOn; "": BigTCPAuto
	Lease    time.Duration `json:"lease"`
	NATFirst uint16        `json:"nat_first"`
	NATLast  uint16        `json:"nat_last"`
	FlowsMax uint32        `json:"flows_max"` // sessions, 0: the datapath's default
	// Kept: they were made before any network, and stay after the last, until all is
	// taken down.
	Kept bool `json:"kept,omitempty"`
}

// network is one bridge that is up, or pending.
type network struct {
	Definition
	MTU     int  `json:"mtu_now"` // bytes; Definition.MTU 0 means the uplink's
	Index   int  `json:"index"`   // ifindex of the bridge, 0: not made yet
	Pending bool `json:"pending,omitempty"`
	// Defining: pending belongs to a `network create`, whose definition goes
	// too when it is undone.
	Defining bool `json:"defining,omitempty"`
	// ViaIndex is the ifindex of the network's only way out as the datapath knows it, 0: it
	// is gone. ViaTable is the routing table that leads there; 0: the host's routes do.
	ViaIndex int              `json:"via_index,omitempty"`
	ViaTable int              `json:"via_table,omitempty"`
	Ports    map[string]*port `json:"ports,omitempty"` // by host end; in a file of ours they follow
}

// portRecord is a port in the file.
type portRecord struct {
	Network string `json:"network"`
	*port
}

// port is one attached container.
type port struct {
	Name   string       `json:"name"`
	Port   string       `json:"port"`  // host end
	Index  int          `json:"index"` // of the host end, 0: not made yet, or not known
	Ifname string       `json:"ifname"`
	IP     netip.Addr   `json:"ip"`
	IP6    netip.Addr   `json:"ip6,omitzero"` // invalid: none but that of its link, if the network has IPv6
	MAC    macAddr      `json:"mac"`
	Netns  link.NetnsID `json:"netns"`
	Slow   bool         `json:"slow,omitempty"` // whatever the state of the device
	// Slowed: what the datapath was told last, which the state of the device
	// may demand as well.
	Slowed  bool `json:"slowed,omitempty"`
	Hairpin bool `json:"hairpin,omitempty"`
	// XDP: the container's end takes frames from XDP. GRO: for that we have turned
	// its GRO on.
	XDP     bool   `json:"xdp,omitempty"`
	GRO     bool   `json:"gro,omitempty"`
	GSO     int    `json:"gso,omitempty"`   // that both ends were given, as link.SetGSO; 0: the kernel's
	Owner   *Owner `json:"owner,omitempty"` // nil: the user
	Pending bool   `json:"pending,omitempty"`

	Bandwidth Bandwidth `json:"bandwidth,omitzero"`

	AllowedAddrs []netip.Prefix `json:"allowed_addresses,omitempty"` // see Allowed
	AllowedMACs  []macAddr      `json:"allowed_macs,omitempty"`

	// Peer is what an endpoint's container end is called as long as it is in the
	// host's namespace: before an engine takes it, and after it gave it back.
	// Taken: it has been seen elsewhere. Touched is when the engine last said
	// anything about it, in seconds since boot. See endpoint.go.
	Peer    string `json:"peer,omitempty"`
	Taken   bool   `json:"taken,omitempty"`
	Touched int64  `json:"touched,omitempty"`

	Publications []*publication `json:"publications,omitempty"`
}

// uplink is a device with our programs on it.
type uplink struct {
	Name  string     `json:"name"`
	Index int        `json:"index"`
	Addr  netip.Addr `json:"addr"` // invalid: it leads by IPv6 only
	// Addr6 is the host's IPv6 address on it, while a network leads outside by IPv6;
	// invalid: none, and nothing leaves by it.
	Addr6 netip.Addr `json:"addr6,omitzero"`
	MTU   int        `json:"mtu"`
	RawIP bool       `json:"raw_ip"` // no Ethernet header
	// Side: no default route has led by it, and nobody has named it. Such an uplink takes
	// no part in what concerns all of a network's packets: MTU, XDP, BIG TCP.
	Side bool `json:"side,omitempty"`
}

// macAddr is a MAC address, in the file as text: "02:42:ac:1e:00:02".
type macAddr struct{ net.HardwareAddr }

func (a macAddr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (a *macAddr) UnmarshalText(text []byte) (err error) {
	if a.HardwareAddr = nil; len(text) > 0 {
		a.HardwareAddr, err = net.ParseMAC(string(text))
	}
	return err
}

func newState(boot string) *state {
	return &state{Version: StateVersion, Boot: boot, Networks: map[string]*network{}}
}

// errDamaged: a file that fastbr wrote is not as it wrote it.
var errDamaged = errors.New("damaged")

// loadState reads the state of an instance; a fresh one if there is none, or if
// it is of an earlier boot.
func loadState(path, boot string) (*state, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return noState(path, boot)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	defer f.Close()
	st := newState(boot)
	in := json.NewDecoder(bufio.NewReaderSize(f, stateBuffer))
	err = in.Decode(st)
	switch {
	case errors.Is(err, io.EOF): // empty: a crash of the machine; see save
		return noState(path, boot)
	case err != nil:
		return nil, damagedState(path, err)
	case st.Version > StateVersion:
		return nil, fmt.Errorf("%s was written by a newer fastbr: use that, or run its 'fastbr down --all' first", path)
	case st.Boot != boot:
		return newState(boot), nil
	}
	if err := errors.Join(st.sane(), st.readPorts(in)); err != nil {
		return nil, damagedState(path, firstLine(err))
	}
	return st, nil
}

// noState is a fresh state where there is no file, or an empty one, unless the
// state before is there: they go together.
func noState(path, boot string) (*state, error) {
	if before := salvage(boot, former(path)); len(before.Networks) > 0 {
		return nil, damagedState(path, errors.New("it is not there"))
	}
	return newState(boot), nil
}

func damagedState(path string, why error) error {
	return fmt.Errorf("%s is %w (%w)", path, errDamaged, why)
}

func (n *network) addPort(p *port) {
	if n.Ports == nil {
		n.Ports = map[string]*port{}
	}
	n.Ports[p.Port] = p
}

func (st *state) readPorts(in *json.Decoder) error {
	for _, n := range st.Networks {
		if n != nil && n.Ports == nil {
			n.Ports = map[string]*port{}
		}
	}
	for {
		r := portRecord{port: &port{}}
		if err := in.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		} else if err := r.port.sane(); err != nil {
			return err
		}
		n := st.Networks[r.Network]
		if n == nil {
			return fmt.Errorf("port %s is of a network %s that is not there", r.Port, r.Network)
		}
		n.addPort(r.port)
	}
}

// stateBuffer is how much of the file is in memory at a time, in bytes.
const stateBuffer = 32 << 10

// save writes the state atomically. It does not wait for the disk: what the
// state describes ends with the machine's run, too, and several commands a second
// would each wait several times where the state directory is not in memory.
func (st *state) save(path string) error {
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = st.write(unfinished(path))
	}
	if err == nil {
		// The state is saved even where the copy of the former one cannot be made.
		_ = os.Remove(former(path))
		_ = os.Link(path, former(path))
		err = os.Rename(unfinished(path), path)
	}
	if err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return nil
}

func (st *state) write(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, stateBuffer)
	return errors.Join(st.encode(json.NewEncoder(w)), w.Flush(), f.Close())
}

func (st *state) encode(out *json.Encoder) error {
	head := *st
	head.Networks = map[string]*network{}
	for name, n := range st.Networks {
		bare := *n
		bare.Ports = nil
		head.Networks[name] = &bare
	}
	if err := out.Encode(head); err != nil {
		return err
	}
	for _, name := range st.networkNames() {
		for _, p := range st.Networks[name].sortedPorts() {
			if err := out.Encode(portRecord{name, p}); err != nil {
				return err
			}
		}
	}
	return nil
}

// unfinished is where save writes before it replaces the state. Only the holder
// of the lock does.
func unfinished(path string) string { return path + ".next" }

// former is the state as it was before the last save, for when that is damaged.
func former(path string) string { return path + ".former" }

// salvage reads what can be read of states, the older first: a later one counts
// for what both have.
func salvage(boot string, paths ...string) *state {
	found := newState(boot)
	ports := map[[2]string]*port{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, len(text)+1)
		for first := true; lines.Scan(); first = false {
			if first {
				head := newState(boot)
				if json.Unmarshal(lines.Bytes(), head) == nil && head.Boot == boot && head.Version <= StateVersion && head.sane() == nil {
					found = head
				}
				continue
			}
			r := portRecord{port: &port{}}
			if json.Unmarshal(lines.Bytes(), &r) == nil && r.port.sane() == nil {
				ports[[2]string{r.Network, r.Port}] = r.port
			}
		}
	}
	for of, p := range ports {
		if n := found.Networks[of[0]]; n != nil {
			n.addPort(p)
		}
	}
	return found
}

// sane is an error for what a valid JSON text may lack.
func (st *state) sane() error {
	for name, n := range st.Networks {
		if n == nil || n.Name != name || n.Definition.sane() != nil {
			return fmt.Errorf("network %q is incomplete", name)
		}
		for _, p := range n.Ports {
			if p == nil || p.sane() != nil {
				return fmt.Errorf("a port of network %q is incomplete", name)
			}
		}
	}
	return nil
}

func (p *port) sane() error {
	if p.Port == "" || !p.IP.Is4() || p.IP6.IsValid() && !p.IP6.Is6() || slices.Contains(p.Publications, nil) {
		return fmt.Errorf("port %q is incomplete", p.Port)
	}
	return nil
}

// mainUplinks are the uplinks that are no side uplinks.
func (st *state) mainUplinks() []uplink {
	return slices.DeleteFunc(slices.Clone(st.Uplinks), func(u uplink) bool { return u.Side })
}

// any reports whether is holds for a network.
func (st *state) any(is func(*network) bool) bool {
	for _, n := range st.Networks {
		if is(n) {
			return true
		}
	}
	return false
}

// isVia reports whether a device is the only way out of a network.
func (st *state) isVia(device string) bool {
	return st.any(func(n *network) bool { return n.Via == device })
}

// indexes are those of all ports and uplinks.
func (st *state) indexes() (out []int) {
	for _, n := range st.Networks {
		for _, p := range n.Ports {
			out = append(out, p.Index)
		}
	}
	for _, u := range st.Uplinks {
		out = append(out, u.Index)
	}
	return out
}

// attached are the ifindexes of all ports and uplinks that have their programs.
func (st *state) attached() (out []int) {
	for _, u := range st.Uplinks {
		out = append(out, u.Index)
	}
	for _, n := range st.Networks {
		for _, p := range n.Ports {
			if !p.Pending {
				out = append(out, p.Index)
			}
		}
	}
	return out
}

// networkNames are the recorded networks, sorted.
func (st *state) networkNames() []string {
	return slices.Sorted(maps.Keys(st.Networks))
}

// sortedPorts are the network's ports in order of their addresses.
func (n *network) sortedPorts() []*port {
	return slices.SortedFunc(maps.Values(n.Ports), func(a, b *port) int { return a.IP.Compare(b.IP) })
}

// hasIPv6 reports whether a network carries IPv6.
func (st *state) hasIPv6() bool {
	return st.any(func(n *network) bool { return n.hasIPv6() })
}

// leads reports whether a network leads outside, with or without translation. Without, it
// wants the host to be a router.
func (st *state) leads(translated bool) bool {
	return st.any(func(n *network) bool { return n.Masquerade == translated && !n.Internal })
}

// leads6 reports whether a network leads outside by IPv6, with or without translation.
func (st *state) leads6() bool { return st.leads6But(nil) }

// leads6But reports whether a network other than n does.
func (st *state) leads6But(n *network) bool {
	return st.any(func(x *network) bool { return x != n && x.leads6() })
}

// leads6 reports whether the network leads outside by IPv6.
func (d Definition) leads6() bool { return d.Subnet6.IsValid() && !d.Internal }

// reserved are the ports that the kernel should give to no socket: those of the NAT
// range and the published ones, pending publications included.
func (st *state) reserved() hostconf.PortSet {
	set := hostconf.PortRange(st.Settings.NATFirst, st.Settings.NATLast)
	for _, n := range st.Networks {
		for _, p := range n.Ports {
			for _, pub := range p.Publications {
				for _, l := range pub.leads(p) {
					if !l.own {
						set.AddRange(l.first, l.last)
					}
				}
			}
		}
	}
	return set
}
