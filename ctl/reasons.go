package ctl

import "github.com/fastbr/fastbr/datapath"

// DropReasons are all values that a key of PortView.Drops can have, whether or
// not such a packet was ever seen.
func DropReasons() []string {
	var out []string
	for _, r := range datapath.Reasons() {
		out = append(out, string(r))
	}
	return out
}
