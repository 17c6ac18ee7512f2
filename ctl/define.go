package ctl

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// Definition is what a network is, whether or not it is up: the content of
// networks/NAME.json.
type Definition struct {
	ID      string       `json:"id"` // 64 hex digits
	Name    string       `json:"name"`
	Bridge  string       `json:"bridge"`
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
	// Subnet6 and Gateway6 are those of IPv6; invalid: the network has no IPv6, or, with
	// LinkLocal6, only what each link has.
	Subnet6    netip.Prefix `json:"subnet6,omitzero"`
	Gateway6   netip.Addr   `json:"gateway6,omitzero"`
	LinkLocal6 bool         `json:"link_local6,omitempty"`
	// Routed6: IPv6 is routed, not translated. NDProxy: the host answers on its uplinks for
	// the containers' addresses, which are of an uplink's own subnet.
	Routed6    bool `json:"routed6,omitempty"`
	NDProxy    bool `json:"nd_proxy,omitempty"`
	MTU        int  `json:"mtu"` // bytes, 0: the uplink's
	Masquerade bool `json:"masquerade"`
	Internal   bool `json:"internal"`
	NoDNS      bool `json:"no_dns,omitempty"` // the gateway does not answer for names
	// SNATAddress and SNATAddress6 are the source addresses of what is translated; invalid:
	// the route's.
	SNATAddress  netip.Addr `json:"snat_address,omitzero"`
	SNATAddress6 netip.Addr `json:"snat_address6,omitzero"`
	// Via is the only device that leads outside; "": every uplink does.
	Via string `json:"via,omitempty"`
	// PublishedOnly: in a family that is not translated, only published ports and answers
	// come in.
	PublishedOnly bool `json:"published_only,omitempty"`
	// NoMasquerade are destinations without translation, of both families, sorted.
	NoMasquerade []netip.Prefix `json:"no_masquerade,omitempty"`

	// How containers are translated; "": the datapath's default.
	NATMapping      string `json:"nat_mapping"`
	NATFiltering    string `json:"nat_filtering"`
	NATOnExhaustion string `json:"nat_on_exhaustion"`

	// Options are an engine's own, kept for it with the network.
	Options map[string]string `json:"options,omitempty"`
}

// plain are the destinations of a family without translation.
func (d Definition) plain(f link.Family) (out []netip.Prefix) {
	for _, p := range d.NoMasquerade {
		if link.FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

// hasIPv6 reports whether the network carries IPv6.
func (d Definition) hasIPv6() bool { return d.Subnet6.IsValid() || d.LinkLocal6 }

// ipv6 is what the network carries of IPv6, as in a request.
func (d Definition) ipv6() string {
	switch {
	case d.Subnet6.IsValid():
		return IPv6On
	case d.LinkLocal6:
		return IPv6LinkLocal
	}
	return IPv6Off
}

// subnet6 is Subnet6 as text, or "".
func (d Definition) subnet6() string {
	if !d.Subnet6.IsValid() {
		return ""
	}
	return d.Subnet6.String()
}

// subnets are those that the network has, IPv4's first.
func (d Definition) subnets() []netip.Prefix {
	if d.Subnet6.IsValid() {
		return []netip.Prefix{d.Subnet, d.Subnet6}
	}
	return []netip.Prefix{d.Subnet}
}

// addresses are those of the bridge, with the subnet's length. The last is the one that
// belongs to its MAC address, if the network has IPv6.
func (d Definition) addresses() []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(d.Gateway, d.Subnet.Bits())}
	if d.Subnet6.IsValid() {
		out = append(out, netip.PrefixFrom(d.Gateway6, d.Subnet6.Bits()))
	}
	if d.hasIPv6() {
		out = append(out, linkLocal(ipam.MAC(d.Gateway)))
	}
	return out
}

// linkLocal is the address that a device has on its link.
func linkLocal(mac net.HardwareAddr) netip.Prefix { return netip.PrefixFrom(ipam.LinkLocal(mac), 64) }

func (d Definition) natPolicy() datapath.NATPolicy {
	return natPolicy(d.NATMapping, d.NATFiltering, d.NATOnExhaustion).WithDefaults()
}

// nameServer is who answers the containers' questions for names, or "".
func (d Definition) nameServer() string {
	if d.NoDNS {
		return ""
	}
	return d.Gateway.String()
}

// define completes a request to a definition. used are the addresses that the
// host and other networks have; the note, if any, is for the user.
func define(name string, r NetworkRequest, used usedAddrs) (def Definition, note string, err error) {
	def = Definition{ID: r.ID, Options: r.Options, Name: name, Bridge: r.Bridge, Subnet: r.Subnet, Gateway: r.Gateway, MTU: r.MTU,
		Subnet6: r.Subnet6, Gateway6: r.Gateway6, LinkLocal6: r.IPv6 == IPv6LinkLocal, Routed6: is(r.Masquerade6, false), NDProxy: is(r.NDProxy, true),
		Masquerade: !is(r.Masquerade, false), Internal: is(r.Internal, true),
		NoDNS: is(r.DNS, false), SNATAddress: r.SNATAddress, SNATAddress6: r.SNATAddress6, Via: r.Via, PublishedOnly: is(r.PublishedOnly, true), NoMasquerade: prefixSet(r.NoMasquerade)}
	if def.ID == "" {
		def.ID = newID()
	}
	nat := natPolicy(r.NATMapping, r.NATFiltering, r.NATOnExhaustion).WithDefaults()
	def.NATMapping, def.NATFiltering, def.NATOnExhaustion = string(nat.Mapping), string(nat.Filtering), string(nat.OnExhaustion)
	if !def.Subnet.IsValid() && def.Gateway.IsValid() {
		return def, "", tagged(ErrInvalid, "--gateway needs --subnet")
	}
	if def.Subnet.IsValid() {
		if err := used.conflict(def.Subnet); err != nil {
			return def, "", fmt.Errorf("subnet %s %w", def.Subnet, err)
		}
	} else if def.Subnet, note, err = used.choose(name); err != nil {
		return def, "", err
	}
	if !def.Gateway.IsValid() {
		def.Gateway = ipam.Gateway(def.Subnet)
	}
	if err := ipam.CheckGateway(def.Subnet, def.Gateway); err != nil {
		return def, "", tagged(ErrInvalid, "gateway "+err.Error())
	}
	if r.wantsIPv6() && !def.LinkLocal6 {
		if err := def.addIPv6(used); err != nil {
			return def, "", err
		}
	}
	if def.Bridge == "" {
		def.Bridge = bridgeName(name, def.ID)
	}
	return def, note, nil
}

// addIPv6 completes the subnet and the gateway of IPv6.
func (d *Definition) addIPv6(used usedAddrs) error {
	if d.Subnet6.IsValid() {
		if err := d.conflict(d.Subnet6, used); err != nil {
			return fmt.Errorf("subnet %s %w", d.Subnet6, err)
		}
	} else {
		var err error
		if d.Subnet6, err = used.next6(0); err != nil {
			return err
		}
	}
	if !d.Gateway6.IsValid() {
		d.Gateway6 = ipam.Gateway(d.Subnet6)
	}
	if err := ipam.CheckGateway(d.Subnet6, d.Gateway6); err != nil {
		return tagged(ErrInvalid, "gateway "+err.Error())
	}
	return nil
}

// conflict says why a subnet cannot be the network's, as used.conflict. With --nd-proxy its
// containers have addresses of an uplink's subnet.
func (d Definition) conflict(subnet netip.Prefix, used usedAddrs) error {
	if d.NDProxy && subnet == d.Subnet6 {
		used = used.around(subnet)
		for _, a := range used.hosts {
			if subnet.Contains(a) {
				return fmt.Errorf("%w %s, which is this host's own address on its link: choose another part of the link's subnet", ipam.ErrOverlap, a)
			}
		}
	}
	return used.conflict(subnet)
}

func bridgeName(network, id string) string {
	if network == DefaultNetwork {
		return DefaultBridge
	}
	return "fbr-" + id[:10]
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// differences lists the flags of a second `up` that contradict what is up.
func (d Definition) differences(r NetworkRequest) []string {
	var out []string
	differ := func(flag string, asked bool, now any) {
		if asked {
			out = append(out, fmt.Sprintf("--%s (now %v)", flag, now))
		}
	}
	differ("bridge", r.Bridge != "" && r.Bridge != d.Bridge, d.Bridge)
	differ("subnet", r.Subnet.IsValid() && r.Subnet != d.Subnet, d.Subnet)
	differ("gateway", r.Gateway.IsValid() && r.Gateway != d.Gateway, d.Gateway)
	differ("ipv6", r.IPv6 != "" && r.IPv6 != d.ipv6(), d.ipv6())
	differ("subnet", r.Subnet6.IsValid() && r.Subnet6 != d.Subnet6, cmp.Or(d.subnet6(), "none"))
	differ("gateway", r.Gateway6.IsValid() && r.Gateway6 != d.Gateway6, cmp.Or(addrText(d.Gateway6), "none"))
	differ("masquerade6", r.Masquerade6 != nil && *r.Masquerade6 == d.Routed6, !d.Routed6)
	differ("nd-proxy", r.NDProxy != nil && *r.NDProxy != d.NDProxy, d.NDProxy)
	mtu := "the uplink's"
	if d.MTU != 0 {
		mtu = strconv.Itoa(d.MTU)
	}
	differ("mtu", r.MTU != 0 && r.MTU != d.MTU, mtu)
	differ("masquerade", r.Masquerade != nil && *r.Masquerade != d.Masquerade, d.Masquerade)
	differ("no-masquerade", r.NoMasquerade != nil && !slices.Equal(prefixSet(r.NoMasquerade), d.NoMasquerade), joined(d.NoMasquerade))
	for _, a := range []struct{ asked, now netip.Addr }{{r.SNATAddress, d.SNATAddress}, {r.SNATAddress6, d.SNATAddress6}} {
		differ("snat-address", a.asked.IsValid() && a.asked != a.now, cmp.Or(addrText(a.now), "the route's"))
	}
	differ("via", r.Via != "" && r.Via != d.Via, cmp.Or(d.Via, "every uplink"))
	differ("published-only", r.PublishedOnly != nil && *r.PublishedOnly != d.PublishedOnly, d.PublishedOnly)
	differ("internal", r.Internal != nil && *r.Internal != d.Internal, d.Internal)
	differ("dns", r.DNS != nil && *r.DNS == d.NoDNS, !d.NoDNS)
	nat := d.natPolicy()
	differ("nat-mapping", r.NATMapping != "" && r.NATMapping != string(nat.Mapping), nat.Mapping)
	differ("nat-filtering", r.NATFiltering != "" && r.NATFiltering != string(nat.Filtering), nat.Filtering)
	differ("nat-on-exhaustion", r.NATOnExhaustion != "" && r.NATOnExhaustion != string(nat.OnExhaustion), nat.OnExhaustion)
	return out
}

// joined lists values for a sentence.
func joined[T fmt.Stringer](values []T) string {
	return cmp.Or(strings.Join(texts(values), ","), "none")
}

func texts[T fmt.Stringer](values []T) []string {
	out := []string{}
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}

func (d Definition) sane() error {
	if checkNetworkName(d.Name) != nil || d.Bridge == "" || !d.Gateway.Is4() || !d.Subnet.IsValid() || !d.Subnet.Contains(d.Gateway) ||
		d.Subnet6.IsValid() != d.Gateway6.IsValid() || d.Subnet6.IsValid() && !d.Subnet6.Contains(d.Gateway6) {
		return fmt.Errorf("network %q is incomplete", d.Name)
	}
	return nil
}

// definitions is the directory of the networks that `network create` made.
type definitions struct {
	dir string
	say func(format string, args ...any)
}

func (d definitions) path(name string) string { return filepath.Join(d.dir, name+".json") }

// all reads every definition, sorted by name. One that cannot be read is told of
// and left out.
func (d definitions) all() ([]Definition, error) {
	files, err := os.ReadDir(d.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the definitions: %w", err)
	}
	var out []Definition
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		def, err := d.get(name)
		if err != nil {
			d.say("%v", err)
		}
		if def != nil {
			out = append(out, *def)
		}
	}
	slices.SortFunc(out, func(a, b Definition) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// get reads one definition; nil if there is no file. The error wraps errDamaged if the
// file is not a definition.
func (d definitions) get(name string) (*Definition, error) {
	b, err := os.ReadFile(d.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the definition of %s: %w", name, err)
	}
	def := &Definition{}
	if err := json.Unmarshal(b, def); err != nil || def.Name != name || def.sane() != nil {
		return nil, fmt.Errorf("%s is %w: it is no definition of network %s", d.path(name), errDamaged, name)
	}
	return def, nil
}

func (d definitions) put(def Definition) error {
	b, err := json.MarshalIndent(def, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the definition of %s: %w", def.Name, err)
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return fmt.Errorf("writing the definition of %s: %w", def.Name, err)
	}
	if err := renameio.WriteFile(d.path(def.Name), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the definition of %s: %w", def.Name, err)
	}
	return nil
}

// remove deletes a definition, and the directories if they are empty.
func (d definitions) remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the definition of %s: %w", name, err)
	}
	_ = os.Remove(d.dir)
	_ = os.Remove(filepath.Dir(d.dir))
	return nil
}

// site is the prefix of the host's unique local addresses. It is chosen at random once, and
// then kept beside the definitions: a network that is taken down and brought up again has
// the same addresses, and no other site has them (RFC 4193 section 3.2).
func (d definitions) site() (netip.Prefix, error) {
	path := filepath.Join(filepath.Dir(d.dir), siteFile)
	text, err := os.ReadFile(path)
	if err == nil {
		if p, err := netip.ParsePrefix(strings.TrimSpace(string(text))); err == nil && p.Bits() == 48 && p == p.Masked() && ipam.CheckSubnet(p) == nil {
			return p, nil
		}
		return netip.Prefix{}, fmt.Errorf("%s is %w: it is no IPv6 /48: remove it, or give --subnet", path, errDamaged)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return netip.Prefix{}, fmt.Errorf("reading the host's IPv6 prefix: %w", err)
	}
	var global [5]byte
	rand.Read(global[:]) // never fails
	p := ipam.NewULA(global)
	if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
		err = renameio.WriteFile(path, []byte(p.String()+"\n"), 0o644)
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("keeping the host's IPv6 prefix: %w", err)
	}
	return p, nil
}

// siteFile is beside the directory of the definitions.
const siteFile = "ipv6-prefix"

// definition reads a network's definition; nil if there is none. One that is
// damaged is set aside, and written again if the network is up; else the error
// wraps errDamaged.
func (nets networks) definition(name string) (*Definition, error) {
	def, err := nets.op.defs.get(name)
	if !errors.Is(err, errDamaged) {
		return def, err
	}
	n := nets.op.st.Networks[name]
	if n == nil || n.Pending {
		return nil, fmt.Errorf("%w: run 'fastbr network rm %s'", err, name)
	}
	if err := nets.discardDefinition(name, err); err != nil {
		return nil, err
	}
	return &n.Definition, nets.op.defs.put(n.Definition)
}

// discardDefinition sets a damaged definition aside.
func (nets networks) discardDefinition(name string, why error) error {
	path := nets.op.defs.path(name)
	if err := nets.op.setAside(path); err != nil {
		return err
	}
	nets.op.say("%v: kept as %s", why, aside(path))
	return nil
}

// usedAddrs are the addresses that a new network may collide with. A subnet that
// fastbr chooses overlaps none of them. One that somebody has fixed (a user, an
// engine's IPAM, a definition) is their word: a route that covers it, or lies in
// it, is how they lead others there (an aggregate, a blackhole, an overlay of the
// cluster's), and the bridge's own route is the more specific one or is meant to
// be the less. It collides only with what would be cut off by it, or cut it off.
type usedAddrs struct {
	networks map[netip.Prefix]string // subnets of the other networks, up or only defined, and their names
	allowed  map[netip.Prefix]string // what ports of other networks are allowed, and whose that is
	routes   []netip.Prefix          // every route of the host, whatever its table
	devices  map[netip.Prefix]string // subnets that devices of the host are in, and their names
	hosts    []netip.Addr            // the host's IPv6 addresses
	gateways []netip.Addr            // next hops of default routes
	// site is the prefix of the host's unique local addresses, definitions.site.
	site func() (netip.Prefix, error)
}

// all is everything.
func (u usedAddrs) all() []netip.Prefix {
	return slices.AppendSeq(slices.AppendSeq(slices.Clone(u.routes), maps.Keys(u.networks)), maps.Keys(u.allowed))
}

// next6 is the next free /64 of the host's own, from the one with this number on.
func (u usedAddrs) next6(from uint16) (netip.Prefix, error) {
	within, err := u.site()
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := ipam.NextOf(within, from, u.all())
	if err != nil {
		return p, fmt.Errorf("%w in %s: choose one with --subnet", err, within)
	}
	return p, nil
}

// around is what is used but for the subnets of devices that p is a part of.
func (u usedAddrs) around(p netip.Prefix) usedAddrs {
	u.devices = maps.Clone(u.devices)
	maps.DeleteFunc(u.devices, func(of netip.Prefix, _ string) bool { return of.Bits() < p.Bits() && of.Overlaps(p) })
	return u
}

// conflict says why a subnet that was fixed cannot be a network's. The error
// wraps ipam.ErrOverlap.
func (u usedAddrs) conflict(subnet netip.Prefix) error {
	for p, name := range u.networks {
		if p.Overlaps(subnet) {
			return fmt.Errorf("%w %s of network %s: choose another", ipam.ErrOverlap, p, name)
		}
	}
	for p, name := range u.allowed {
		if p.Overlaps(subnet) {
			return fmt.Errorf("%w %s, which containers of network %s may use: choose another", ipam.ErrOverlap, p, name)
		}
	}
	for p, device := range u.devices {
		if p.Overlaps(subnet) {
			return fmt.Errorf("%w %s, which this host's device %s is in: choose another", ipam.ErrOverlap, p, device)
		}
	}
	for _, gw := range u.gateways {
		if subnet.Contains(gw) {
			return fmt.Errorf("%w %s, which this host's default route leads to: choose another", ipam.ErrOverlap, gw)
		}
	}
	return nil
}

// choose finds a subnet for a network that names none. The note, if any, is for
// the user.
func (u usedAddrs) choose(network string) (_ netip.Prefix, note string, err error) {
	var wish []netip.Prefix
	if network == DefaultNetwork {
		wish = []netip.Prefix{ipam.Default()}
	}
	p, err := ipam.Next(u.all(), wish...)
	if err != nil {
		return p, "", fmt.Errorf("%w: choose one with --subnet", err)
	}
	if len(wish) > 0 && p != wish[0] {
		other, _ := ipam.Overlap(wish[0], u.all())
		note = fmt.Sprintf("%s overlaps %s, which this host uses already: taking %s", wish[0], other, p)
	}
	return p, note, nil
}

// usedAddrs looks at the host and at every network but one.
func (nets networks) usedAddrs(except string) (u usedAddrs, err error) {
	var routes []link.Route
	for _, family := range []link.Family{link.IPv4, link.IPv6} {
		of, err := nets.op.conn.Routes(family)
		if err != nil {
			return u, err
		}
		routes = append(routes, of...)
	}
	u.networks, u.allowed, u.devices = map[netip.Prefix]string{}, map[netip.Prefix]string{}, map[netip.Prefix]string{}
	u.site = nets.op.defs.site
	for _, r := range routes {
		u.routes = append(u.routes, r.Dst)
		switch {
		case r.Connected:
			d, err := nets.op.conn.ByIndex(r.Index)
			if err != nil {
				continue // it has just gone
			}
			u.devices[r.Dst] = d.Name
		case r.Dst.Bits() == 0 && !r.Local && r.Gateway.IsValid():
			u.gateways = append(u.gateways, r.Gateway)
		}
	}
	defs, err := nets.op.defs.all()
	if err != nil {
		return u, err
	}
	if u.hosts, err = nets.op.host.allAddrs(link.IPv6); err != nil {
		return u, err
	}
	for _, n := range nets.op.st.Networks {
		u.hosts = slices.DeleteFunc(u.hosts, func(a netip.Addr) bool { return n.Subnet6.Contains(a) })
		defs = append(defs, n.Definition)
		for _, subnet := range n.subnets() {
			delete(u.devices, subnet) // its bridge's
		}
		for _, p := range n.beyond(n.sortedPorts()...) {
			if n.Name != except {
				u.allowed[p] = n.Name
			}
		}
	}
	for _, d := range defs {
		for _, subnet := range d.subnets() {
			if d.Name != except {
				u.networks[subnet] = d.Name
			}
		}
	}
	return u, nil
}
