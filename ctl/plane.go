package ctl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/datapath"
)

// plane is what ctl uses of *datapath.Datapath; tests put a fake in its place.
type plane interface {
	Close() error
	Config() (datapath.Config, error)
	SetNetwork(datapath.Network) error
	DeleteNetwork(bridge int) error
	AttachPort(datapath.Port) error
	DetachPort(ifindex int) error
	PortAt(netip.Addr) (ifindex int, err error)
	Publish(...datapath.Publication) error
	Unpublish(...datapath.Publication) error
	VerifyPublication(datapath.Publication) error
	AttachHost(cgroup string) error
	SetLocal([]netip.Addr) error
	AttachUplink(datapath.Uplink) error
	CloseUplink(ifindex int) error
	DetachUplink(ifindex int) error
	AttachXDP(ifindex int) error
	DetachXDP(ifindex int) error
	VerifyXDP(ifindex int) error
	Devices() ([]int, error)
	AttachDefrag() error
	AttachFragments(ifindex int, peer net.HardwareAddr) error
	DetachFragments(ifindex int) error
	VerifyFragments(ifindex int) error
	AttachGuard() error
	VerifyPort(datapath.Port) error
	VerifyUplink(datapath.Uplink) error
	HasUplink(datapath.Uplink) error
	Unpinned(ports []int) ([]int, error)
	VerifyGuard() error
	SetLease(time.Duration) error
	Lease() (time.Duration, error)
	SetOpened(ipv4, ipv6 bool) error
	SetNATRange(first, last uint16) error
	Revoke() error
	Stats(ifindexes ...int) (map[int]datapath.Counters, error)
	NATStats() (datapath.NATStats, error)
	Flows() ([]datapath.Flow, error)
	FlushFlows() (int, error)
}

// planes creates, opens and removes pinned datapaths.
type planes interface {
	prepare(bpffs string) error // the place for pins; mounts it where that is safe
	create(dir string, cfg datapath.Config) (plane, error)
	open(dir string) (plane, error)
	// upgrade makes the pins of an older build this one's, as datapath.Upgrade.
	upgrade(dir string, passed func(string) error, settle func(plane) error) (bool, error)
	remove(dir string) error
	probe() []datapath.Feature
}

// kernel is the real thing.
type kernel struct{ missing string } // see hooks

func (kernel) prepare(bpffs string) error { return ensureBPFFS(bpffs) }

func (kernel) create(dir string, cfg datapath.Config) (plane, error) {
	for {
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return nil, fmt.Errorf("making the directory for pins: %w", err)
		}
		dp, err := datapath.Create(dir, cfg)
		if err == nil {
			return dp, nil
		}
		// Another instance's last down may have taken the directory meanwhile.
		if _, gone := os.Stat(filepath.Dir(dir)); !errors.Is(gone, os.ErrNotExist) {
			return nil, err
		}
	}
}

func (kernel) open(dir string) (plane, error) {
	dp, err := datapath.Open(dir)
	if err != nil {
		return nil, err
	}
	return dp, nil
}

func (kernel) upgrade(dir string, passed func(string) error, settle func(plane) error) (bool, error) {
	return datapath.Upgrade(dir, datapath.Hooks{Passed: passed, Settle: func(dp *datapath.Datapath) error { return settle(dp) }})
}

func (kernel) remove(dir string) error {
	if err := datapath.Remove(dir); err != nil {
		return err
	}
	// The directory above belongs to all instances: gone with the last.
	_ = os.Remove(filepath.Dir(dir))
	return nil
}

// probe lists the kernel's features; those that a hook names ("tcx,btf,jit") are
// reported missing.
func (k kernel) probe() []datapath.Feature {
	return withhold(datapath.Probe(), k.missing)
}

func withhold(features []datapath.Feature, names string) []datapath.Feature {
	if names == "" {
		return features
	}
	missing := strings.Split(names, ",")
	for i, f := range features {
		at := slices.Index(missing, f.Name)
		if at < 0 {
			continue
		}
		features[i].Err = fmt.Errorf("%s: %w", f.Name, datapath.ErrNotSupported)
		missing = slices.Delete(missing, at, at+1)
	}
	// A name the probe does not know is still reported, so that a test of the
	// refusal does not depend on the list.
	for _, name := range missing {
		features = append(features, datapath.Feature{Name: name, Required: true, Minimum: "6.6",
			Err: fmt.Errorf("%s: %w", name, datapath.ErrNotSupported)})
	}
	return features
}

// ensureBPFFS makes sure that path is a BPF filesystem. The usual place is
// mounted when it is empty, as ip(8) and others do, and stays mounted; any
// other place is the user's business.
func ensureBPFFS(path string) error {
	if isBPFFS(path) {
		return nil
	}
	mount := fmt.Sprintf("mount it with 'mount -t bpf bpf %s'", path)
	if path != DefaultBPFFS {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("no BPF filesystem at %s: make the directory, then %s", path, mount)
		}
		return fmt.Errorf("no BPF filesystem at %s: %s", path, mount)
	}
	err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700")
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("no BPF filesystem at %s, and no directory for it: use --bpffs", path)
	}
	if err != nil {
		return fmt.Errorf("no BPF filesystem at %s: %s (%w)", path, mount, err)
	}
	return nil
}

func isBPFFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}
