package ctl

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// AcceptRule is one rule in the host's FORWARD path that lets a bridge's
// packets through where the policy is DROP.
type AcceptRule struct {
	Where   string `json:"where"` // "iptables-nft filter FORWARD", "nft inet firewall fwd", …
	Bridge  string `json:"bridge"`
	Network string `json:"network"`
}

// acceptor is one place whose policy drops forwarded packets.
type acceptor interface {
	where() string
	// has reports whether both rules for the bridge are there.
	has(bridge, mark string) (bool, error)
	// add appends those that are missing.
	add(bridge, mark string) error
}

// allowForwarding appends accept rules for the networks' bridges wherever the
// policy of the forward hook is DROP, after the user's own rules. dockerd and
// ufw set the policy whenever they start, so every mutating command looks.
func (s *session) allowForwarding() error {
	places, err := droppingPlaces()
	if err != nil {
		return err
	}
	for _, place := range places {
		for _, name := range s.st.networkNames() {
			n := s.st.Networks[name]
			ok, err := place.has(n.Bridge, ownerMark(name))
			if err != nil {
				return err
			}
			if ok {
				continue
			}
			if err := place.add(n.Bridge, ownerMark(name)); err != nil {
				return err
			}
			s.say("%s drops by policy: appended rules that accept %s (comment %q)", place.where(), n.Bridge, ownerMark(name))
		}
	}
	return nil
}

// droppingPlaces finds the chains that hook forward with policy DROP, without
// making a table that is not there.
func droppingPlaces() ([]acceptor, error) {
	places, err := nftPlaces()
	if err != nil {
		return nil, err
	}
	if legacyFilterLoaded() {
		t := iptables{command: legacyCommand()}
		drop, err := t.dropsByPolicy()
		if err != nil {
			return nil, err
		}
		if drop {
			places = append(places, t)
		}
	}
	return places, nil
}

// removeAcceptRules deletes the rules tagged with the network's name wherever
// they are, whatever the policy is now.
func removeAcceptRules(network string) error {
	mark := ownerMark(network)
	err := removeNFTRules(mark)
	if legacyFilterLoaded() {
		err = errors.Join(err, iptables{command: legacyCommand()}.remove(mark))
	}
	return err
}

// acceptRules lists the rules that are there now.
func (s *session) acceptRules() ([]AcceptRule, error) {
	out := []AcceptRule{}
	places, err := droppingPlaces()
	if err != nil {
		return nil, err
	}
	for _, place := range places {
		for _, name := range s.st.networkNames() {
			n := s.st.Networks[name]
			if ok, err := place.has(n.Bridge, ownerMark(name)); err != nil {
				return nil, err
			} else if ok {
				out = append(out, AcceptRule{place.where(), n.Bridge, name})
			}
		}
	}
	return out, nil
}

// iptables drives one of the two iptables binaries.
type iptables struct {
	command string
}

// legacyFilterLoaded tells whether this namespace has iptables-legacy's filter
// table; merely asking the binary would create it.
func legacyFilterLoaded() bool {
	b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(b)), "filter")
}

func legacyCommand() string { return installed("iptables-legacy", "iptables") }

// installed returns the first of the commands that exists, "" if none does.
func installed(commands ...string) string {
	for _, c := range commands {
		if _, err := exec.LookPath(c); err == nil {
			return c
		}
		// root's PATH lacks sbin in some shells.
		if _, err := os.Stat("/usr/sbin/" + c); err == nil {
			return "/usr/sbin/" + c
		}
	}
	return ""
}

func (t iptables) where() string { return t.command + " filter FORWARD" }

func (t iptables) run(args ...string) (string, error) {
	if t.command == "" {
		return "", errors.New("FORWARD is filtered by iptables, but no iptables command is installed")
	}
	cmd := exec.Command(t.command, append([]string{"-w", "5"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("%s %s: %w: %s", t.command, strings.Join(args, " "), err, line)
	}
	return string(out), nil
}

func (t iptables) dropsByPolicy() (bool, error) {
	out, err := t.run("-S", "FORWARD")
	return strings.HasPrefix(out, "-P FORWARD DROP"), err
}

func (t iptables) has(bridge, mark string) (bool, error) {
	out, err := t.run("-S", "FORWARD")
	have := taggedRules(out, mark)
	for _, way := range [][]string{acceptArgs("-i", bridge, mark), acceptArgs("-o", bridge, mark)} {
		if !slices.ContainsFunc(have, func(r []string) bool { return slices.Equal(r, way) }) {
			return false, err
		}
	}
	return true, err
}

func (t iptables) add(bridge, mark string) error {
	out, err := t.run("-S", "FORWARD")
	if err != nil {
		return err
	}
	have := taggedRules(out, mark)
	for _, way := range [][]string{acceptArgs("-i", bridge, mark), acceptArgs("-o", bridge, mark)} {
		if slices.ContainsFunc(have, func(r []string) bool { return slices.Equal(r, way) }) {
			continue
		}
		if _, err := t.run(append([]string{"-A", "FORWARD"}, way...)...); err != nil {
			return err
		}
	}
	return nil
}

func (t iptables) remove(mark string) error {
	out, err := t.run("-S", "FORWARD")
	if err != nil {
		return err
	}
	for _, rule := range taggedRules(out, mark) {
		if _, err := t.run(append([]string{"-D", "FORWARD"}, rule...)...); err != nil {
			return err
		}
	}
	return nil
}

// acceptArgs is a rule in the very form that -S prints.
func acceptArgs(way, bridge, mark string) []string {
	return []string{way, bridge, "-m", "comment", "--comment", mark, "-j", "ACCEPT"}
}

// taggedRules picks the rules of FORWARD with our comment out of the output of
// -S, without "-A FORWARD".
func taggedRules(out, mark string) [][]string {
	var rules [][]string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "-A" || f[1] != "FORWARD" {
			continue
		}
		for i := range f {
			f[i] = strings.Trim(f[i], `"`)
		}
		if i := slices.Index(f, "--comment"); i >= 0 && i+1 < len(f) && f[i+1] == mark {
			rules = append(rules, f[2:])
		}
	}
	return rules
}
