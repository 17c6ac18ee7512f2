package main

import (
	"testing"

	"github.com/fastbr/fastbr/ctl"
)

// Each family has a table of its own, so that one may be full while the other is not.
func TestFlowsInUse(t *testing.T) {
	for want, v := range map[string]ctl.StatusView{
		"5 of 64 flows":                          {Flows: 5, FlowsOf: map[string]uint32{"ipv4": 5}, FlowsMax: 64},
		"5 of 64 flows by IPv4, 0 of 64 by IPv6": {Flows: 5, FlowsOf: map[string]uint32{"ipv4": 5, "ipv6": 0}, FlowsMax: 64},
		"0 of 64 flows":                          {FlowsMax: 64},
	} {
		if got := flowsInUse(v); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
