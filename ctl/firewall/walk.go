package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
)

// fate is what may become of a packet in a chain.
type fate uint8

const (
	passes fate = 1 << iota
	condemned
	translated
	through // it reaches the end of a chain that is not a base chain
)

// jumpsDeep is how deep the kernel follows jumps.
const jumpsDeep = 16

// place is the place before a rule of a chain. Behind the last rule, at is the number
// of rules.
type place struct {
	chain *chain
	at    int
}

// walk sends one packet through chains.
type walk struct {
	rs    *ruleset
	p     packet
	cause place // the rule or policy that condemns it; the surest, if there are several
	sure  tri
}

// base says what may become of the packet in a base chain.
func (w *walk) base(c *chain) fate {
	f := w.chain(c, yes, jumpsDeep)
	if f&through == 0 {
		return f
	}
	f &^= through
	if !c.dropping {
		return f | passes
	}
	w.condemn(place{c, len(c.rules)}, may)
	return f | condemned
}

func (w *walk) condemn(by place, how tri) {
	if w.cause.chain == nil || how > w.sure {
		w.cause, w.sure = by, how
	}
}

// chain says what may become of the packet in a chain. when is whether it gets there.
func (w *walk) chain(c *chain, when tri, deep int) (f fate) {
	if c == nil || deep == 0 {
		return through
	}
	for i, r := range w.rs.load(c) {
		_, outcomes := w.rs.run(c, r, w.p)
		for _, o := range outcomes {
			now, stays := min(when, o.when), false
			switch o.do {
			case accept:
				f |= passes
			case drop:
				f |= condemned
				w.condemn(place{c, i}, now)
			case queue:
				f |= passes | condemned
			case translate:
				f |= translated
			case back:
				f |= through
			case jump:
				g := w.chain(w.rs.chains[c.table][o.chain], now, deep-1)
				f |= g &^ through
				stays = g&through != 0
			case goTo:
				f |= w.chain(w.rs.chains[c.table][o.chain], now, deep-1)
			case goOn:
				stays = true
			}
			if o.when == yes && !stays {
				return f
			}
		}
	}
	return f | through
}

// tail is where a base chain begins to drop whatever no earlier rule has accepted: its
// end, if its policy is DROP, or a rule without a condition. It is nil if the chain
// drops nothing by default.
func (rs *ruleset) tail(c *chain, deep int) *place {
	if deep == 0 {
		return nil
	}
	blank := rs.family.anything()
	for i, r := range rs.load(c) {
		_, outcomes := rs.run(c, r, blank)
		for _, o := range outcomes {
			if o.when != yes {
				continue
			}
			next := rs.chains[c.table][o.chain]
			switch o.do {
			case drop:
				return &place{c, i}
			case accept, queue, translate:
				return nil
			case jump, goTo:
				w := walk{rs: rs, p: blank}
				f := w.chain(next, yes, deep-1)
				switch {
				case f == condemned:
					return &place{c, i}
				case f&through == 0:
					return rs.tail(next, deep-1)
				case o.do == goTo && c.dropping:
					return &place{next, len(next.rules)}
				case o.do == goTo:
					return nil
				}
			case back:
				return rs.end(c)
			}
		}
	}
	return rs.end(c)
}

func (rs *ruleset) end(c *chain) *place {
	if c.dropping {
		return &place{c, len(c.rules)}
	}
	return nil
}

// room is the place for accept rules before a tail. It is also before rules there that
// only log, so that no accepted packet is logged as blocked.
func (rs *ruleset) room(tail place) place {
	for tail.at > 0 && rs.idle(tail.chain, tail.chain.rules[tail.at-1], jumpsDeep) {
		tail.at--
	}
	return tail
}

// idle tells whether a rule neither decides about a packet nor changes it.
func (rs *ruleset) idle(c *chain, r rule, deep int) bool {
	if deep == 0 || isOurs(r.comment) {
		return false
	}
	for _, e := range r.exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log, *expr.Cmp, *expr.Range, *expr.Bitwise, *expr.Byteorder:
		case *expr.Meta:
			if e.SourceRegister {
				return false
			}
		case *expr.Ct:
			if e.SourceRegister {
				return false
			}
		case *expr.Payload:
			if e.OperationType != expr.PayloadLoad {
				return false
			}
		case *expr.Match:
			if !slices.Contains(understood, e.Name) && !slices.Contains([]string{"limit", "--limit", "--limit-burst"}, e.Name) {
				return false
			}
		case *expr.Target:
			if !slices.Contains([]string{"LOG", "NFLOG", "ULOG"}, e.Name) {
				return false
			}
		case *expr.Verdict:
			next := rs.chains[c.table][e.Chain]
			if e.Kind != expr.VerdictJump || next == nil ||
				slices.ContainsFunc(rs.load(next), func(r rule) bool { return !rs.idle(next, r, deep-1) }) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// natPriority is the priority of the kernel's DNAT (NF_IP_PRI_NAT_DST).
const natPriority = -100

// early reports whether a base chain sees packets before the kernel has translated their
// destination.
func (c *chain) early() bool { return c.hook == prerouting && c.priority < natPriority }

// filters are the hooks that a forwarded packet passes through, in order.
var filters = []hook{prerouting, forwarding, postrouting}

// cut is what drops a kind of packet.
type cut struct {
	place        // the rule or the policy
	base  *chain // the base chain that it is in, or that jumps to it
}

// condemns finds what drops every packet like p in one of the hooks.
func (rs *ruleset) condemns(p packet, hooks ...hook) *cut {
	for _, h := range hooks {
		q := p
		switch h {
		case prerouting, localIn:
			q.out = Device{} // not routed yet, or for the host
		case localOut:
			q.in = Device{}
		}
		for _, c := range rs.base(h, false) {
			w := walk{rs: rs, p: q}
			if c.early() && p.first != nil {
				w.p = *p.first
			}
			if w.base(c) == condemned {
				return &cut{w.cause, c}
			}
		}
	}
	return nil
}

// String names the rule in the words of its tool, if that is installed.
func (p place) String() string {
	if p.at >= len(p.chain.rules) {
		return fmt.Sprintf("%s (by policy)", p.chain)
	}
	return fmt.Sprintf("%s (%s)", p.chain, p.text())
}

// text is the rule as its tool prints it.
func (p place) text() string {
	r := p.chain.rules[p.at]
	switch {
	case r.text != "":
		return r.text
	case p.chain.ofIPTables():
		out, err := iptablesOf(p.chain.table).run("-t", p.chain.table.name, "-S", p.chain.name)
		if err != nil {
			break
		}
		lines := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return !strings.HasPrefix(l, "-A ") })
		if p.at < len(lines) {
			return strings.TrimPrefix(lines[p.at], "-A "+p.chain.name+" ")
		}
	default:
		nft := installed("nft")
		if nft == "" {
			break
		}
		out, err := output(nft, "-a", "list", "chain", p.chain.table.family, p.chain.table.name, p.chain.name)
		if err != nil {
			break
		}
		for line := range strings.Lines(out) {
			if text, ok := strings.CutSuffix(strings.TrimSpace(line), fmt.Sprintf(" # handle %d", r.handle)); ok {
				return text
			}
		}
	}
	return fmt.Sprintf("rule %d", p.at+1)
}
