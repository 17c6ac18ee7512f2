package firewall

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// action is what a rule does with a packet that matches.
type action int8

const (
	goOn action = iota
	accept
	drop
	translate
	queue // to a program, which decides
	jump
	goTo
	back
)

// outcome is one thing that may happen to a packet at a rule.
type outcome struct {
	when  tri
	do    action
	chain string // of jump and goTo
}

// rule is a rule in nftables' instructions. Rules of iptables-legacy are translated
// into them.
type rule struct {
	exprs   []expr.Any
	comment string
	handle  uint64 // nftables
	text    string // iptables-legacy: the rule as printed
}

// registers are nftables' 64 bytes of registers. They have names of 4 and of 16 bytes.
type registers struct{ bits }

func (r registers) at(reg uint32, n int) bits {
	from := 0
	switch {
	case reg >= unix.NFT_REG32_00:
		from = 4 * int(reg-unix.NFT_REG32_00)
	case reg >= unix.NFT_REG_1:
		from = 16 * int(reg-unix.NFT_REG_1)
	}
	from = min(from, len(r.val))
	to := min(from+n, len(r.val))
	return bits{r.val[from:to], r.mask[from:to]}
}

// load puts a value in a register and pads it with zeros to a multiple of 4 bytes.
func (r registers) load(reg uint32, b bits) {
	room := r.at(reg, (len(b.val)+3)/4*4)
	for i := range room.val {
		room.val[i], room.mask[i] = 0, 0xff
	}
	copy(room.val, b.val)
	copy(room.mask, b.mask)
}

// run tells whether a rule matches a packet, and what may then become of the packet. A
// rule that only counts or logs has no outcome.
func (rs *ruleset) run(c *chain, r rule, p packet) (match tri, out []outcome) {
	regs := registers{unknown(64)}
	match = yes
	for _, e := range r.exprs {
		is, do := yes, outcome{}
		switch e := e.(type) {
		case *expr.Counter, *expr.Log, *expr.Notrack:
		case *expr.Meta:
			if !e.SourceRegister {
				regs.load(e.Register, p.meta(e.Key))
			}
		case *expr.Ct:
			if !e.SourceRegister {
				regs.load(e.Register, p.ct(e))
			}
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				regs.load(e.DestRegister, p.payload(e))
			}
		case *expr.Bitwise:
			b := regs.at(e.SourceRegister, int(e.Len))
			if len(e.Mask) == len(b.val) && len(e.Xor) == len(b.val) {
				b = b.and(e.Mask, e.Xor)
			} else {
				b = unknown(len(b.val)) // a shift
			}
			regs.load(e.DestRegister, b)
		case *expr.Byteorder:
			regs.load(e.DestRegister, swapped(regs.at(e.SourceRegister, int(e.Len)), int(e.Size)))
		case *expr.Cmp:
			is = regs.at(e.Register, len(e.Data)).compare(e.Op, e.Data)
		case *expr.Range:
			if is = regs.at(e.Register, len(e.FromData)).within(e.FromData, e.ToData); e.Op == expr.CmpOpNeq {
				is = is.not()
			}
		case *expr.Lookup:
			var found []outcome
			is, found = rs.lookup(c, e, regs)
			if len(found) > 0 && is != no {
				for _, o := range found {
					o.when = min(o.when, match)
					out = append(out, o)
				}
				if match = min(match, is); is == yes {
					return match, out
				}
				continue
			}
		case *expr.Match:
			if is = p.matches(e); is == may {
				regs = registers{unknown(64)} // an obscure expression may also load registers
			}
		case *expr.Fib:
			if regs.load(e.Register, unknown(16)); e.ResultADDRTYPE && e.FlagDADDR {
				regs.load(e.Register, p.dstType)
			}
		case *expr.Verdict:
			do = verdict(e.Kind, e.Chain)
		case *expr.Reject:
			do.do = drop
		case *expr.Queue:
			do.do = queue
		case *expr.Masq, *expr.NAT, *expr.Redir:
			do.do = translate
		case *expr.Target:
			do.do = targets[e.Name]
		}
		if match = min(match, is); match == no {
			return no, out
		}
		if do.do != goOn {
			do.when = match
			return match, append(out, do)
		}
	}
	return match, out
}

// targets are the targets of iptables that end a packet's way through a chain. After
// any other target the packet goes on.
var targets = map[string]action{"REJECT": drop, "NFQUEUE": queue, "MASQUERADE": translate, "SNAT": translate, "DNAT": translate,
	"REDIRECT": translate, "NETMAP": translate, "ACCEPT": accept, "DROP": drop}

func verdict(kind expr.VerdictKind, chain string) outcome {
	switch kind {
	case expr.VerdictAccept, expr.VerdictStop:
		return outcome{do: accept}
	case expr.VerdictDrop, expr.VerdictStolen:
		return outcome{do: drop}
	case expr.VerdictQueue:
		return outcome{do: queue}
	case expr.VerdictJump:
		return outcome{do: jump, chain: chain}
	case expr.VerdictGoto:
		return outcome{do: goTo, chain: chain}
	case expr.VerdictReturn:
		return outcome{do: back}
	}
	return outcome{}
}

func (p packet) payload(e *expr.Payload) bits {
	var h bits
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		h = p.network()
	case expr.PayloadBaseTransportHeader:
		h = p.transport()
	}
	if end := int(e.Offset + e.Len); end <= len(h.val) {
		return bits{h.val[e.Offset:end], h.mask[e.Offset:end]}
	}
	return unknown(int(e.Len))
}

// swapped reverses the byte order of each number of size bytes, as a little-endian host
// does.
func swapped(b bits, size int) bits {
	out := bits{slices.Clone(b.val), slices.Clone(b.mask)}
	if size == 0 || binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return out
	}
	for i := 0; i+size <= len(out.val); i += size {
		slices.Reverse(out.val[i : i+size])
		slices.Reverse(out.mask[i : i+size])
	}
	return out
}

// lookup tells whether a set has the value. For a verdict map it also returns the
// outcomes.
func (rs *ruleset) lookup(c *chain, e *expr.Lookup, regs registers) (is tri, out []outcome) {
	set := rs.set(c, e.SetName)
	if set == nil {
		return may, nil
	}
	verdicts := e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT
	take := func(el nftables.SetElement, t tri) {
		is = max(is, t)
		if verdicts && t != no {
			o := elementVerdict(el)
			o.when = t
			out = append(out, o)
		}
	}
	var other *nftables.SetElement // of a map: the element for what nothing else matches
	for i, el := range set.elements {
		switch {
		case len(el.Key) == 0:
			other = &set.elements[i]
			continue
		case el.IntervalEnd:
			continue
		}
		v := regs.at(e.SourceRegister, len(el.Key))
		t := v.is(el.Key)
		if len(el.KeyEnd) > 0 {
			t = concatenated(v, el.Key, el.KeyEnd)
		} else if set.Interval && !set.Concatenation {
			last := bytes.Repeat([]byte{0xff}, len(el.Key))
			if i+1 < len(set.elements) {
				last = before(set.elements[i+1].Key)
			}
			t = v.within(el.Key, last)
		}
		take(el, t)
		if t == yes {
			break
		}
	}
	if other != nil && is != yes {
		take(*other, is.not())
		is = yes
	}
	if e.IsDestRegSet && !verdicts {
		regs.load(e.DestRegister, unknown(16))
	}
	if e.Invert {
		is = is.not()
	}
	return is, out
}

// concatenated compares a concatenation of values, each with bounds of its own. It
// compares four bytes at a time, and so does not know where a value of more than four
// bytes ends.
func concatenated(v bits, lo, hi []byte) tri {
	is := yes
	for i := 0; i+4 <= len(lo) && i+4 <= len(v.val); i += 4 {
		four := bits{v.val[i : i+4], v.mask[i : i+4]}
		is = min(is, four.within(lo[i:i+4], hi[i:i+4]))
	}
	return is
}

// before is a big-endian number less one. b is above 0.
func before(b []byte) []byte {
	out := slices.Clone(b)
	for i := len(out) - 1; i >= 0; i-- {
		if out[i]--; out[i] != 0xff {
			break
		}
	}
	return out
}

// elementVerdict decodes an element of a verdict map. It has two attributes: the code
// and the name of the chain.
func elementVerdict(el nftables.SetElement) outcome {
	if len(el.Val) < 8 {
		return outcome{do: queue}
	}
	chain := ""
	if len(el.Val) > 12 {
		chain = string(bytes.Trim(el.Val[12:], "\x00"))
	}
	return verdict(expr.VerdictKind(int32(binary.BigEndian.Uint32(el.Val[4:8]))), chain)
}
