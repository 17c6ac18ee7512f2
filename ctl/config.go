package ctl

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/datapath"
)

const (
	// DefaultNetwork is the network of commands that name none.
	DefaultNetwork = "default"
	// DefaultBridge is its device.
	DefaultBridge = "fastbr0"
	// AutoUplink stands for the device of the default route.
	AutoUplink = "auto"

	maxIfname = 15 // IFNAMSIZ without the NUL
	maxName   = 63 // of networks and ports: a DNS label, and room in an ifalias
	minMTU    = 576
	minMTU6   = 1280 // of a network with IPv6 (RFC 8200 section 5)
	maxMTU    = 65535
	// maxPorts is the kernel's limit per bridge (BR_PORT_BITS 10, number 0 unused).
	maxPorts = 1023
)

// NetworkRequest is what the user asks of one network. A zero field was not asked for.
type NetworkRequest struct {
	ID       string // of a new network: 64 hex digits
	Bridge   string
	Subnet   netip.Prefix
	Gateway  netip.Addr
	IPv6     string // IPv6Off, IPv6On or IPv6LinkLocal
	Subnet6  netip.Prefix
	Gateway6 netip.Addr
	// Masquerade6: IPv6 is translated. It is, unless this is false.
	Masquerade6 *bool
	// NDProxy: the host answers on its uplinks for containers' IPv6 addresses.
	NDProxy    *bool
	MTU        int // bytes
	Masquerade *bool
	// NoMasquerade are destinations, of either family, that see containers' own addresses,
	// and may reach them, although the family is translated. Nil: not asked for.
	NoMasquerade []netip.Prefix
	// SNATAddress and SNATAddress6 are the source addresses of what is translated, the
	// host's. Invalid: the one of the route.
	SNATAddress, SNATAddress6 netip.Addr
	// Via is the name of the only device that leads outside, which may come and go. "":
	// every uplink does.
	Via string
	// PublishedOnly: in a family without translation, only published ports and answers come
	// in.
	PublishedOnly *bool
	Internal      *bool
	DNS           *bool // whether the gateway answers containers' questions for names

	// How containers are translated: endpoint-independent or endpoint-dependent;
	// apdf, adf or eif; overload or refuse.
	NATMapping, NATFiltering, NATOnExhaustion string

	// Options of an engine, kept with a new network.
	Options map[string]string
}

// What a network carries of IPv6.
const (
	IPv6Off = "false"
	// IPv6On: containers have global addresses, or unique local ones that the host has
	// chosen (RFC 4193).
	IPv6On = "true"
	// IPv6LinkLocal: containers have the addresses that each link has. They reach each
	// other and the host, and nothing else.
	IPv6LinkLocal = "link-local"
)

func natPolicy(mapping, filtering, onExhaustion string) datapath.NATPolicy {
	return datapath.NATPolicy{Mapping: datapath.Mapping(mapping), Filtering: datapath.Filtering(filtering),
		OnExhaustion: datapath.Exhaustion(onExhaustion)}
}

// InstanceRequest is what the user asks of the instance. A zero field was not asked for.
type InstanceRequest struct {
	Uplinks           []string // device names or AutoUplink
	XDP               string   // XDPOff, XDPAuto or XDPNative
	BigTCP            string   // BigTCPOff, BigTCPAuto or BigTCPOn
	Lease             *time.Duration
	NATFirst, NATLast uint16
	FlowsMax          uint32 // sessions
}

func namePattern() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
}

// checkName says whether a network or port may have this name.
func checkName(what, name string) error {
	if len(name) > maxName || !namePattern().MatchString(name) {
		return tagged(ErrInvalid, fmt.Sprintf("%s name %q: 1 to %d letters, digits, '_', '.' or '-', the first a letter or digit",
			what, name, maxName))
	}
	return nil
}

// checkNetworkName also refuses the names of the built-in modes.
func checkNetworkName(name string) error {
	if name == "host" || name == "none" || name == "bridge" {
		return tagged(ErrInvalid, fmt.Sprintf("network name %q is built in", name))
	}
	return checkName("network", name)
}

// checkIfname says whether the kernel takes the name for a device.
func checkIfname(name string) error {
	bad := func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '%' || r > '~' }
	if name == "" || name == "." || name == ".." || len(name) > maxIfname || strings.ContainsFunc(name, bad) {
		return tagged(ErrInvalid, fmt.Sprintf("interface name %q: 1 to %d characters, no blank, '/', ':' or '%%'", name, maxIfname))
	}
	return nil
}

// checkMAC says whether a container may have this address.
func checkMAC(mac net.HardwareAddr) error {
	zero := net.HardwareAddr{0, 0, 0, 0, 0, 0}
	if len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, zero) {
		return tagged(ErrInvalid, fmt.Sprintf("MAC address %s: want a unicast Ethernet address", mac))
	}
	return nil
}

func (r NetworkRequest) check() error {
	if _, err := hex.DecodeString(r.ID); err != nil || r.ID != "" && len(r.ID) != 64 {
		return tagged(ErrInvalid, fmt.Sprintf("network id %q: want 64 hex digits", r.ID))
	}
	if r.Bridge != "" {
		if err := checkIfname(r.Bridge); err != nil {
			return err
		}
	}
	for _, p := range []netip.Prefix{r.Subnet, r.Subnet6} {
		if p.IsValid() {
			if err := ipam.CheckSubnet(p); err != nil {
				return tagged(ErrInvalid, "subnet "+err.Error())
			}
		}
	}
	if err := r.checkIPv6(); err != nil {
		return err
	}
	if r.MTU != 0 && (r.MTU < minMTU || r.MTU > maxMTU) {
		return tagged(ErrInvalid, fmt.Sprintf("MTU %d: %d to %d", r.MTU, minMTU, maxMTU))
	}
	for _, p := range r.NoMasquerade {
		if p.Addr().Is4In6() || p != p.Masked() {
			return tagged(ErrInvalid, fmt.Sprintf("no masquerade to %s: want a CIDR such as 10.0.0.0/8 or 2001:db8::/32", p))
		}
		if err := r.checkTranslated("--no-masquerade", p.Addr()); err != nil {
			return err
		}
	}
	for _, a := range []netip.Addr{r.SNATAddress, r.SNATAddress6} {
		if a.IsValid() && (a.Is6() != (a == r.SNATAddress6) || a.Is4In6() || a.Zone() != "" || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.Is6() && a.IsLinkLocalUnicast()) {
			return tagged(ErrInvalid, fmt.Sprintf("source address %s: want an address of this host that others can answer to, once for each family", a))
		}
		if err := r.checkTranslated("--snat-address", a); err != nil {
			return err
		}
	}
	if r.Via != "" {
		if err := checkIfname(r.Via); err != nil {
			return err
		}
		if is(r.Internal, true) {
			return tagged(ErrInvalid, "--via and --internal exclude each other: nothing leaves an internal network")
		}
	}
	if is(r.PublishedOnly, true) && (!is(r.Masquerade, false) && !is(r.Masquerade6, false) || is(r.Internal, true)) {
		return tagged(ErrInvalid, "--published-only is for a network that is routed: give it with --masquerade=false or --masquerade6=false, and without --internal")
	}
	if err := natPolicy(r.NATMapping, r.NATFiltering, r.NATOnExhaustion).Check(); err != nil {
		return tagged(ErrInvalid, err.Error())
	}
	return nil
}

// checkIPv6 is check of what concerns IPv6.
func (r NetworkRequest) checkIPv6() error {
	given := ""
	switch {
	case r.Subnet6.IsValid():
		given = "--subnet " + r.Subnet6.String()
	case r.Gateway6.IsValid():
		given = "--gateway " + r.Gateway6.String()
	}
	switch {
	case r.IPv6 != "" && r.IPv6 != IPv6Off && r.IPv6 != IPv6On && r.IPv6 != IPv6LinkLocal:
		return tagged(ErrInvalid, fmt.Sprintf("--ipv6=%s: %s, %s or %s", r.IPv6, IPv6On, IPv6Off, IPv6LinkLocal))
	case given != "" && (r.IPv6 == IPv6Off || r.IPv6 == IPv6LinkLocal):
		return tagged(ErrInvalid, fmt.Sprintf("--ipv6=%s and %s exclude each other", r.IPv6, given))
	case r.Gateway6.IsValid() && !r.Subnet6.IsValid():
		return tagged(ErrInvalid, fmt.Sprintf("%s needs an IPv6 --subnet that it is in", given))
	case is(r.NDProxy, true) && !is(r.Masquerade6, false):
		return tagged(ErrInvalid, "--nd-proxy is for addresses that are not translated: it needs --masquerade6=false")
	case is(r.NDProxy, true) && !r.Subnet6.IsValid():
		return tagged(ErrInvalid, "--nd-proxy needs an IPv6 --subnet that is a part of an uplink's")
	case is(r.Masquerade6, false) && (!r.wantsIPv6() || r.IPv6 == IPv6LinkLocal):
		return tagged(ErrInvalid, "--masquerade6=false needs --ipv6 or an IPv6 --subnet")
	case is(r.Masquerade6, false) && is(r.Internal, true):
		return tagged(ErrInvalid, "--masquerade6=false and --internal exclude each other: nothing leaves an internal network")
	case r.wantsIPv6() && r.MTU != 0 && r.MTU < minMTU6:
		return tagged(ErrInvalid, fmt.Sprintf("MTU %d: IPv6 needs at least %d", r.MTU, minMTU6))
	}
	return nil
}

// checkTranslated refuses an option about addresses of a family that the network does not
// translate. An invalid address was not asked for.
func (r NetworkRequest) checkTranslated(option string, a netip.Addr) error {
	masquerade, flag := r.Masquerade, "--masquerade=false"
	switch {
	case !a.IsValid():
		return nil
	case a.Is6():
		if masquerade, flag = r.Masquerade6, "--masquerade6=false"; !r.wantsIPv6() || r.IPv6 == IPv6LinkLocal {
			return tagged(ErrInvalid, fmt.Sprintf("%s %s needs --ipv6 or an IPv6 --subnet", option, a))
		}
	}
	if is(masquerade, false) || is(r.Internal, true) {
		return tagged(ErrInvalid, fmt.Sprintf("%s is for a network that is translated: it excludes %s and --internal", option, flag))
	}
	return nil
}

// wantsIPv6 reports whether the request is for a network with IPv6.
func (r NetworkRequest) wantsIPv6() bool {
	return r.Subnet6.IsValid() || r.IPv6 == IPv6On || r.IPv6 == IPv6LinkLocal
}

// ParseSubnets reads a subnet for each family, as CIDR.
func ParseSubnets(texts []string) (v4, v6 netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return v4, v6, tagged(ErrInvalid, fmt.Sprintf("subnet %q: want a CIDR such as 10.20.0.0/16 or 2001:db8:1::/64", text))
		}
		if err := once(p, p.Addr(), &v4, &v6); err != nil {
			return v4, v6, fmt.Errorf("subnet %w", err)
		}
	}
	return v4, v6, nil
}

// ParseSNATAddresses reads an address of the host for each family.
func ParseSNATAddresses(texts []string) (v4, v6 netip.Addr, err error) {
	return parseAddrs("source address", texts, func(netip.Addr) error { return nil })
}

// ParseAddrs reads an address of a network for each family. what says whose.
func ParseAddrs(what string, texts []string) (v4, v6 netip.Addr, err error) {
	return parseAddrs(what, texts, func(a netip.Addr) error {
		if a.Is6() && (!a.IsGlobalUnicast() || a.Is4In6()) {
			return errors.New("want an address of the network's IPv6 subnet")
		}
		return nil
	})
}

// parseAddrs reads an address for each family, and checks each. what says whose.
func parseAddrs(what string, texts []string, check func(netip.Addr) error) (v4, v6 netip.Addr, err error) {
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return v4, v6, tagged(ErrInvalid, fmt.Sprintf("%s %q: want an IPv4 or an IPv6 address", what, text))
		}
		if err := check(a); err != nil {
			return v4, v6, tagged(ErrInvalid, fmt.Sprintf("%s %q: %v", what, text, err))
		}
		if err := once(a, a, &v4, &v6); err != nil {
			return v4, v6, fmt.Errorf("%s %w", what, err)
		}
	}
	return v4, v6, nil
}

// once notes what an address belongs to in the place of its family.
func once[T interface {
	comparable
	fmt.Stringer
}](v T, a netip.Addr, v4, v6 *T) error {
	place, family := v4, "IPv4"
	if a.Is6() {
		place, family = v6, "IPv6"
	}
	var none T
	if *place != none && *place != v {
		return tagged(ErrInvalid, fmt.Sprintf("%s and %s: one for %s", *place, v, family))
	}
	*place = v
	return nil
}

// is reports whether somebody asked for this.
func is(asked *bool, this bool) bool { return asked != nil && *asked == this }

// ParsePrefixes reads CIDRs. The error names the one that is none.
func ParsePrefixes(texts []string) (out []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, tagged(ErrInvalid, fmt.Sprintf("%q: want a CIDR such as 10.0.0.0/8", text))
		}
		out = append(out, p)
	}
	return out, nil
}

// prefixSet sorts prefixes, each once.
func prefixSet(prefixes []netip.Prefix) []netip.Prefix {
	return slices.Compact(slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare))
}

func (r InstanceRequest) check() error {
	if r.Lease != nil && (*r.Lease != 0 && *r.Lease < time.Second || *r.Lease > datapath.MaxLease) {
		return tagged(ErrInvalid, fmt.Sprintf("lease %s: 1s to %s, or 0 to switch the fast path off", *r.Lease, datapath.MaxLease))
	}
	if r.NATFirst > r.NATLast || r.NATLast != 0 && r.NATFirst < 1024 {
		return tagged(ErrInvalid, fmt.Sprintf("NAT range %d-%d: FIRST-LAST, from 1024 to 65535", r.NATFirst, r.NATLast))
	}
	if r.XDP != "" && r.XDP != XDPOff && r.XDP != XDPAuto && r.XDP != XDPNative {
		return tagged(ErrInvalid, fmt.Sprintf("XDP %q: %s, %s or %s", r.XDP, XDPOff, XDPAuto, XDPNative))
	}
	if r.BigTCP != "" && r.BigTCP != BigTCPOff && r.BigTCP != BigTCPAuto && r.BigTCP != BigTCPOn {
		return tagged(ErrInvalid, fmt.Sprintf("BIG TCP %q: %s, %s or %s", r.BigTCP, BigTCPOff, BigTCPAuto, BigTCPOn))
	}
	for _, u := range r.Uplinks {
		if u == AutoUplink {
			continue
		}
		if err := checkIfname(u); err != nil {
			return err
		}
	}
	if len(r.Uplinks) > 1 && slices.Contains(r.Uplinks, AutoUplink) {
		return tagged(ErrInvalid, "--uplink auto stands alone")
	}
	return nil
}

// differences lists the flags of an `up` that only a new datapath could follow.
func (s settings) differences(r InstanceRequest) []string {
	var out []string
	if r.FlowsMax != 0 && r.FlowsMax != s.FlowsMax {
		out = append(out, fmt.Sprintf("--nat-flows (now %d)", s.FlowsMax))
	}
	return out
}

// apply takes over what can change while things are up.
func (s *settings) apply(r InstanceRequest) {
	if len(r.Uplinks) > 0 {
		s.Uplinks = r.Uplinks
	}
	if r.XDP != "" {
		s.XDP = r.XDP
	}
	if r.BigTCP != "" {
		s.BigTCP = r.BigTCP
	}
	if r.NATLast != 0 {
		s.NATFirst, s.NATLast = r.NATFirst, r.NATLast
	}
	if r.Lease != nil {
		s.Lease = *r.Lease
	}
}

func defaultSettings() settings {
	return settings{Uplinks: []string{AutoUplink}, Lease: datapath.DefaultLease, NATFirst: 10000, NATLast: 29999}
}

// flags returns the flags of `up` that turn the default settings into these.
func (s settings) flags() string {
	def := defaultSettings()
	var out []string
	add := func(set bool, format string, value any) {
		if set {
			out = append(out, fmt.Sprintf(format, value))
		}
	}
	if !slices.Equal(s.Uplinks, def.Uplinks) {
		for _, u := range s.Uplinks {
			add(true, "--uplink %s", u)
		}
	}
	add(s.Lease != def.Lease, "--lease %s", s.Lease)
	add(s.NATFirst != def.NATFirst || s.NATLast != def.NATLast, "--nat-range %s", fmt.Sprintf("%d-%d", s.NATFirst, s.NATLast))
	add(cmp.Or(s.FlowsMax, datapath.DefaultFlowsMax) != datapath.DefaultFlowsMax, "--nat-flows %d", s.FlowsMax)
	add(cmp.Or(s.XDP, XDPAuto) != XDPAuto, "--xdp %s", s.XDP)
	add(cmp.Or(s.BigTCP, BigTCPAuto) != BigTCPAuto, "--big-tcp %s", s.BigTCP)
	return cmp.Or(strings.Join(out, " "), "the defaults")
}

// kept describes settings that are kept while no network is up; "" if none are.
func (st *state) kept() string {
	if len(st.Networks) > 0 || !st.Settings.Kept {
		return ""
	}
	return fmt.Sprintf("settings are kept (%s): 'fastbr down --all' removes them", st.Settings.flags())
}

// firstSettings are those of an instance that comes up: the kept ones, or the
// defaults, and what is asked for.
func firstSettings(kept settings, r InstanceRequest) settings {
	s := kept
	if !kept.Kept {
		s = defaultSettings()
	}
	if r.FlowsMax != 0 {
		s.FlowsMax = r.FlowsMax
	}
	s.apply(r)
	return s
}

// Settle makes or changes the settings of the instance and brings up no network: engines
// bring up theirs. The settings hold until DownAll.
// The error wraps ErrInvalid, ErrUnfit or ErrExists.
func (c *Controller) Settle(ctx context.Context, ir InstanceRequest) error {
	if err := ir.check(); err != nil {
		return firstLine(err)
	}
	return c.instance.mutateWith(ctx, mutation{looks: looksItself}, func(op *operation) error {
		if len(op.st.Networks) > 0 {
			if err := op.applyInstance(ir); err != nil {
				return err
			}
			op.st.Settings.Kept = true
			return errors.Join(op.save(), op.refresh(false))
		}
		if err := op.checks.fit(); err != nil {
			return err
		}
		settings := firstSettings(op.st.Settings, ir)
		if _, _, err := op.uplinks.wanted(settings.Uplinks); err != nil {
			return err
		}
		settings.Kept = true
		op.st.Settings = settings
		return errors.Join(op.identity().Write(op.dir()), op.save())
	})
}

// applyInstance changes the instance's settings while it is up.
func (op *operation) applyInstance(ir InstanceRequest) error {
	if d := op.st.Settings.differences(ir); len(d) > 0 {
		return tagged(ErrExists, fmt.Sprintf("fastbr is up with other settings: %s: run 'fastbr down --all' first", strings.Join(d, ", ")))
	}
	settings := op.st.Settings
	settings.apply(ir)
	for _, n := range op.st.Networks {
		if err := op.vias.check(n.Via, settings.Uplinks); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	if _, _, err := op.uplinks.wanted(settings.Uplinks); err != nil {
		return err
	}
	old := op.st.Settings
	op.st.Settings = settings
	if settings.XDP != old.XDP {
		if err := (xdp{op}).sync(false); err != nil {
			op.st.Settings = old
			return errors.Join(err, xdp{op}.sync(true))
		}
	}
	if err := op.hostconf.RecordReserved(op.st.reserved()); err != nil {
		return err
	}
	if err := op.save(); err != nil {
		return err
	}
	return errors.Join(op.programs.setNATRange(), op.programs.setSpeed())
}
