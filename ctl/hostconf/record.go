// Package hostconf changes the host's settings that containers' traffic depends on,
// sysctls and the list of reserved ports, and restores them: the old value is on
// record before the first write, and what somebody else has changed since stays.
package hostconf

import "slices"

// Record is what has been changed of the host's settings, with what they were.
type Record struct {
	Sysctls  []Sysctl     `json:"sysctls,omitempty"`
	Reserved *Reservation `json:"reserved_ports,omitempty"`
}

// Sysctl is a setting that was changed, with what it was before.
type Sysctl struct {
	Path string `json:"path"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

// Reservation is what was added to ip_local_reserved_ports. Sockets of the host
// that let the kernel choose their port, which no program of ours sees, then get
// neither one of the NAT range nor a published one, whose answers would go to the
// container.
type Reservation struct {
	Added string `json:"added"`
}

// Host is the host's settings and the record of what was changed of them.
type Host struct {
	*Record
	Save func() error                     // writes the record down
	Say  func(format string, args ...any) // tells the user

	reserved *PortSet // the kernel's list; nil: not read yet
}

// Want is what the host should be set to.
type Want struct {
	Router  bool // ip_forward, for a network that is routed
	Router6 bool // the same by IPv6
	// Advertised are the devices with routes that routers have advertised (IPv6). Only a
	// host that wants Router6 has to tell.
	Advertised []string
	Reserved   PortSet // the ports that the kernel should give to no socket
}

// Recorded reports whether a setting was changed.
func (h *Host) Recorded(path string) bool { return h.find(path) >= 0 }

// find returns where the record has a setting, -1 if it has not.
func (h *Host) find(path string) int {
	return slices.IndexFunc(h.Sysctls, func(c Sysctl) bool { return c.Path == path })
}
