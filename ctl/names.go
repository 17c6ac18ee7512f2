package ctl

import (
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
)

// Zone is what the names of one network mean to its containers.
type Zone struct {
	Network  string
	Gateway  netip.Addr // where the containers ask
	Subnet   netip.Prefix
	Subnet6  netip.Prefix // invalid: no IPv6
	Internal bool
	Via      string                // the only device by which questions may leave; "": any
	Hosts    map[string]netip.Addr // by name, in lower case
	Hosts6   map[string]netip.Addr // their IPv6 addresses, where they have one
}

// Names reads the names of containers. It takes no lock, since the state is
// replaced as a whole, and reads it only when it has changed: a resolver may ask
// it for each query. Safe for concurrent use.
type Names struct {
	path, boot string

	mu    sync.Mutex
	read  fs.FileInfo // the state that zones were made of; nil: none
	zones []Zone
}

// Names returns the reader of this instance's names.
func (c *Controller) Names() *Names {
	return &Names{path: c.instance.statePath(), boot: c.instance.boot}
}

// Zones returns the networks that are up and whose names are to be answered,
// sorted by name; none without an error when nothing is up. The caller must not
// change them.
func (n *Names) Zones() ([]Zone, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, err := os.Stat(n.path)
	if os.IsNotExist(err) {
		n.read, n.zones = nil, nil
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if n.read != nil && os.SameFile(n.read, now) && n.read.ModTime().Equal(now.ModTime()) {
		return n.zones, nil
	}
	st, err := loadState(n.path, n.boot)
	if err != nil {
		return nil, err
	}
	n.read, n.zones = now, st.zones()
	return n.zones, nil
}

func (st *state) zones() (out []Zone) {
	for _, name := range st.networkNames() {
		d := st.Networks[name]
		if d.Pending || d.NoDNS {
			continue
		}
		z := Zone{Network: strings.ToLower(name), Gateway: d.Gateway, Subnet: d.Subnet, Subnet6: d.Subnet6, Internal: d.Internal, Via: d.Via,
			Hosts: make(map[string]netip.Addr, len(d.Ports)), Hosts6: map[string]netip.Addr{}}
		for _, p := range d.sortedPorts() {
			key := strings.ToLower(p.Name)
			if _, taken := z.Hosts[key]; !taken && !p.Pending {
				z.Hosts[key] = p.IP
				if p.IP6.IsValid() {
					z.Hosts6[key] = p.IP6
				}
			}
		}
		out = append(out, z)
	}
	return out
}
