package ctl

import (
	"bytes"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// outgoing is what containers of one network send by one uplink.
type outgoing struct {
	subnet netip.Prefix
	uplink string
}

// natWalk looks for a rule that translates all of it in the postrouting hook,
// before the datapath does.
type natWalk struct {
	conn *nftables.Conn
	what outgoing
}

// jumpsDeep is as deep as the kernel follows jumps.
const jumpsDeep = 16

// foreignNAT returns the chain, as nft names it, that translates what containers
// send by an uplink before fastbr can, "" if there is none. A rule with a condition
// that is not understood is taken for one about something else.
func foreignNAT(o outgoing) (string, error) {
	conn, chains, err := ipv4Chains(*nftables.ChainHookPostrouting, nftables.ChainTypeNAT)
	if err != nil {
		return "", err
	}
	w := natWalk{conn, o}
	for _, c := range chains {
		done, hit, err := w.chain(c, jumpsDeep)
		if err != nil {
			return "", fmt.Errorf("reading nft chain %s %s: %w", c.Table.Name, c.Name, err)
		}
		if done && hit {
			return c.Table.Name + " " + c.Name, nil
		}
	}
	return "", nil
}

// chain tells whether a chain settles the matter, and whether by translating.
func (w natWalk) chain(c *nftables.Chain, deep int) (done, hit bool, err error) {
	if deep == 0 {
		return false, false, nil
	}
	rules, err := w.conn.GetRules(c.Table, c)
	if err != nil {
		return false, false, err
	}
	for _, r := range rules {
		do := w.what.caught(r.Exprs)
		switch v := do.(type) {
		case *expr.Masq, *expr.NAT, *expr.Target:
			return true, true, nil
		case *expr.Verdict:
			switch v.Kind {
			case expr.VerdictJump, expr.VerdictGoto:
				next := &nftables.Chain{Table: c.Table, Name: v.Chain}
				done, hit, err := w.chain(next, deep-1)
				if done || err != nil || v.Kind == expr.VerdictGoto {
					return done, hit, err
				}
			case expr.VerdictReturn:
				return false, false, nil
			default:
				return true, false, nil
			}
		}
	}
	return false, false, nil
}

// caught returns what a rule does with all of it; nil: nothing.
func (o outgoing) caught(rule []expr.Any) expr.Any {
	var about expr.Any // what the register holds
	var mask []byte
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Meta, *expr.Payload:
			about, mask = e, nil
		case *expr.Bitwise:
			mask = e.Mask
		case *expr.Cmp:
			if !o.matches(about, mask, e) {
				return nil
			}
		case *expr.Match:
			if e.Name != "comment" {
				return nil
			}
		case *expr.NAT:
			if e.Type == expr.NATTypeSourceNAT {
				return e
			}
			return nil
		case *expr.Target:
			if e.Name == "MASQUERADE" || e.Name == "SNAT" {
				return e
			}
			return nil
		case *expr.Masq, *expr.Verdict:
			return e
		default:
			return nil
		}
	}
	return nil
}

// matches tells whether a comparison of what about has loaded is true of all of it.
func (o outgoing) matches(about expr.Any, mask []byte, c *expr.Cmp) bool {
	switch a := about.(type) {
	case *expr.Meta:
		switch a.Key {
		case expr.MetaKeyNFPROTO:
			return true // chains of IPv4
		case expr.MetaKeyOIFNAME:
			name, _, whole := bytes.Cut(c.Data, []byte{0})
			same := string(name) == o.uplink || !whole && strings.HasPrefix(o.uplink, string(name))
			return same == (c.Op == expr.CmpOpEq)
		}
	case *expr.Payload:
		if a.Base != expr.PayloadBaseNetworkHeader || a.Offset != 12 || int(a.Len) != len(c.Data) || a.Len > 4 {
			return false
		}
		is := len(c.Data) * 8
		if mask != nil {
			is = 0
			for _, b := range mask {
				is += bits.OnesCount8(b)
			}
		}
		var addr [4]byte
		copy(addr[:], c.Data)
		from := netip.PrefixFrom(netip.AddrFrom4(addr), is)
		if c.Op == expr.CmpOpEq {
			return from.Bits() <= o.subnet.Bits() && from.Contains(o.subnet.Addr())
		}
		return !from.Overlaps(o.subnet)
	}
	return false
}

// foreignNATFindings warns of rules that keep a network's flows from the datapath.
func (s *session) foreignNATFindings() (out []FeatureView) {
	for _, name := range s.st.networkNames() {
		n := s.st.Networks[name]
		if !n.Masquerade || n.Internal {
			continue
		}
		for _, u := range s.st.Uplinks {
			where, err := foreignNAT(outgoing{n.Subnet, u.Name})
			v := FeatureView{Name: "foreign-nat", State: "warning", Detail: fmt.Sprintf(
				"nft chain %s translates what network %s sends by %s before fastbr can: such flows have neither fast path nor fastbr's NAT; except %s there",
				where, name, u.Name, n.Subnet)}
			if err != nil {
				v.Detail = err.Error()
			}
			if (err != nil || where != "") && !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
	}
	return out
}
