package datapath

import (
	"testing"

	"github.com/cilium/ebpf"
)

// TestLoadIPv6 loads the programs compiled for IPv6.
func TestLoadIPv6(t *testing.T) {
	spec, err := loadTc6()
	check(t, err)
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		failVerbosely(t, err)
	}
	c.Close()
}
