package ctl

import "testing"

func TestCgroup2Root(t *testing.T) {
	const v1 = "31 30 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
	for name, c := range map[string]struct{ mountinfo, want string }{
		"unified":   {"30 22 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		"hybrid":    {v1 + "40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		"elsewhere": {v1 + `41 30 0:37 / /mnt/a\040b rw - cgroup2 none rw` + "\n", "/mnt/a b"},
		// A bind mount of a part of it does not cover the host's processes.
		"part first": {"41 30 0:37 /a /mnt/a rw - cgroup2 cgroup2 rw\n42 30 0:37 / /mnt/b rw - cgroup2 cgroup2 rw\n", "/mnt/b"},
		"none":       {v1, ""},
		"cut short":  {"40 30 0:37 /\n- cgroup2\n", ""},
	} {
		got, err := cgroup2Root(c.mountinfo)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}
