package hostconf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	Net         = "/proc/sys/net/"
	IPForward   = Net + "ipv4/ip_forward"
	Conf        = Net + "ipv4/conf/"
	Forward6    = Net + "ipv6/conf/all/forwarding"
	Reserved    = Net + "ipv4/ip_local_reserved_ports"
	Liberal     = Net + "netfilter/nf_conntrack_tcp_be_liberal"
	BridgeCall  = Net + "bridge/bridge-nf-call-iptables"
	BridgeCall6 = Net + "bridge/bridge-nf-call-ip6tables"

	conntrackMax = Net + "netfilter/nf_conntrack_max"
)

func Read(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func Write(path, value string) error {
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		return fmt.Errorf("setting %s: %w", Name(path), err)
	}
	return nil
}

// Name is the name sysctl(8) uses.
func Name(path string) string {
	return strings.ReplaceAll(strings.TrimPrefix(path, "/proc/sys/"), "/", ".")
}

// Set brings the host's settings to what is wanted. Old values are on disk before the
// first write and never overwritten.
func (h *Host) Set(want Want) error {
	before, reserved := slices.Clone(h.Sysctls), h.Reserved
	if want.Router {
		if err := h.recordForwarding(); err != nil {
			return err
		}
	}
	if want.Router6 {
		if err := h.recordRouter6(want.Advertised); err != nil {
			return err
		}
	}
	if err := h.recordLiberal(); err != nil {
		return err
	}
	if err := h.RecordReserved(want.Reserved); err != nil {
		return err
	}
	if !slices.Equal(before, h.Sysctls) || reserved != h.Reserved {
		if err := h.Save(); err != nil {
			return err
		}
	}
	for _, c := range h.Sysctls {
		accepts := strings.HasSuffix(c.Path, acceptRA)
		if !accepts && !slices.Contains([]string{IPForward, Forward6, Liberal}, c.Path) {
			continue // of an uplink, or recorded because the kernel changes it with ip_forward
		}
		now, err := Read(c.Path)
		if err == nil && now == c.New {
			continue
		}
		if accepts && (errors.Is(err, os.ErrNotExist) || now == "0") {
			continue // the device has gone, or somebody else looks after its routes
		}
		if err := Write(c.Path, c.New); err != nil {
			return err
		}
		if slices.Contains(before, c) {
			h.Say("somebody has set %s to %s: it is %s again, as long as networks are up", Name(c.Path), now, c.New)
		}
	}
	return h.Reserve(want.Reserved)
}

// recordForwarding notes, for a network that is routed, ip_forward and all that the kernel changes with it:
// writing it sets forwarding on every device and turns accept_redirects.
func (h *Host) recordForwarding() error {
	if h.Recorded(IPForward) {
		return nil
	}
	old, err := Read(IPForward)
	if err != nil {
		return fmt.Errorf("reading %s: %w", Name(IPForward), err)
	}
	h.Sysctls = append(h.Sysctls, Sysctl{IPForward, old, "1"})
	if old == "1" {
		return nil
	}
	paths, _ := filepath.Glob(Conf + "*/forwarding")
	for _, p := range append(paths, Conf+"all/accept_redirects") {
		if p == Conf+"all/forwarding" {
			continue // the same setting as ip_forward
		}
		if strings.HasSuffix(p, "/forwarding") && (h.Recorded(p) || h.Recorded(IPv4.newDevices())) {
			continue // fastbr has opened it
		}
		// What the kernel will restore by itself when ip_forward goes back.
		byItself := "0"
		if strings.HasSuffix(p, "accept_redirects") {
			byItself = "1"
		}
		h.recordMoved(p, byItself)
	}
	return nil
}

// recordMoved notes a setting that the kernel changes along with another, unless it will be
// back by itself when that goes back.
func (h *Host) recordMoved(path, byItself string) {
	if v, err := Read(path); err == nil && v != byItself {
		h.Sysctls = append(h.Sysctls, Sysctl{path, v, v})
	}
}

// recordLiberal notes conntrack's TCP strictness. Conntrack does not see every
// segment of a flow on the fast path; strict, it calls the rest invalid.
func (h *Host) recordLiberal() error {
	if h.Recorded(Liberal) {
		return nil
	}
	old, err := Read(Liberal)
	if errors.Is(err, os.ErrNotExist) {
		// Loaded later, the module would start with 0.
		_ = exec.Command("modprobe", "-q", "nf_conntrack").Run()
		old, err = Read(Liberal)
	}
	if errors.Is(err, os.ErrNotExist) {
		h.Say("connection tracking is not available: %s stays unset; if it is loaded later, set it to 1", Name(Liberal))
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", Name(Liberal), err)
	}
	h.Sysctls = append(h.Sysctls, Sysctl{Liberal, old, "1"})
	return nil
}

// ConntrackMax is how many entries connection tracking may have; 0 if it is not there.
func ConntrackMax() (int, error) {
	v, err := Read(conntrackMax)
	if err != nil {
		return 0, ignoreMissing(err)
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", Name(conntrackMax), err)
	}
	return n, nil
}

// RaiseConntrackMax makes room for a number of entries beside the host's own. Only the
// initial network namespace may: in others it does nothing.
func (h *Host) RaiseConntrackMax(entries int) error {
	now, err := ConntrackMax()
	want := entries + entries/4
	if err != nil || now == 0 || now >= want {
		return err
	}
	if f, err := os.OpenFile(conntrackMax, os.O_WRONLY, 0); err != nil {
		return nil
	} else if err := f.Close(); err != nil {
		return err
	}
	if i := h.find(conntrackMax); i >= 0 {
		h.Sysctls[i].New = strconv.Itoa(want)
	} else {
		h.Sysctls = append(h.Sysctls, Sysctl{conntrackMax, strconv.Itoa(now), strconv.Itoa(want)})
	}
	if err := h.Save(); err != nil {
		return err
	}
	return Write(conntrackMax, strconv.Itoa(want))
}

// Restore puts back what Set changed, unless somebody changed it again meanwhile.
func (h *Host) Restore() error {
	var errs []error
	for _, c := range restoreLast(h.Sysctls) {
		errs = append(errs, c.restore())
	}
	errs = append(errs, h.unreserve())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	*h.Record = Record{}
	return h.Save()
}
