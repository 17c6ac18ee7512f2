package dns

import (
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/fastbr/fastbr/ctl"
)

// ttl of the answers, in seconds: a container may be replaced at any time.
const ttl = 5

// answer returns the reply to a question about the zone's own names, or nil if
// the question is about other names. A name below the network's own that does
// not exist is NXDOMAIN. A known name has no records but its addresses: no answer to a
// question for others means that there are none (RFC 4074).
func answer(z ctl.Zone, req *dns.Msg) *dns.Msg {
	if len(req.Question) != 1 || req.Question[0].Qclass != dns.ClassINET {
		return nil
	}
	q := req.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	reply := new(dns.Msg).SetReply(req)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if addr, ok := reverseAddr(name); ok {
		if !z.Subnet.Contains(addr) && !z.Subnet6.Contains(addr) {
			return nil
		}
		if host := hostAt(z, addr); host != "" {
			if q.Qtype == dns.TypePTR {
				reply.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: dns.Fqdn(host + "." + z.Network)}}
			}
			return reply
		}
		reply.Rcode = dns.RcodeNameError
		return reply
	}
	host, under := strings.CutSuffix(name, "."+z.Network)
	addr, ok := z.Hosts[host]
	if !ok {
		host = name // a name may itself contain dots
		addr, ok = z.Hosts[host]
	}
	switch {
	case ok && q.Qtype == dns.TypeA:
		reply.Answer = []dns.RR{&dns.A{Hdr: header(q.Name, dns.TypeA), A: net.IP(addr.AsSlice())}}
	case ok && q.Qtype == dns.TypeAAAA:
		if addr, ok := z.Hosts6[host]; ok {
			reply.Answer = []dns.RR{&dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: net.IP(addr.AsSlice())}}
		}
	case !ok && under:
		reply.Rcode = dns.RcodeNameError
	case !ok:
		return nil
	}
	return reply
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// hostAt returns the name of the container with that address, or "".
func hostAt(z ctl.Zone, addr netip.Addr) string {
	for _, hosts := range []map[string]netip.Addr{z.Hosts, z.Hosts6} {
		for host, a := range hosts {
			if a == addr {
				return host
			}
		}
	}
	return ""
}

// reverseAddr parses the address of a name in in-addr.arpa (RFC 1035 section 3.5) or
// ip6.arpa (RFC 3596 section 2.5).
func reverseAddr(name string) (netip.Addr, bool) {
	if nibbles, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		digits := strings.Split(nibbles, ".")
		slices.Reverse(digits)
		b, err := hex.DecodeString(strings.Join(digits, ""))
		if err != nil || len(digits) != 32 || len(b) != 16 {
			return netip.Addr{}, false
		}
		return netip.AddrFrom16([16]byte(b)), true
	}
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	labels := strings.Split(digits, ".")
	if len(labels) != 4 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return addr, err == nil
}
