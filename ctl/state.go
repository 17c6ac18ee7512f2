package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fastbr/fastbr/ctl/link"
)

// StateVersion is the layout of state.json; it changes only when an older
// build would misread the file.
const StateVersion = 1

// state is what an instance owns: the truth for every command. It is written
// before a change to the kernel (with Pending set) and again after it.
type state struct {
	Version  int                 `json:"version"`
	Boot     string              `json:"boot"` // the kernel's boot id: what an earlier boot owned is gone
	Settings settings            `json:"settings"`
	Networks map[string]*network `json:"networks"`
	Uplinks  []uplink            `json:"uplinks,omitempty"` // attached ones
	XDP      []uplinkXDP         `json:"xdp,omitempty"`     // of the attached ones
	Sysctls  []sysctl            `json:"sysctls,omitempty"`
	Reserved *reservation        `json:"reserved_ports,omitempty"`
	// Fragments is the namespace that puts inbound fragments in order; nil: none.
	Fragments *fragments `json:"fragments,omitempty"`
}

// settings belong to the instance, not to a network.
type settings struct {
	Uplinks  []string      `json:"uplinks"` // as asked: device names or "auto"
	XDP      string        `json:"xdp"`     // XDPOff, XDPAuto or XDPNative; "": XDPAuto
	Lease    time.Duration `json:"lease"`
	L2Fast   bool          `json:"l2_fast"`
	NATFirst uint16        `json:"nat_first"`
	NATLast  uint16        `json:"nat_last"`
	FlowsMax uint32        `json:"flows_max"` // sessions, 0: the datapath's default
}

// network is one bridge that is up, or pending.
type network struct {
	Definition
	MTU     int  `json:"mtu_now"` // bytes; Definition.MTU 0 means the uplink's
	Index   int  `json:"index"`   // ifindex of the bridge, 0: not made yet
	Pending bool `json:"pending,omitempty"`
	// Defining: pending belongs to a `network create`, whose definition goes
	// too when it is undone.
	Defining bool             `json:"defining,omitempty"`
	Ports    map[string]*port `json:"ports"` // by host end
}

// port is one attached container.
type port struct {
	Name   string       `json:"name"`
	Port   string       `json:"port"`  // host end
	Index  int          `json:"index"` // of the host end, 0: not made yet
	Ifname string       `json:"ifname"`
	IP     netip.Addr   `json:"ip"`
	MAC    string       `json:"mac"`
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
	Owner   *Owner `json:"owner,omitempty"` // nil: the user
	Pending bool   `json:"pending,omitempty"`

	Bandwidth Bandwidth `json:"bandwidth,omitzero"`

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
	Addr  netip.Addr `json:"addr"`
	MTU   int        `json:"mtu"`
	RawIP bool       `json:"raw_ip"` // no Ethernet header
}

func newState(boot string) *state {
	return &state{Version: StateVersion, Boot: boot, Networks: map[string]*network{}}
}

// loadState reads the state of an instance; a fresh one if there is none, or if
// it is of an earlier boot.
func loadState(path, boot string) (*state, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newState(boot), nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	st := newState(boot)
	if len(b) == 0 { // a crash of the machine; see save
		return st, nil
	}
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if st.Version > StateVersion {
		return nil, fmt.Errorf("%s was written by a newer fastbr: use that, or run its 'fastbr down --all' first", path)
	}
	if st.Boot != boot {
		return newState(boot), nil
	}
	return st, nil
}

// save writes the state atomically. It does not wait for the disk: what the
// state describes ends with the machine's run, too, and several commands a second
// would each wait several times where the state directory is not in memory.
func (st *state) save(path string) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	err = os.WriteFile(unfinished(path), b, 0o600)
	if err == nil {
		err = os.Rename(unfinished(path), path)
	}
	if err != nil {
		return fmt.Errorf("writing the state: %w", err)
	}
	return nil
}

// unfinished is where save writes before it replaces the state. Only the holder
// of the lock does.
func unfinished(path string) string { return path + ".next" }

// networkNames are the recorded networks, sorted.
func (st *state) networkNames() []string {
	return slices.Sorted(maps.Keys(st.Networks))
}

// sortedPorts are the network's ports in order of their addresses.
func (n *network) sortedPorts() []*port {
	return slices.SortedFunc(maps.Values(n.Ports), func(a, b *port) int { return a.IP.Compare(b.IP) })
}
