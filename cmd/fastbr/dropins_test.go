package main

import (
	"os"
	"path"
	"strings"
	"testing"
)

// The drop-ins for systemd-networkd and NetworkManager match every device that fastbr
// makes under its own names, and no other. Both programs use shell patterns.
func TestDropInsNameOurDevices(t *testing.T) {
	for file, pattern := range map[string]func(line string) []string{
		"networkd/10-fastbr.network": func(line string) []string {
			names, _ := strings.CutPrefix(line, "Name=")
			return strings.Fields(names)
		},
		"NetworkManager/10-fastbr.conf": func(line string) []string {
			names, _ := strings.CutPrefix(line, "match-device=")
			return strings.Split(strings.ReplaceAll(names, "interface-name:", ""), ",")
		},
	} {
		text, err := os.ReadFile("../../packaging/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var patterns []string
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Name=") || strings.HasPrefix(line, "match-device=") {
				patterns = pattern(strings.TrimSpace(line))
			}
		}
		for device, ours := range map[string]bool{
			"fastbr0": true, "fastbr-frag": true, "fbr-0123456789": true, "veth0a1b2c3": true, "ifb0a1b2c3": true,
			"eth0": false, "enp1s0": false, "docker0": false, "br-0123456789ab": false, "wg0": false, "veth0": false, "ifb0": false,
		} {
			found := false
			for _, p := range patterns {
				ok, err := path.Match(p, device)
				if err != nil {
					t.Errorf("%s: %q: %v", file, p, err)
				}
				found = found || ok
			}
			if found != ours {
				t.Errorf("%s: is about %s: %v, want %v", file, device, found, ours)
			}
		}
	}
}
