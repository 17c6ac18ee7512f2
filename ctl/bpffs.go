package ctl

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

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
