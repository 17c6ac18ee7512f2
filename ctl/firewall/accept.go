package firewall

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Ensure lets the networks' packets through where forwarded packets are dropped
// unless a rule accepts them: behind all of the user's rules, before what drops
// the rest. dockerd, ufw and others set that whenever they start, and append rules
// of their own. say is told what was done.
func Ensure(networks []Network, say func(format string, args ...any)) error {
	rs, err := read()
	if err != nil {
		return err
	}
	for _, c := range rs.base(forwarding, false) {
		if c.ofFirewalld() {
			continue
		}
		for _, n := range networks {
			if err := rs.acceptIn(c, n, say); err != nil {
				return err
			}
		}
	}
	return rs.err
}

func (rs *ruleset) acceptIn(c *chain, n Network, say func(string, ...any)) error {
	tail := rs.tail(c, jumpsDeep)
	if tail == nil || rs.err != nil {
		return rs.err
	}
	missing, stray := rs.ours(*tail, n)
	if len(missing) == 0 && len(stray) == 0 {
		return nil
	}
	if len(missing) > 0 {
		why := fmt.Sprintf("%s drops by policy: appended rules", c)
		if tail.at < len(tail.chain.rules) {
			why = fmt.Sprintf("%s drops whatever comes to its end: put rules before that", tail)
		}
		say("%s that accept %s (comment %q)", why, n.Bridge, n.Mark)
	}
	for i, key := range missing {
		if err := rs.insert(*tail, i, key, n); err != nil {
			return fmt.Errorf("adding accept rules to %s: %w", tail.chain, err)
		}
	}
	// Numbers behind the new rules have grown by as many.
	for i := range stray {
		if stray[i].chain == tail.chain && stray[i].at >= tail.at {
			stray[i].at += len(missing)
		}
	}
	if err := rs.delete(stray); err != nil {
		return err
	}
	return rs.forget(c.table)
}

// ours are which of the two rules of a network's are not right before the tail, and
// which rules of its are elsewhere in the table.
func (rs *ruleset) ours(tail place, n Network) (missing []expr.MetaKey, stray []place) {
	missing = []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME}
	first := tail.at
	for first > 0 && isOurs(tail.chain.rules[first-1].comment) {
		first--
	}
	for _, c := range rs.chains[tail.chain.table] {
		for i, r := range rs.load(c) {
			if r.comment != n.Mark {
				continue
			}
			at := slices.IndexFunc(missing, func(k expr.MetaKey) bool { return rs.accepts(c, r, k, n.Bridge) })
			if c != tail.chain || i < first || i >= tail.at || at < 0 {
				stray = append(stray, place{c, i})
			} else {
				missing = slices.Delete(missing, at, at+1)
			}
		}
	}
	return missing, stray
}

// markStart begins the comment of every rule of ours.
const markStart = "fastbr:"

func isOurs(comment string) bool { return strings.HasPrefix(comment, markStart) }

// accepts tells whether a rule accepts whatever comes from a device, or goes there.
func (rs *ruleset) accepts(c *chain, r rule, key expr.MetaKey, d Device) bool {
	p := anything()
	if p.in = d; key == expr.MetaKeyOIFNAME {
		p.in, p.out = Device{}, d
	}
	_, out := rs.run(c, r, p)
	return len(out) == 1 && out[0].when == yes && out[0].do == accept
}

// insert puts one of the two rules at a place, behind some that have been put there
// since it was read.
func (rs *ruleset) insert(at place, behind int, key expr.MetaKey, n Network) error {
	if c := at.chain; c.ofIPTables() {
		way := map[expr.MetaKey]string{expr.MetaKeyIIFNAME: "-i", expr.MetaKeyOIFNAME: "-o"}[key]
		_, err := iptablesOf(c.table).run("-t", c.table.name, "-I", c.name, strconv.Itoa(at.at+behind+1), way, n.Bridge.Name,
			"-m", "comment", "--comment", n.Mark, "-j", "ACCEPT")
		return err
	}
	r := &nftables.Rule{Table: at.chain.nft.Table, Chain: at.chain.nft,
		UserData: userdata.AppendString(nil, userdata.TypeComment, n.Mark),
		Exprs: []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name(n.Bridge.Name).val},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}}
	if at.at < len(at.chain.rules) {
		r.Position = at.chain.rules[at.at].handle
		rs.conn.InsertRule(r)
	} else {
		rs.conn.AddRule(r)
	}
	return rs.conn.Flush()
}

// delete takes rules away, the last of a chain first, so that numbers stay true.
func (rs *ruleset) delete(rules []place) error {
	slices.SortFunc(rules, func(a, b place) int { return b.at - a.at })
	for _, p := range rules {
		err := error(nil)
		if c := p.chain; c.ofIPTables() {
			_, err = iptablesOf(c.table).run("-t", c.table.name, "-D", c.name, strconv.Itoa(p.at+1))
		} else {
			err = errors.Join(rs.conn.DelRule(&nftables.Rule{Table: c.nft.Table, Chain: c.nft, Handle: c.rules[p.at].handle}), rs.conn.Flush())
		}
		if err != nil {
			return fmt.Errorf("deleting from %s: %w", p.chain, err)
		}
	}
	return nil
}

// forget has a table read anew.
func (rs *ruleset) forget(t table) error {
	if t.family == legacy {
		delete(rs.chains, t)
		return rs.readLegacy()
	}
	for _, c := range rs.chains[t] {
		c.read, c.rules = false, nil
	}
	return nil
}

// Remove deletes the rules tagged with a network's mark wherever they are.
func Remove(mark string) error {
	rs, err := read()
	if err != nil {
		return err
	}
	for _, c := range rs.base(forwarding, false) {
		var all []place
		for _, x := range rs.chains[c.table] {
			for i, r := range rs.load(x) {
				if r.comment == mark {
					all = append(all, place{x, i})
				}
			}
		}
		if err := errors.Join(rs.err, rs.delete(all), rs.forget(c.table)); err != nil {
			return err
		}
	}
	return nil
}

// Rules lists where accept rules for the networks are.
func Rules(networks []Network) (out []Rule, err error) {
	rs, err := read()
	if err != nil {
		return nil, err
	}
	for _, c := range rs.base(forwarding, false) {
		for _, n := range networks {
			for _, x := range rs.chains[c.table] {
				if slices.ContainsFunc(rs.load(x), func(r rule) bool { return r.comment == n.Mark }) {
					out = append(out, Rule{x.String(), n.Bridge.Name, n.Name})
				}
			}
		}
	}
	return out, rs.err
}
