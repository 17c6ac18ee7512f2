package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// iptables is one of a family's two commands, such as iptables-nft and iptables-legacy.
type iptables struct {
	name string // without a variant
	path string // "": not installed
}

// iptablesOf is the command that shows and changes a table of one family.
func iptablesOf(t table) iptables {
	f := ofTable(t)
	if t.family == f.legacy {
		return iptables{f.iptables, installed(f.legacy, f.iptables)}
	}
	return iptables{f.iptables, installed(f.iptables+"-nft", f.iptables)}
}

// installed returns the first of the commands that exists, or "".
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

func (t iptables) String() string {
	if t.path == "" {
		return t.name
	}
	return filepath.Base(t.path)
}

func (t iptables) run(args ...string) (string, error) {
	if t.path == "" {
		return "", fmt.Errorf("packets are filtered by %[1]s, but no %[1]s command is installed", t.name)
	}
	return output(t.path, append([]string{"-w", "5"}, args...)...)
}

// output is what a command prints. On failure the error has the first line of its
// complaint.
func output(command string, args ...string) (string, error) {
	cmd := exec.Command(command, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, line)
	}
	return string(out), nil
}

// readLegacy reads the tables of iptables-legacy that this namespace has. To ask the
// command for any other table would create that table.
func (rs *ruleset) readLegacy() error {
	names, err := os.ReadFile("/proc/thread-self/net/" + rs.family.file)
	if err != nil {
		return nil // the kernel has no such tables
	}
	for _, name := range strings.Fields(string(names)) {
		t := table{rs.family.legacy, name}
		out, err := iptablesOf(t).run("-t", name, "-S")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			rs.readLegacyLine(t, words(line))
		}
	}
	return nil
}

func (rs *ruleset) readLegacyLine(t table, w []string) {
	if len(w) < 2 {
		return
	}
	switch w[0] {
	case "-P":
		h := slices.Index([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, w[1])
		priority := map[string]int{"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}[t.name]
		rs.add(&chain{table: t, name: w[1], hook: hook(h), nat: t.name == "nat", priority: priority, read: true,
			dropping: len(w) > 2 && w[2] == "DROP"})
	case "-N":
		rs.add(&chain{table: t, name: w[1], hook: noHook, read: true})
	case "-A":
		if c := rs.chains[t][w[1]]; c != nil {
			r := rs.family.legacyRule(w[2:])
			r.text = strings.Join(w[2:], " ")
			c.rules = append(c.rules, r)
		}
	}
}

// words splits a line of `iptables -S`. Only comments and the like are quoted there.
func words(line string) (out []string) {
	var word strings.Builder
	quoted, some := false, false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '"':
			quoted, some = !quoted, true
		case c == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case (c == ' ' || c == '\n') && !quoted:
			if some || word.Len() > 0 {
				out = append(out, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteByte(c)
		}
	}
	if some || word.Len() > 0 {
		out = append(out, word.String())
	}
	return out
}

// legacyRule translates a rule, as `iptables -S` prints it, into nftables'
// instructions, as iptables-nft does. An unknown option becomes a match that may be
// true.
func (f *Family) legacyRule(w []string) (r rule) {
	not := false
	add := func(e ...expr.Any) { r.exprs = append(r.exprs, e...) }
	op := func() expr.CmpOp {
		if not {
			return expr.CmpOpNeq
		}
		return expr.CmpOpEq
	}
	ct := &xt.ConntrackMtinfo3{}
	conntrack := func(flag xt.ConntrackFlags) {
		if ct.MatchFlags == 0 {
			add(&expr.Match{Name: "conntrack", Rev: 3, Info: ct})
		}
		if ct.MatchFlags |= uint16(flag); not {
			ct.InvertFlags |= uint16(flag)
		}
	}
	for i := 0; i < len(w); i++ {
		arg := ""
		if i+1 < len(w) {
			arg = w[i+1]
		}
		option := w[i]
		if option == "!" {
			not = true
			continue
		}
		i++ // past the argument, if it is a known option
		switch option {
		case "-i", "-o":
			key := map[string]expr.MetaKey{"-i": expr.MetaKeyIIFNAME, "-o": expr.MetaKeyOIFNAME}[option]
			data := name(arg).val
			if start, ok := strings.CutSuffix(arg, "+"); ok {
				data = []byte(start)
			}
			add(&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op(), Register: 1, Data: data})
		case "-s", "-d":
			offset := map[string]int{"-s": f.src, "-d": f.dst}[option]
			p, err := netip.ParsePrefix(arg)
			if err != nil {
				add(obscure(option))
				break
			}
			b := f.prefix(p)
			add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(offset), Len: uint32(f.addrLen)},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(f.addrLen), Mask: b.mask, Xor: make([]byte, f.addrLen)},
				&expr.Cmp{Op: op(), Register: 1, Data: b.val})
		case "-p":
			number, ok := protocols[arg]
			if n, err := strconv.ParseUint(arg, 10, 8); err == nil {
				number, ok = byte(n), true
			}
			if !ok {
				add(obscure(option))
				break
			}
			add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: op(), Register: 1, Data: []byte{number}})
		case "--dport", "--sport":
			lo, hi := portRange(arg)
			offset := map[string]uint32{"--sport": 0, "--dport": 2}[option]
			add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
				&expr.Range{Op: op(), Register: 1, FromData: big16(lo), ToData: big16(hi)})
		case "--dports", "--sports", "--ports":
			add(multiportMatch(option, arg, not))
		case "--ctstate", "--state":
			conntrack(xt.ConntrackState)
			for s := range strings.SplitSeq(arg, ",") {
				ct.StateMask |= xtStates[s]
			}
		case "--ctorigdst":
			p, err := netip.ParsePrefix(arg)
			if a, bad := netip.ParseAddr(arg); bad == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil {
				add(obscure(option))
				break
			}
			b := f.prefix(p)
			conntrack(xt.ConntrackOrigDst)
			ct.OrigDstAddr, ct.OrigDstMask = b.val, b.mask
		case "--ctorigdstport":
			conntrack(xt.ConntrackOrigDstPort)
			ct.OrigDstPort, ct.OrigDstPortHigh = portRange(arg)
		case "-m":
			// Its options say what it matches
			if !slices.Contains(understood, arg) {
				add(obscure(arg))
			}
		case "--comment":
			r.comment = arg
		case "-j", "-g":
			switch {
			case arg == "RETURN":
				add(&expr.Verdict{Kind: expr.VerdictReturn})
			case strings.ToUpper(arg) == arg && (targets[arg] != goOn || slices.Contains(goingOn, arg)):
				add(&expr.Target{Name: arg})
			case option == "-g":
				add(&expr.Verdict{Kind: expr.VerdictGoto, Chain: arg})
			default:
				add(&expr.Verdict{Kind: expr.VerdictJump, Chain: arg})
			}
			return r // what follows are the target's options
		default:
			i-- // whether it has an argument is unknown
			if strings.HasPrefix(option, "-") {
				add(obscure(option))
			}
		}
		not = false
	}
	return r
}

// goingOn are targets after which a packet goes on to the next rule. A chain could have
// such a name, but is unlikely to.
var goingOn = []string{"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TCPMSS", "TOS", "DSCP", "TTL", "CLASSIFY",
	"SET", "SECMARK", "CONNSECMARK", "CHECKSUM", "TRACE", "TEE", "AUDIT", "RATEEST", "LED", "TPROXY", "SYNPROXY", "ECN", "HL"}

var (
	protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP,
		"icmpv6": unix.IPPROTO_ICMPV6, "ipv6-icmp": unix.IPPROTO_ICMPV6, "sctp": unix.IPPROTO_SCTP}
	understood = []string{"tcp", "udp", "conntrack", "state", "comment", "multiport"}
	xtStates   = map[string]uint16{"INVALID": 1, "ESTABLISHED": 2, "RELATED": 4, "NEW": 8, "SNAT": xtStateSNAT, "DNAT": xtStateDNAT, "UNTRACKED": xtStateUntracked}
)

// obscure is a match whose meaning is not known.
func obscure(what string) expr.Any { return &expr.Match{Name: what, Info: &xt.Unknown{}} }

// portRange parses "80" and "80:90".
func portRange(s string) (lo, hi uint16) {
	first, last, isRange := strings.Cut(s, ":")
	number := func(s string, otherwise uint16) uint16 {
		if n, err := strconv.ParseUint(s, 10, 16); err == nil {
			return uint16(n)
		}
		return otherwise
	}
	if lo = number(first, 0); !isRange {
		return lo, lo
	}
	return lo, number(last, 65535)
}

// multiportMatch is xt_multiport_v1 of a list such as "80,443,8000:8100".
func multiportMatch(option, list string, inverted bool) expr.Any {
	info := make(xt.Unknown, multiportSize)
	info[0] = map[string]byte{"--sports": 0, "--dports": 1, "--ports": 2}[option]
	put := func(p uint16) {
		if n := int(info[1]); n < 15 {
			binary.NativeEndian.PutUint16(info[2+2*n:], p)
			info[1]++
		}
	}
	for s := range strings.SplitSeq(list, ",") {
		lo, hi := portRange(s)
		if put(lo); strings.Contains(s, ":") {
			info[32+int(info[1])-1] = 1
			put(hi)
		}
	}
	if inverted {
		info[multiportSize-1] = 1
	}
	return &expr.Match{Name: "multiport", Rev: 1, Info: &info}
}
