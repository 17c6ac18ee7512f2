package link

import (
	"fmt"

	"github.com/safchain/ethtool"
)

// Names of features.
const (
	GRO        = "rx-gro"                 // generic receive offload
	TXChecksum = "tx-checksum-ip-generic" // checksums may be left for later completion
)

// Offloads reports which features of a device in the current namespace are on,
// by the kernel's names.
func Offloads(device string) (map[string]bool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("opening ethtool: %w", err)
	}
	defer e.Close()
	on, err := e.Features(device)
	if err != nil {
		return nil, fmt.Errorf("reading the features of %s: %w", device, err)
	}
	return on, nil
}

// SetOffload turns a feature of a device in the current namespace on or off.
func SetOffload(device, feature string, on bool) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("opening ethtool: %w", err)
	}
	defer e.Close()
	if err := e.Change(device, map[string]bool{feature: on}); err != nil {
		return fmt.Errorf("setting %s of %s: %w", feature, device, err)
	}
	return nil
}
