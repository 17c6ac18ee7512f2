package ctl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// reachFromHost makes published ports reachable for the host's own processes.
// Where that cannot be, they are reached from everywhere else, and the user is told.
func (op *operation) reachFromHost() error {
	if op.hostReached {
		return nil
	}
	op.hostReached = true
	if err := op.syncLocal(); err != nil {
		return err
	}
	cgroup, err := op.hooks.hostCgroup()
	if err == nil {
		err = op.dp.AttachHost(cgroup)
	}
	if err != nil {
		op.say("published ports are not reached from the host itself: %v", err)
	}
	return nil
}

// syncLocal tells the datapath which addresses the host has.
func (op *operation) syncLocal() error {
	addrs, err := op.host.allAddrs()
	if err != nil {
		return err
	}
	if err := op.dp.SetLocal(append(addrs, netip.AddrFrom4([4]byte{127, 0, 0, 1}))); err != nil {
		return fmt.Errorf("noting the host's addresses: %w", err)
	}
	return nil
}

// hostCgroup is the cgroup that all processes of the host are in: the root of
// the cgroup2 hierarchy, wherever it is mounted. Tests and labs name another: their
// programs must not run for the whole machine.
func (h hooks) hostCgroup() (string, error) {
	if h.cgroup != "" {
		return h.cgroup, nil
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("looking for the cgroup2 mount: %w", err)
	}
	return cgroup2Root(string(b))
}

// cgroup2Root finds the mount of the whole cgroup2 hierarchy in the format of
// /proc/PID/mountinfo (proc_pid_mountinfo(5)). On a host that still has cgroup v1
// it is not /sys/fs/cgroup.
func cgroup2Root(mountinfo string) (string, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		mount, fs, ok := strings.Cut(line, " - ")
		m, f := strings.Fields(mount), strings.Fields(fs)
		if ok && len(m) > 4 && len(f) > 0 && f[0] == "cgroup2" && m[3] == "/" {
			return unescape.Replace(m[4]), nil
		}
	}
	return "", errors.New("no cgroup2 filesystem is mounted")
}
