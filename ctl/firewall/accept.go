package firewall

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// opened are the hooks that our accept rules are in.
var opened = []hook{forwarding, localIn}

// Ensure lets the networks' packets through where the host drops what no rule accepts:
// forwarded packets, and the containers' questions for names. Its rules come behind all
// of the user's rules and before what drops the rest. dockerd, ufw and others set such
// a policy whenever they start, and append rules of their own. Where firewalld runs,
// Ensure puts the bridges in a zone. say is told what was done.
func Ensure(networks []Network, say func(format string, args ...any)) error {
	for f, of := range byFamily(networks) {
		if err := f.ensure(of, say); err != nil {
			return err
		}
	}
	return nil
}

// byFamily divides networks, IPv4 first. What holds for a bridge in one family mostly
// does in the other, and need not be done again.
func byFamily(networks []Network) iter.Seq2[*Family, []Network] {
	return func(yield func(*Family, []Network) bool) {
		for _, f := range []*Family{IPv4, IPv6} {
			var of []Network
			for _, n := range networks {
				if n.Family() == f {
					of = append(of, n)
				}
			}
			if len(of) > 0 && !yield(f, of) {
				return
			}
		}
	}
}

func (f *Family) ensure(networks []Network, say func(format string, args ...any)) error {
	rs, err := read(f)
	if err != nil {
		return err
	}
	rs.ensureZone(networks, say)
	for _, h := range opened {
		for _, c := range rs.base(h, false) {
			if c.ofFirewalld() {
				continue
			}
			for _, n := range networks {
				if err := rs.acceptIn(c, n, say); err != nil {
					return err
				}
			}
		}
	}
	return rs.err
}

// acceptIn puts a network's rules in their place in a base chain, or in a chain that it
// jumps to.
func (rs *ruleset) acceptIn(c *chain, n Network, say func(string, ...any)) error {
	tail := rs.tail(c, jumpsDeep)
	if tail == nil || rs.err != nil {
		return rs.err
	}
	at := rs.room(*tail)
	missing, stray := rs.ours(at, n, c.hook)
	if len(missing) == 0 && len(stray) == 0 {
		return nil
	}
	if len(missing) > 0 {
		why := fmt.Sprintf("%s drops by policy: appended rules", c)
		if at.at < len(at.chain.rules) {
			why = fmt.Sprintf("%s drops what no rule accepts: put rules before that", tail)
		}
		what := n.Bridge.Name
		if c.hook == localIn {
			what = fmt.Sprintf("questions for names from %s to %s", n.Bridge.Name, n.Resolver)
		}
		say("%s that accept %s (comment %q)", why, what, n.comment(c.hook))
	}
	for i, p := range missing {
		if err := rs.insert(at, i, p, n.comment(c.hook)); err != nil {
			return fmt.Errorf("adding accept rules to %s: %w", at.chain, err)
		}
	}
	// The new rules renumber every rule behind them. nft's are deleted by their handles.
	for i := range stray {
		if at.chain.ofIPTables() && stray[i].chain == at.chain && stray[i].at >= at.at {
			stray[i].at += len(missing)
		}
	}
	if err := rs.delete(stray); err != nil {
		return err
	}
	return rs.forget(c.table)
}

// ours compares a network's rules for a hook with those right before a place. missing
// is what no rule there accepts, stray are the network's rules anywhere else in the
// table. In a chain of both families, IPv4's rules may serve IPv6, too.
func (rs *ruleset) ours(at place, n Network, h hook) (missing []pass, stray []place) {
	missing = n.wanted(h)
	first := at.at
	for first > 0 && isOurs(at.chain.rules[first-1].comment) {
		first--
	}
	serves := func(r rule) bool {
		is := slices.IndexFunc(missing, func(p pass) bool { return rs.accepts(at.chain, r, p) })
		if is >= 0 {
			missing = slices.Delete(missing, is, is+1)
		}
		return is >= 0
	}
	if n.Family() == IPv6 {
		for _, r := range at.chain.rules[first:at.at] {
			if r.comment+":ip6" == n.comment(h) {
				serves(r)
			}
		}
	}
	for _, c := range rs.chains[at.chain.table] {
		for i, r := range rs.load(c) {
			if r.comment != n.comment(h) {
				continue
			}
			if c != at.chain || i < first || i >= at.at || !serves(r) {
				stray = append(stray, place{c, i})
			}
		}
	}
	return missing, stray
}

// markStart is how the comment of each of our rules begins.
const markStart = "fastbr:"

func isOurs(comment string) bool { return strings.HasPrefix(comment, markStart) }

// accepts tells whether a rule accepts all packets of a kind.
func (rs *ruleset) accepts(c *chain, r rule, p pass) bool {
	_, out := rs.run(c, r, p.packet(rs.family))
	return len(out) == 1 && out[0].when == yes && out[0].do == accept
}

// insert puts a rule at a place. behind is how many rules have been put there since the
// chain was read.
func (rs *ruleset) insert(at place, behind int, p pass, comment string) error {
	if c := at.chain; c.ofIPTables() {
		args := append([]string{"-t", c.table.name, "-I", c.name, strconv.Itoa(at.at + behind + 1)}, p.iptables()...)
		_, err := iptablesOf(c.table).run(append(args, "-m", "comment", "--comment", comment, "-j", "ACCEPT")...)
		return err
	}
	r := &nftables.Rule{Table: at.chain.nft.Table, Chain: at.chain.nft,
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
		Exprs:    append(p.exprs(at.chain.table.family), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})}
	if at.at < len(at.chain.rules) {
		r.Position = at.chain.rules[at.at].handle
		rs.conn.InsertRule(r)
	} else {
		rs.conn.AddRule(r)
	}
	return rs.conn.Flush()
}

// delete deletes rules, the last of a chain first: deleting a rule renumbers those
// behind it.
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

// forget makes the next look at a table read it again.
func (rs *ruleset) forget(t table) error {
	if t.family == rs.family.legacy {
		delete(rs.chains, t)
		return rs.readLegacy()
	}
	for _, c := range rs.chains[t] {
		c.read, c.rules = false, nil
	}
	return nil
}

// tagged are a network's rules for a hook, in all tables that Ensure adds to.
func (rs *ruleset) tagged(n Network, h hook) (out []place) {
	seen := map[table]bool{}
	for _, c := range rs.base(h, false) {
		if seen[c.table] {
			continue
		}
		seen[c.table] = true
		for _, x := range rs.chains[c.table] {
			for i, r := range rs.load(x) {
				if r.comment == n.comment(h) {
					out = append(out, place{x, i})
				}
			}
		}
	}
	return out
}

// Remove deletes whatever Ensure has added for a network, wherever it is.
func Remove(n Network) error {
	rs, err := read(n.Family())
	if err != nil {
		return err
	}
	for _, h := range opened {
		all := rs.tagged(n, h)
		if err := errors.Join(rs.err, rs.delete(all)); err != nil {
			return err
		}
		for _, p := range all {
			if err := rs.forget(p.chain.table); err != nil {
				return err
			}
		}
	}
	return rs.leaveZone(n)
}

// Rules lists what lets the networks' packets through.
func Rules(networks []Network) (out []Rule, err error) {
	add := func(r Rule) {
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	what := map[hook]string{forwarding: "what is forwarded", localIn: "questions for names"}
	for f, of := range byFamily(networks) {
		rs, err := read(f)
		if err != nil {
			return nil, err
		}
		for _, n := range of {
			for _, h := range opened {
				for _, p := range rs.tagged(n, h) {
					add(Rule{p.chain.String(), n.Bridge.Name, n.Name, what[h]})
				}
			}
		}
		for _, r := range rs.zoned(of) {
			add(r)
		}
		if rs.err != nil {
			return out, rs.err
		}
	}
	slices.SortStableFunc(out, func(a, b Rule) int { return cmp.Compare(a.Where, b.Where) })
	return out, nil
}
