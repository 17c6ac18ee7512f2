package hostconf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The kernel forwards what came in by a device whose "forwarding" is 1. What
// containers send comes in by their bridge, and what answers them by an uplink, or by
// any other device. fastbr opens these devices and leaves ip_forward alone, which still
// says whether anybody else wants this host to be a router. As long as it is 0,
// fbr_guard lets what comes in by a device that fastbr has opened leave by fastbr's
// bridges only: no way opens between the host's other networks. Whoever sets
// ip_forward=1, as other engines do when they find 0, opens that way at once.
//
// A network that is not translated (--masquerade=false) is routed, to wherever
// the host's routes lead: for that ip_forward itself is set.
//
// IPv6 has "force_forwarding" for the same since Linux 6.17: before, the kernel asked
// conf/all/forwarding only. A device's own "forwarding" makes the host a router in the eyes
// of its neighbours there, and is what bpf_fib_lookup() asks. Bridges of fastbr have both.
// To write any "forwarding" of IPv6 takes away the default routes that routers have
// advertised (router6.go).

// Family is where a family has the settings by which the kernel forwards what came in by
// a device.
type Family struct {
	conf   string // the directory of devices' settings
	leaf   string // of a device
	router string // of the host
}

// The two families.
var (
	IPv4 = Family{Conf, "forwarding", IPForward}
	IPv6 = Family{conf6, "force_forwarding", Forward6}
)

// Lookup6 is what bpf_fib_lookup() asks of a bridge before it answers about IPv6.
var Lookup6 = Family{conf6, "forwarding", Forward6}

// Forwarding is the setting of one device.
func (f Family) Forwarding(device string) string { return f.conf + device + "/" + f.leaf }

// RecordClosed notes that an uplink forwards nothing by itself, if that is so,
// before it is opened, and reports whether it was so.
func (h *Host) RecordClosed(f Family, device string) (bool, error) {
	path := f.Forwarding(device)
	if h.Recorded(path) || h.Recorded(f.newDevices()) {
		return true, nil
	}
	now, err := Read(path)
	if err != nil || now != "0" {
		return false, ignoreMissing(err)
	}
	h.Sysctls = append(h.Sysctls, Sysctl{path, now, "1"})
	return true, h.Save()
}

// Open lets the kernel forward what comes in by a device.
func (f Family) Open(device string) error {
	path := f.Forwarding(device)
	if now, err := Read(path); err != nil || now == "1" {
		return ignoreMissing(err)
	}
	return Write(path, "1")
}

// Close closes a device that was an uplink, unless it was open before, or somebody else
// has made the host a router.
func (h *Host) Close(f Family, device string) error {
	i := h.find(f.Forwarding(device))
	if i < 0 {
		return nil
	}
	if err := h.Sysctls[i].restore(); err != nil {
		return err
	}
	h.Sysctls = slices.Delete(h.Sysctls, i, i+1)
	return h.Save()
}

// newDevices is what a device that appears starts with.
func (f Family) newDevices() string { return f.Forwarding("default") }

// CanOpenOthers reports whether OpenOthers would open devices: nothing on this host is
// open but ours. Where somebody has opened the whole host, containers get answers by
// every device. Where somebody has opened some devices, it is theirs to open others.
func (h *Host) CanOpenOthers(f Family, ours []string) (bool, error) {
	if h.Recorded(f.newDevices()) {
		return true, nil
	}
	if router, err := Read(f.router); err != nil || router != "0" {
		return false, err
	}
	devices, err := filepath.Glob(f.Forwarding("*"))
	if err != nil {
		return false, err
	}
	for _, path := range devices {
		if slices.Contains(ours, deviceOf(path)) || h.Recorded(path) || path == f.Forwarding("lo") {
			continue
		}
		if now, err := Read(path); err == nil && now != "0" {
			return false, nil
		}
	}
	return true, nil
}

// OthersOpen reports whether the kernel forwards what comes in by any device.
func (h *Host) OthersOpen(f Family) bool {
	router, err := Read(f.router)
	return h.Recorded(f.newDevices()) || err == nil && router == "1"
}

// OpenOthers lets the kernel forward what comes in by any device, those that appear
// later included, if CanOpenOthers. It does so once: with a thousand devices it takes
// milliseconds, and a device that somebody closes stays closed.
func (h *Host) OpenOthers(f Family) error {
	if newDevices := f.newDevices(); h.Recorded(newDevices) {
		if now, err := Read(newDevices); err != nil || now == "1" {
			return err
		}
	} else {
		h.Sysctls = append(h.Sysctls, Sysctl{newDevices, "0", "1"})
		if err := h.Save(); err != nil {
			return err
		}
	}
	return h.setOthers(f, "1", nil)
}

// CloseOthers takes back what OpenOthers did, but for devices of ours, which from then
// on have a record each.
func (h *Host) CloseOthers(f Family, ours []string) error {
	i := h.find(f.newDevices())
	if i < 0 {
		return nil
	}
	router, err := Read(f.router)
	if err != nil {
		return err
	}
	// Whoever has set ip_forward has opened every device. IPv6's router setting leaves
	// devices' force_forwarding as it is.
	if router == "0" || f == IPv6 {
		if err := h.setOthers(f, "0", ours); err != nil {
			return err
		}
	}
	h.Sysctls = slices.Delete(h.Sysctls, i, i+1)
	for _, device := range ours {
		if path := f.Forwarding(device); !h.Recorded(path) {
			h.Sysctls = append(h.Sysctls, Sysctl{path, "0", "1"})
		}
	}
	return h.Save()
}

// setOthers sets the forwarding of every device but those in except, and of those that
// appear.
func (h *Host) setOthers(f Family, value string, except []string) error {
	devices, err := filepath.Glob(f.Forwarding("*"))
	if err != nil {
		return err
	}
	except = slices.Concat(except, []string{"all", "lo"})
	for _, path := range devices {
		if slices.Contains(except, deviceOf(path)) || value == "0" && h.Recorded(path) && path != f.newDevices() {
			continue
		}
		now, err := Read(path)
		if err == nil && now != value {
			err = Write(path, value)
		}
		if err := ignoreMissing(err); err != nil {
			return err
		}
	}
	return nil
}

// deviceOf is the device of a Forwarding path.
func deviceOf(path string) string { return filepath.Base(filepath.Dir(path)) }

// restore puts the old value back, unless somebody has changed it meanwhile.
func (c Sysctl) restore() error {
	now, err := Read(c.Path)
	if err != nil {
		return ignoreMissing(err) // the module or the device has gone
	}
	if device, ok := strings.CutSuffix(c.Path, "/"+IPv4.leaf); ok && device != Conf+"all" && strings.HasPrefix(device, Conf) && c.Old == "0" {
		if router, err := Read(IPForward); err == nil && router == "1" {
			return nil // somebody else's ip_forward holds for this device, too
		}
	}
	if device, ok := strings.CutSuffix(c.Path, acceptRA); ok {
		if router, err := Read(device + forwarding); err == nil && router != "0" {
			return nil // somebody else's forwarding holds for this device: it would lose its route
		}
	}
	// Records with Old == New are those the kernel turned on our behalf.
	if now != c.Old && (now == c.New || c.Old == c.New) {
		return Write(c.Path, c.Old)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
