package hostconf

import (
	"errors"
	"os"
)

const conf6 = Net + "ipv6/conf/"

// HasIPv6 reports whether the kernel has IPv6.
func HasIPv6() bool {
	_, err := os.Stat(conf6 + "all")
	return err == nil
}

// QuietIPv6 keeps the kernel from giving the device a link-local address and
// from answering router advertisements on it. Nothing to do without IPv6.
func QuietIPv6(device string) error {
	err := Write(conf6+device+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// ipv6 are the settings of a device that has the addresses it is given, and the link-local
// one of its MAC address: nothing that others advertise. The last one turns IPv6 on.
var ipv6 = []struct{ key, value string }{
	{"accept_ra", "0"}, {"autoconf", "0"}, {"addr_gen_mode", "0"}, {"disable_ipv6", "0"},
}

// GiveIPv6 turns IPv6 on for the device of a container.
func GiveIPv6(device string) error {
	for _, s := range ipv6 {
		if err := Write(conf6+device+"/"+s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

// AskForDuplicates makes the kernel ask, before the device uses an IPv6 address, whether
// another host has it.
func AskForDuplicates(device string) error {
	return errors.Join(Write(conf6+device+"/enhanced_dad", "1"), Write(conf6+device+"/accept_dad", "1"))
}

// HostIPv6 turns IPv6 on for a device of the host, which keeps its addresses while it is
// down, as it keeps IPv4's.
func HostIPv6(device string) error {
	return errors.Join(Write(conf6+device+"/keep_addr_on_down", "1"), GiveIPv6(device))
}

// LacksIPv6 says which setting of GiveIPv6 a device does not have, "" if it has all.
func LacksIPv6(device string) string {
	for _, s := range ipv6 {
		if now, err := Read(conf6 + device + "/" + s.key); err == nil && now != s.value {
			return s.key + " " + now + " instead of " + s.value
		}
	}
	return ""
}

// IsQuiet reports whether a device has no IPv6.
func IsQuiet(device string) bool {
	v, err := Read(conf6 + device + "/disable_ipv6")
	return err != nil || v != "0"
}
