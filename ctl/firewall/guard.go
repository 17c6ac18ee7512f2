package firewall

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// natPriority is the priority of the kernel's DNAT (NF_IP_PRI_NAT_DST). Behind a kernel
// bridge, rules before it see the packet as the client has sent it. Here they see the
// packet that fastbr has translated.
const natPriority = -100

// worlds are two views of one packet to a published port, as a rule sees it. kernel is
// the view behind a kernel bridge that publishes by DNAT. ours is the view behind
// fastbr, which translates before every rule.
type worlds struct{ kernel, ours packet }

// never is a value that no rule asks for.
var never = known(0, 0)

// anyPublished is a packet to any port of a network, whether or not it is published.
func anyPublished(n Network, by Device, early bool) worlds {
	k := anything()
	k.in, k.state, k.status = by, native(expr.CtStateBitNEW), translation(0)
	o := k
	o.origDstPort, o.origDst = never, prefix(n.Subnet)
	if !early {
		k.status = translation(statusDNAT)
		k.out, k.dst, k.dstType = n.Bridge, prefix(n.Subnet), native(unix.RTN_UNICAST)
		o.out, o.dst, o.dstType = k.out, k.dst, k.dstType
	}
	return worlds{k, o}
}

// toPublished is a packet to a published port. host is the host port.
func toPublished(pub Publication, by Device, host uint16, early bool) worlds {
	pub.Port, pub.First, pub.Last = pub.Port+host-pub.First, host, host
	o := asks(pub, by)
	o.dstType = native(unix.RTN_UNICAST)
	k := o
	asked := pub.HostIP
	if !asked.IsValid() {
		asked = by.Addr
	}
	k.origDst, k.origDstPort, k.status = address(asked), port(host), translation(statusDNAT)
	if early {
		k.dst, k.dport, k.dstType, k.status = k.origDst, k.origDstPort, native(unix.RTN_LOCAL), translation(0)
		k.out, o.out = Device{}, Device{}
	}
	return worlds{k, o}
}

// guard is a rule that stops packets to published ports behind a kernel bridge, but
// does not match them here.
type guard struct {
	at        place
	early     bool
	network   Network
	published []Publication // the publications that it is about now
}

// unmet names the rules that guard published ports by conditions that never match here,
// and says what to write instead.
func (rs *ruleset) unmet(h Host) (out []Finding) {
	var found []guard
	for _, hk := range filters {
		for _, c := range rs.base(hk, false) {
			if c.ofFirewalld() {
				continue // it knows by itself what has been translated
			}
			for _, n := range h.Networks {
				if !n.Masquerade || n.Internal {
					continue
				}
				s := search{rs: rs, h: h, n: n, early: hk == prerouting && c.priority < natPriority}
				s.chain(c, jumpsDeep)
				for _, g := range s.found {
					if !slices.ContainsFunc(found, func(x guard) bool { return x.at == g.at }) {
						found = append(found, g)
					}
				}
			}
		}
	}
	for _, g := range found {
		out = append(out, Finding{"unmet-rule", true, fmt.Sprintf(
			"%s does not match what comes to published ports, which fastbr translates before connection tracking: %s", g.at, g.remedy())})
	}
	return out
}

// search looks for guards in the chains that packets to a network's ports pass through.
type search struct {
	rs    *ruleset
	h     Host
	n     Network
	early bool
	found []guard
}

func (s *search) chain(c *chain, deep int) {
	if c == nil || deep == 0 {
		return
	}
	for i, r := range s.rs.load(c) {
		if isOurs(r.comment) {
			continue
		}
		var does []outcome
		sees, asks := false, false // it matches a packet as it is here; it misses one
		for _, by := range s.h.ways() {
			w := anyPublished(s.n, by, s.early)
			match, out := s.rs.run(c, r, w.kernel)
			if match == no {
				continue
			}
			does = out
			ours, _ := s.rs.run(c, r, w.ours)
			sees, asks = sees || ours != no, asks || ours == no
		}
		guards := slices.ContainsFunc(does, func(o outcome) bool { return o.do != goOn && o.do != accept })
		if !guards {
			continue
		}
		pubs := s.about(c, r)
		if asks && !sees || len(pubs) > 0 {
			s.found = append(s.found, guard{place{c, i}, s.early, s.n, pubs})
			continue
		}
		for _, o := range does {
			if o.do == jump || o.do == goTo {
				s.chain(s.rs.chains[c.table][o.chain], deep-1)
			}
		}
	}
}

// about are the publications of the network that a rule matches behind a kernel bridge,
// and does not match here.
func (s *search) about(c *chain, r rule) (out []Publication) {
	if !asksForNAT(r, s.early) {
		return nil
	}
	for _, pub := range s.h.Published {
		if pub.Bridge == s.n.Bridge && slices.ContainsFunc(s.h.ways(), func(by Device) bool { return s.misses(c, r, pub, by) }) {
			out = append(out, pub)
		}
	}
	return out
}

func (s *search) misses(c *chain, r rule, pub Publication, by Device) bool {
	for host := int(pub.First); host <= int(pub.Last); host++ {
		w := toPublished(pub, by, uint16(host), s.early)
		kernel, _ := s.rs.run(c, r, w.kernel)
		ours, _ := s.rs.run(c, r, w.ours)
		if kernel != no && ours == no {
			return true
		}
	}
	return false
}

// asksForNAT tells whether a rule has a condition on something that NAT changes. Only
// such a rule need be tried with every port.
func asksForNAT(r rule, early bool) bool {
	return slices.ContainsFunc(r.exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Ct:
			return e.Key != expr.CtKeySTATE && e.Key != expr.CtKeyMARK
		case *expr.Match:
			return e.Name == "conntrack" || e.Name == "state" || early && e.Name != "comment"
		case *expr.Payload, *expr.Fib:
			return early
		}
		return false
	})
}

// remedy says what to write instead of the rule.
func (g guard) remedy() string {
	c, text := g.at.chain, g.at.text()
	about := ""
	if len(g.published) > 0 {
		about = fmt.Sprintf(", for port %s", g.published[0])
	}
	if n := len(g.published); n > 1 {
		about += fmt.Sprintf(" and likewise for %d more", n-1)
	}
	if c.ofIPTables() {
		command := iptablesOf(c.table).String()
		if c.table.name != "filter" {
			command += " -t " + c.table.name
		}
		return fmt.Sprintf("write instead%s: %s -I %s %d %s", about, command, c.name, g.at.at+1, g.iptables(words(text)))
	}
	return fmt.Sprintf("write instead%s: nft insert rule %s %s %s handle %d %s", about, c.table.family, c.table.name, c.name,
		c.rules[g.at.at].handle, g.nft(text))
}

// target is the container's address, port and protocol. Where nothing is published they
// are placeholders for the user to fill in.
func (g guard) target() (addr, port, proto string) {
	if len(g.published) == 0 {
		return "CONTAINER", "PORT", "tcp"
	}
	p := g.published[0]
	return p.Container.String(), strconv.Itoa(int(p.Port)), p.Proto
}

// iptables rewrites the rule with conditions on the container's own address and port.
func (g guard) iptables(w []string) string {
	addr, cport, proto := g.target()
	var keep, end []string
	needPort, hasProto := len(g.published) > 0 || slices.Contains(w, "--ctorigdstport"), slices.Contains(w, "-p")
	if at := slices.IndexFunc(w, func(s string) bool { return s == "-j" || s == "-g" }); at >= 0 {
		w, end = w[:at], w[at:]
	}
	for i := 0; i < len(w); i++ {
		not := ""
		if w[i] == "!" && i+1 < len(w) {
			not = "! "
			i++
		}
		arg := ""
		if i+1 < len(w) {
			arg = w[i+1]
		}
		switch option := w[i]; {
		case slices.Contains([]string{"--ctorigdstport", "--ctorigdst", "--ctstatus"}, option),
			needPort && slices.Contains([]string{"-d", "--dport", "--dports", "--dst-type"}, option),
			option == "-m" && slices.Contains([]string{"conntrack", "state", "tcp", "udp", "multiport", "addrtype"}, arg):
			i++
		case strings.HasPrefix(option, "--ct") && option != "--ctstate":
			keep = append(keep, "-m conntrack "+not+option+" "+arg)
			i++
		case option == "--ctstate" || option == "--state":
			i++
			states := slices.DeleteFunc(strings.Split(arg, ","), func(s string) bool { return s == "DNAT" })
			if len(states) > 0 {
				keep = append(keep, "-m conntrack "+not+"--ctstate "+strings.Join(states, ","))
			}
		default:
			word := option
			if strings.ContainsAny(word, " \t") {
				word = strconv.Quote(word)
			}
			keep = append(keep, not+word)
		}
	}
	if needPort {
		if !hasProto {
			keep = append(keep, "-p "+proto)
		}
		keep = append(keep, "-d "+addr, "--dport "+cport)
	} else if !g.early && !slices.Contains(keep, "-o") {
		keep = append(keep, "-o "+g.network.Bridge.Name)
	}
	return strings.Join(append(keep, end...), " ")
}

// How nft writes conditions on what NAT changes, and the values in them.
var (
	nftValue   = `(?:!= )?(?:\{[^}]*\}|\S+)`
	nftOrig    = regexp.MustCompile(`ct original (?:proto-dst|ip daddr|daddr) ` + nftValue + ` ?`)
	nftStatus  = regexp.MustCompile(`ct status ` + nftValue + ` ?`)
	nftEarly   = regexp.MustCompile(`(?:(?:tcp|udp|th) dport|ip daddr|fib daddr type) ` + nftValue + ` ?`)
	nftCounter = regexp.MustCompile(`counter packets \d+ bytes \d+`)
)

// nft rewrites the rule with conditions on the container's own address and port.
func (g guard) nft(text string) string {
	addr, cport, proto := g.target()
	needPort := len(g.published) > 0 || strings.Contains(text, "ct original proto-dst")
	text = nftStatus.ReplaceAllString(nftOrig.ReplaceAllString(text, ""), "")
	if g.early {
		text = nftEarly.ReplaceAllString(text, "")
	}
	text = nftCounter.ReplaceAllString(text, "counter")
	if needPort {
		return fmt.Sprintf("ip daddr %s %s dport %s %s", addr, proto, cport, text)
	}
	return fmt.Sprintf("oifname %q %s", g.network.Bridge.Name, text)
}
