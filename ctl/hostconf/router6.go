package hostconf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A host that is no router takes its default route, and mostly its addresses, from router
// advertisements (accept_ra 1). Once it forwards it is a router and does so no more: to
// write 1 to any "forwarding" of IPv6, were it 1 before, deletes every advertised route of
// every device whose accept_ra is not 2 (net/ipv6/addrconf.c, addrconf_fixup_forwarding).
// So, from the first network that leads outside by IPv6 to the last network of all,
// accept_ra is 2 where routes are advertised, whoever makes the host a router. 0 is left
// alone: somebody else looks after routes there.
//
// Since Linux 6.17 the host need not be a router: the kernel forwards what comes in by a
// device whose force_forwarding is 1. For an older kernel conf/all/forwarding is set.
const (
	acceptRA   = "/accept_ra"
	forwarding = "/forwarding"
)

// OpensDevices reports whether the kernel can forward what comes in by single devices.
func (f Family) OpensDevices() bool {
	_, err := os.Stat(f.newDevices())
	return err == nil
}

// WithoutForced makes IPv6 what it is before Linux 6.17, for tests.
func WithoutForced() { IPv6.leaf = "none" }

// recordRouter6 notes what is to be changed for a network that is routed by IPv6:
// accept_ra where it is needed, and, where the kernel opens no single devices, forwarding
// of all of them, with what the kernel changes along with it. advertised are the devices
// with routes that routers have advertised.
func (h *Host) recordRouter6(advertised []string) error {
	router := !IPv6.OpensDevices() && !h.Recorded(Forward6)
	old := ""
	if router {
		var err error
		if old, err = Read(Forward6); err != nil {
			return fmt.Errorf("reading %s: %w", Name(Forward6), err)
		}
		advertised = slices.Concat(advertised, accepting()) // what comes later is advertised, too
	}
	for _, device := range advertised {
		if path := conf6 + device + acceptRA; !h.Recorded(path) && losesRoutes(device) {
			h.Sysctls = append(h.Sysctls, Sysctl{path, "1", "2"})
		}
	}
	if !router {
		return nil
	}
	h.Sysctls = append(h.Sysctls, Sysctl{Forward6, old, "1"})
	if old != "0" {
		return nil
	}
	paths, _ := filepath.Glob(conf6 + "*" + forwarding)
	for _, p := range paths {
		if p != Forward6 {
			h.recordMoved(p, "0")
		}
	}
	return nil
}

// accepting are the devices that take what is advertised, and those that will appear.
func accepting() (out []string) {
	paths, _ := filepath.Glob(conf6 + "*" + acceptRA)
	for _, p := range paths {
		device := deviceOf(p)
		off, err := Read(conf6 + device + "/disable_ipv6")
		if err == nil && off == "0" && device != "all" && device != "lo" {
			out = append(out, device)
		}
	}
	return out
}

// losesRoutes reports whether a device takes what is advertised only as long as the host is
// no router.
func losesRoutes(device string) bool {
	accept, err := Read(conf6 + device + acceptRA)
	if err != nil || accept != "1" {
		return false
	}
	router, err := Read(conf6 + device + forwarding)
	return err == nil && router == "0"
}

// Unkept are those of the devices with advertised routes that would lose them.
func Unkept(advertised []string) []string {
	return slices.DeleteFunc(slices.Clone(advertised), func(device string) bool { return !losesRoutes(device) })
}

// restoreLast sorts a record for Restore: accept_ra goes back when the host is no router
// any more.
func restoreLast(record []Sysctl) []Sysctl {
	var first, last []Sysctl
	for _, c := range record {
		if strings.HasSuffix(c.Path, acceptRA) {
			last = append(last, c)
		} else {
			first = append(first, c)
		}
	}
	return append(first, last...)
}
