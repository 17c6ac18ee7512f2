package ctl

import "github.com/fastbr/fastbr/datapath"

// DropReasons are all values that a key of PortView.Drops can have, whether or
// not such a packet was ever seen.
func DropReasons() ([]string, error) {
	reasons, err := datapath.Reasons()
	if err != nil {
		return nil, err
	}
	out := make([]string, len(reasons))
	for i, r := range reasons {
		out[i] = string(r)
	}
	return out, nil
}
