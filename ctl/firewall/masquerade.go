package firewall

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// masqueradeTable is the table by which the kernel translates what the datapath does
// not.
const masqueradeTable = "fastbr"

// publishPriority puts our chains behind every other that translates destinations
// (NF_IP_PRI_NAT_DST is -100).
const publishPriority nftables.ChainPriority = -90

// masqueradePriority puts our chain behind every other that translates sources
// (NF_IP_PRI_NAT_SRC is 100): the first translation of a connection is the only one.
const masqueradePriority nftables.ChainPriority = 110

// ErrForeignTable: somebody else has a table of our table's name.
var ErrForeignTable = errors.New("is not fastbr's: rename it")

// ErrNoNftables: the kernel has no nf_tables, or cannot translate by it.
var ErrNoNftables = errors.New("this kernel has no nftables NAT")

// Masquerade keeps the table "fastbr" of h's family. By it the kernel translates what networks
// with NAT send by uplinks, but for TCP, UDP and echo, which the datapath translates
// unless a helper of conntrack follows the connection.
// If h.Others is set, it also translates all that they send by devices which are
// neither uplinks nor bridges of ours. It leads clients of published SCTP ports to
// their containers, and keeps the kernel's NAT on, by which other published ports are
// translated. The table is replaced as a whole when anything in it is not as it should be;
// connections keep their translation. Without a network with NAT and without published
// ports there is no table. The error wraps ErrNoNftables where the kernel cannot. gone are
// the containers' SCTP ports that it leads nobody to any more.
func Masquerade(h Host) (gone []netip.AddrPort, err error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(roomy))
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	defer conn.CloseLasting()
	want := leavingOf(h)
	have, err := h.Family.readMasquerade(conn)
	if err != nil || maps.EqualFunc(have, want.listing(), slices.Equal[[]string]) {
		return nil, err
	}
	if have != nil {
		conn.DelTable(h.Family.masqueradeTable())
	}
	if err := want.add(conn, h.Family); err != nil {
		return nil, err
	}
	if err := conn.Flush(); err != nil {
		return nil, h.Family.masqueradeError(err)
	}
	return h.Family.noLongerLed(have, want.listing()), nil
}

// transactionMax bounds a transaction and its answers, in bytes: those of a table with all
// that the datapath can except, or with all ports. The kernel takes no more memory than
// they need.
const transactionMax = 64 << 20

func roomy(conn *netlink.Conn) error {
	return errors.Join(conn.SetWriteBuffer(transactionMax), conn.SetReadBuffer(transactionMax))
}

// Masquerades reports whether the table is as Masquerade would leave it. The errors are
// those of Masquerade.
func Masquerades(h Host) (bool, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(roomy))
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	defer conn.CloseLasting()
	have, err := h.Family.readMasquerade(conn)
	return maps.EqualFunc(have, leavingOf(h).listing(), slices.Equal[[]string]), err
}

// masqueradeChains are the names of the table's chains.
var masqueradeChains = []string{"uplink", "postrouting", "published", "prerouting", "output"}

// elementsAtOnce of a set fit into one message: the length of an attribute has 16 bits.
const elementsAtOnce = 512

// masqueradeError is err with ErrNoNftables where the kernel lacks a part: ENOENT is a type
// of chain or an expression that it does not know.
func (f *Family) masqueradeError(err error) error {
	switch {
	case err == nil:
		return nil
	case withoutNftables(err), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: %w", ErrNoNftables, err)
	}
	return fmt.Errorf("table %s: %w", f.Table(), err)
}

// masqueradeTable is the table of the family.
func (f *Family) masqueradeTable() *nftables.Table {
	return &nftables.Table{Name: masqueradeTable, Family: f.table}
}

// leaving is what the table says.
type leaving struct {
	sets   []nftables.Set
	keys   [][]nftables.SetElement // of each set
	chains []leavingChain
}

// leavingChain is a chain. One with a hook translates.
type leavingChain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []leavingRule
}

type leavingRule struct {
	comment string
	exprs   []expr.Any
}

// leavingOf returns nil if no network of h is translated and nothing is published. If
// something is, a chain turns the kernel's NAT on, though it may have no rules.
func leavingOf(h Host) *leaving {
	var subnets []netip.Prefix
	inside, out := []string{"lo"}, []string{}
	for _, n := range h.Networks {
		inside = append(inside, n.Bridge.Name)
		if n.Masquerade && !n.Internal {
			subnets = append(subnets, n.sources()...)
		}
	}
	f, sctp := h.Family, sctpOf(h)
	last := leavingChain{name: "postrouting", hook: nftables.ChainHookPostrouting, priority: masqueradePriority}
	switch {
	case len(subnets) == 0 && len(h.Published) == 0:
		return nil
	case len(subnets) == 0 && len(sctp) == 0:
		sets := f.masqueradeSets()
		return &leaving{sets: sets, keys: make([][]nftables.SetElement, len(sets)), chains: []leavingChain{last}}
	}
	for _, u := range h.Uplinks {
		out = append(out, u.Name)
	}
	type is = []expr.Any
	saddr := f.load(f.src, 1)
	forwarded := is{&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
	iifname := &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}
	oifname := &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}
	in := func(set string, invert bool) expr.Any {
		return &expr.Lookup{SourceRegister: 1, SetName: set, Invert: invert}
	}
	proto := func(p byte) is { return metaIs(expr.MetaKeyL4PROTO, []byte{p}) }
	back := &expr.Verdict{Kind: expr.VerdictReturn}
	echo := payloadIs(expr.PayloadBaseTransportHeader, 0, []byte{f.echo})
	masquerade := is{&expr.Counter{}, &expr.Masq{}}
	helped := statusHas(statusHelper)
	l := &leaving{
		sets: f.masqueradeSets(),
		keys: [][]nftables.SetElement{ranges(subnets), deviceNames(inside), deviceNames(out), nil, nil},
		chains: []leavingChain{{name: "uplink", rules: []leavingRule{
			{"a helper follows it", slices.Concat(helped, masquerade)},
			{"fastbr translates it", append(proto(unix.IPPROTO_TCP), back)},
			{"fastbr translates it", append(proto(unix.IPPROTO_UDP), back)},
			{"fastbr translates it", slices.Concat(proto(f.icmp), echo, is{back})},
			{"other protocols", masquerade},
		}}, last},
	}
	var own, follows []leavingRule // of networks with an address of their own
	for _, n := range h.Networks {
		for _, from := range n.sources() {
			if n.SNAT.IsValid() {
				name, to := fmt.Sprintf("from %s as %s", from, n.SNAT), slices.Concat(f.in(f.src, from), is{
					&expr.Counter{}, &expr.Immediate{Register: 1, Data: n.SNAT.AsSlice()},
					&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.nfproto), RegAddrMin: 1}})
				own = append(own, leavingRule{name, to})
				follows = append(follows, leavingRule{name + ": a helper follows it", slices.Concat(helped, to)})
			}
		}
	}
	uplink, post := &l.chains[0], &l.chains[1]
	uplink.rules = slices.Concat(follows, slices.Insert(uplink.rules, len(uplink.rules)-1, own...))
	post.rules = []leavingRule{
		{"not from a container", is{saddr, in("subnets", true), back}},
		{"not by a bridge of ours: forged", slices.Concat(forwarded, is{iifname, in("inside", true), back})},
		{"stays on the host", is{oifname, in("inside", false), back}},
		{"by an uplink", is{oifname, in("uplinks", false), &expr.Verdict{Kind: expr.VerdictGoto, Chain: "uplink"}}},
	}
	stays := len(post.rules) - 1
	for _, n := range h.Networks {
		for _, p := range n.Plain {
			for _, from := range n.sources() {
				post.rules = slices.Insert(post.rules, stays, leavingRule{fmt.Sprintf("from %s to %s: as it is", from, p),
					slices.Concat(f.in(f.src, from), f.in(f.dst, p), is{back})})
			}
		}
	}
	for _, n := range h.Networks {
		for _, from := range n.sources() {
			if n.Via != "" {
				post.rules = slices.Insert(post.rules, stays, leavingRule{fmt.Sprintf("from %s by %s only", from, n.Via),
					slices.Concat(f.in(f.src, from), is{oifname, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name(n.Via).val}, back})})
			}
		}
	}
	if h.Others {
		post.rules = append(append(post.rules, own...), leavingRule{"other devices", masquerade})
	}
	if len(sctp) > 0 {
		l.publish(h, sctp)
	}
	return l
}

// load puts the address at this offset of the header into a register.
func (f *Family) load(offset int, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(offset), Len: uint32(f.addrLen)}
}

// in is true for packets whose address at this offset of the header lies in p.
func (f *Family) in(offset int, p netip.Prefix) []expr.Any { return f.compare(expr.CmpOpEq, offset, p) }

// compare compares the network of p with that of the address at this offset of the header.
func (f *Family) compare(op expr.CmpOp, offset int, p netip.Prefix) []expr.Any {
	length := uint32(f.addrLen)
	return []expr.Any{
		f.load(offset, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: net.CIDRMask(p.Bits(), 8*f.addrLen), Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// ranges are the elements of an interval set. Ranges that touch become one.
func ranges(prefixes []netip.Prefix) (out []nftables.SetElement) {
	prefixes = slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare)
	for _, p := range prefixes {
		if n := len(out); n > 0 && slices.Equal(out[n-1].Key, p.Addr().AsSlice()) {
			out = out[:n-1]
		} else {
			out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		if end := lastOf(p).Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func deviceNames(names []string) (out []nftables.SetElement) {
	for _, n := range slices.Compact(slices.Sorted(slices.Values(names))) {
		out = append(out, nftables.SetElement{Key: name(n).val})
	}
	return out
}

func (l *leaving) add(conn *nftables.Conn, f *Family) error {
	if l == nil {
		return nil
	}
	t := conn.AddTable(f.masqueradeTable())
	for i, s := range l.sets {
		if err := conn.AddSet(&s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
		for part := range slices.Chunk(l.keys[i], elementsAtOnce) {
			if err := conn.SetAddElements(&s, part); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	for _, c := range l.chains {
		chain := &nftables.Chain{Name: c.name, Table: t}
		if c.hook != nil {
			chain.Type, chain.Hooknum, chain.Priority = nftables.ChainTypeNAT, c.hook, &c.priority
		}
		conn.AddChain(chain)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
		}
	}
	return nil
}

// listing is the table in a form that can be compared: the keys of each set and the
// comments of each chain's rules.
func (l *leaving) listing() map[string][]string {
	if l == nil {
		return nil
	}
	out := map[string][]string{}
	for i, s := range l.sets {
		out["set "+s.Name] = keysOf(l.keys[i])
	}
	for _, c := range l.chains {
		out["chain "+c.name] = nil
		for _, r := range c.rules {
			out["chain "+c.name] = append(out["chain "+c.name], r.comment)
		}
	}
	return out
}

func keysOf(elements []nftables.SetElement) []string {
	out := []string{}
	for _, e := range elements {
		out = append(out, strings.TrimRight(fmt.Sprintf("%x %v %x", e.Key, e.IntervalEnd, e.Val), " "))
	}
	slices.Sort(out)
	return out
}

// readMasquerade reads the table as it is. It is nil if there is none.
func (f *Family) readMasquerade(conn *nftables.Conn) (map[string][]string, error) {
	chains, err := conn.ListChainsOfTableFamily(f.table)
	if err != nil {
		return nil, f.masqueradeError(err)
	}
	var out map[string][]string
	for _, c := range chains {
		if c.Table.Name != masqueradeTable {
			continue
		}
		if !slices.Contains(masqueradeChains, c.Name) {
			return nil, fmt.Errorf("the nft table %q %w", f.Table(), ErrForeignTable)
		}
		rules, err := nftRules(c)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string][]string{}
		}
		out["chain "+c.Name] = nil // it may have lost its rules
		for _, r := range rules {
			out["chain "+c.Name] = append(out["chain "+c.Name], r.comment)
		}
	}
	if out == nil {
		return nil, nil
	}
	for _, s := range f.masqueradeSets() {
		elements, err := conn.GetSetElements(&s)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, f.masqueradeError(err)
		}
		out["set "+s.Name] = keysOf(elements)
	}
	return out, nil
}

// masqueradeSets are the table's sets, without their elements.
func (f *Family) masqueradeSets() []nftables.Set {
	t := f.masqueradeTable()
	device := nftables.Set{Table: t, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	inside, uplinks := device, device
	inside.Name, uplinks.Name = "inside", "uplinks"
	at := nftables.MustConcatSetType(f.addr, nftables.TypeInetService)
	leads := nftables.Set{Table: t, IsMap: true, KeyType: nftables.TypeInetService, DataType: at}
	ports, sockets := leads, leads
	ports.Name, sockets.Name, sockets.KeyType, sockets.Concatenation = "ports", "sockets", at, true
	sets := []nftables.Set{{Table: t, Name: "subnets", KeyType: f.addr, Interval: true}, inside, uplinks, ports, sockets}
	for i := range sets {
		sets[i].ID = uint32(i) + 1 // the library's own numbers are not safe for concurrent use
	}
	return sets
}
