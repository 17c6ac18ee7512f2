package firewall

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// table is a table of nftables or of iptables-legacy.
type table struct{ family, name string }

// hook is the place in the kernel at which a base chain is run.
type hook int

// The numbers are those of enum nf_inet_hooks.
const (
	noHook hook = iota - 1
	prerouting
	localIn
	forwarding
	localOut
	postrouting
)

// chain is a chain. Only a base chain has a hook, a type, a priority and a policy.
type chain struct {
	table    table
	name     string
	hook     hook
	nat      bool // of type nat
	priority int
	dropping bool // by policy
	nft      *nftables.Chain
	read     bool
	rules    []rule
}

// ruleset is everything in the host's filters that sees one family. A chain is read when
// it is first asked for.
type ruleset struct {
	family *Family
	conn   *nftables.Conn
	chains map[table]map[string]*chain
	sets   map[table]map[string]*set
	err    error // the first error that makes an answer doubtful
}

// set is a set or map of nftables. One with intervals is sorted by key.
type set struct {
	*nftables.Set
	elements []nftables.SetElement
}

func read(f *Family) (*ruleset, error) {
	rs := &ruleset{family: f, chains: map[table]map[string]*chain{}, sets: map[table]map[string]*set{}}
	var err error
	if rs.conn, err = nftables.New(); err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	all, err := rs.conn.ListChains()
	switch {
	case withoutNftables(err): // and so without rules of it
	case err != nil:
		return nil, fmt.Errorf("listing nftables chains: %w", err)
	}
	for _, c := range all {
		family := map[nftables.TableFamily]string{f.table: f.word, nftables.TableFamilyINet: "inet"}[c.Table.Family]
		if family == "" {
			continue
		}
		x := &chain{table: table{family, c.Table.Name}, name: c.Name, hook: noHook, nft: c}
		if c.Hooknum != nil {
			x.hook, x.nat = hook(*c.Hooknum), c.Type == nftables.ChainTypeNAT
			x.dropping = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
			if c.Priority != nil {
				x.priority = int(*c.Priority)
			}
		}
		rs.add(x)
	}
	return rs, rs.readLegacy()
}

// withoutNftables reports whether an error says that the kernel has no nf_tables.
func withoutNftables(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

func (rs *ruleset) add(c *chain) {
	if rs.chains[c.table] == nil {
		rs.chains[c.table] = map[string]*chain{}
	}
	rs.chains[c.table][c.name] = c
}

// base are the base chains on a hook, in the order in which the kernel runs them.
func (rs *ruleset) base(h hook, nat bool) (out []*chain) {
	for _, chains := range rs.chains {
		for _, c := range chains {
			if c.hook == h && c.nat == nat {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(a, b *chain) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.table.family, b.table.family), cmp.Compare(a.table.name, b.table.name))
	})
	return out
}

// load reads a chain's rules. A chain that was deleted meanwhile has none.
func (rs *ruleset) load(c *chain) []rule {
	if c.read || c.nft == nil {
		return c.rules
	}
	c.read = true
	rules, err := nftRules(c.nft)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		rs.fail(fmt.Errorf("reading %s: %w", c, err))
	}
	c.rules = rules
	return c.rules
}

func (rs *ruleset) fail(err error) {
	if rs.err == nil {
		rs.err = err
	}
}

// set returns a set of the chain's table, or nil if it cannot be read.
func (rs *ruleset) set(c *chain, name string) *set {
	if c.nft == nil {
		return nil
	}
	if rs.sets[c.table] == nil {
		rs.sets[c.table] = map[string]*set{}
	}
	if s, ok := rs.sets[c.table][name]; ok {
		return s
	}
	head, err := rs.conn.GetSetByName(c.nft.Table, name)
	if err != nil {
		rs.fail(fmt.Errorf("reading set %s of %s: %w", name, c, err))
		return nil
	}
	elements, err := rs.conn.GetSetElements(head)
	if err != nil {
		rs.fail(fmt.Errorf("reading set %s of %s: %w", name, c, err))
		return nil
	}
	if head.Interval && !head.Concatenation {
		slices.SortStableFunc(elements, func(a, b nftables.SetElement) int {
			ends := func(e nftables.SetElement) int {
				if e.IntervalEnd {
					return 0
				}
				return 1
			}
			return cmp.Or(bytes.Compare(a.Key, b.Key), cmp.Compare(ends(a), ends(b)))
		})
	}
	s := &set{head, elements}
	rs.sets[c.table][name] = s
	return s
}

// ofIPTables tells whether an iptables command keeps the chain. Such a chain takes only
// rules in iptables' own form.
func (c *chain) ofIPTables() bool {
	f := ofTable(c.table)
	return f != nil && (c.table.family == f.legacy || slices.Contains(iptablesTables, c.table.name) && iptablesOf(c.table).path != "")
}

var iptablesTables = []string{"raw", "mangle", "nat", "filter", "security"}

// String names a chain as its tool does.
func (c *chain) String() string {
	if c.ofIPTables() {
		return fmt.Sprintf("%s %s %s", iptablesOf(c.table), c.table.name, c.name)
	}
	return fmt.Sprintf("nft %s %s %s", c.table.family, c.table.name, c.name)
}
