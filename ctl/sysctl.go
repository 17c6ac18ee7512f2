package ctl

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// sysctl is a setting we changed, with what it was before.
type sysctl struct {
	Path string `json:"path"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

const (
	sysNet        = "/proc/sys/net/"
	sysForward    = sysNet + "ipv4/ip_forward"
	sysConf       = sysNet + "ipv4/conf/"
	sysReserved   = sysNet + "ipv4/ip_local_reserved_ports"
	sysLiberal    = sysNet + "netfilter/nf_conntrack_tcp_be_liberal"
	sysBridgeCall = sysNet + "bridge/bridge-nf-call-iptables"
)

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(path, value string) error {
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		return fmt.Errorf("setting %s: %w", sysctlName(path), err)
	}
	return nil
}

// sysctlName is the name sysctl(8) uses.
func sysctlName(path string) string {
	return strings.ReplaceAll(strings.TrimPrefix(path, "/proc/sys/"), "/", ".")
}

// setSysctls brings the host's settings to what the datapath needs. Old values
// are on disk before the first write and never overwritten.
func (op *operation) setSysctls() error {
	before, reserved := slices.Clone(op.st.Sysctls), op.st.Reserved
	if err := op.recordForwarding(); err != nil {
		return err
	}
	if err := op.recordLiberal(); err != nil {
		return err
	}
	if err := op.recordReserved(); err != nil {
		return err
	}
	if !slices.Equal(before, op.st.Sysctls) || reserved != op.st.Reserved {
		if err := op.save(); err != nil {
			return err
		}
	}
	for _, c := range op.st.Sysctls {
		if c.Path != sysForward && c.Path != sysLiberal {
			continue // of an uplink, or recorded because the kernel changes it with ip_forward
		}
		now, err := readSysctl(c.Path)
		if err == nil && now == c.New {
			continue
		}
		if err := writeSysctl(c.Path, c.New); err != nil {
			return err
		}
		if slices.Contains(before, c) {
			op.say("somebody has set %s to %s: it is %s again, as long as networks are up", sysctlName(c.Path), now, c.New)
		}
	}
	return op.reserve()
}

func (op *operation) recorded(path string) bool {
	for _, c := range op.st.Sysctls {
		if c.Path == path {
			return true
		}
	}
	return false
}

// recordForwarding notes, for a network that is routed, ip_forward and all that the kernel changes with it:
// writing it sets forwarding on every device and turns accept_redirects.
func (op *operation) recordForwarding() error {
	if op.recorded(sysForward) || !op.routed() {
		return nil
	}
	old, err := readSysctl(sysForward)
	if err != nil {
		return fmt.Errorf("reading %s: %w", sysctlName(sysForward), err)
	}
	op.st.Sysctls = append(op.st.Sysctls, sysctl{sysForward, old, "1"})
	if old == "1" {
		return nil
	}
	paths, _ := filepath.Glob(sysConf + "*/forwarding")
	for _, p := range append(paths, sysConf+"all/accept_redirects") {
		if p == sysConf+"all/forwarding" {
			continue // the same setting as ip_forward
		}
		// What the kernel will restore by itself when ip_forward goes back.
		byItself := "0"
		if strings.HasSuffix(p, "accept_redirects") {
			byItself = "1"
		}
		if v, err := readSysctl(p); err == nil && v != byItself {
			op.st.Sysctls = append(op.st.Sysctls, sysctl{p, v, v})
		}
	}
	return nil
}

// recordLiberal notes conntrack's TCP strictness. Conntrack does not see every
// segment of a flow on the fast path; strict, it calls the rest invalid.
func (op *operation) recordLiberal() error {
	if op.recorded(sysLiberal) {
		return nil
	}
	old, err := readSysctl(sysLiberal)
	if errors.Is(err, os.ErrNotExist) {
		// Loaded later, the module would start with 0.
		_ = exec.Command("modprobe", "-q", "nf_conntrack").Run()
		old, err = readSysctl(sysLiberal)
	}
	if errors.Is(err, os.ErrNotExist) {
		op.say("connection tracking is not available: %s stays unset; if it is loaded later, set it to 1", sysctlName(sysLiberal))
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", sysctlName(sysLiberal), err)
	}
	op.st.Sysctls = append(op.st.Sysctls, sysctl{sysLiberal, old, "1"})
	return nil
}

// restoreSysctls puts back what setSysctls changed, unless somebody changed it
// again meanwhile.
func (op *operation) restoreSysctls() error {
	var errs []error
	for _, c := range op.st.Sysctls {
		errs = append(errs, c.restore())
	}
	errs = append(errs, op.unreserve())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	op.st.Sysctls, op.st.Reserved = nil, nil
	return op.save()
}

// quietIPv6 keeps the kernel from giving the device a link-local address and
// from answering router advertisements on it. Nothing to do without IPv6.
func quietIPv6(device string) error {
	err := writeSysctl(sysNet+"ipv6/conf/"+device+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
