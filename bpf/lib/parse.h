/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Parsing for the kernel's path. It copies, so it does not matter how much of the packet is
 * linear. The fast path reads packets in place (fast.h).
 */
#ifndef FBR_PARSE_H
#define FBR_PARSE_H

#include "../include/bpf/bpf_endian.h"
#include "nat.h"
#include "packet.h"
#include FBR_AF_IP

/* Parses the IP header at off. Returns 0, or -1 if there is none. A packet without usable
 * ports is of kind FBR_L4_NONE.
 */
__fbr_global6 int fbr_parse_at(struct __sk_buff *skb, __u32 off, struct fbr_pkt *p)
{
	fbr_ip ip;

	if (!p)
		return -1;
	__builtin_memset(p, 0, sizeof(*p));
	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
		return -1;
	if (!fbr_ip_valid(&ip))
		return -1;
	p->saddr = ip.saddr;
	p->daddr = ip.daddr;
	p->proto = ip.protocol;
	p->l3 = off;
	p->l4 = off + fbr_ip_len(&ip);
	if (fbr_ip_pieces(skb, &ip, p))
		return 0;

	if (ip.protocol == IPPROTO_TCP || ip.protocol == IPPROTO_UDP) {
		struct l4ports ports;

		if (bpf_skb_load_bytes(skb, p->l4, &ports, sizeof(ports)))
			return 0;
		p->sport = ports.sport;
		p->dport = ports.dport;
		if (ip.protocol == IPPROTO_TCP &&
		    bpf_skb_load_bytes(skb, p->l4 + offsetof(struct tcphdr, flags), &p->tcp_flags,
				       1))
			p->tcp_flags = 0; /* an ICMP error may quote only 8 bytes */
		p->kind = FBR_L4_PORTS;
	} else if (ip.protocol == FBR_ICMP) {
		struct icmphdr icmp;

		if (bpf_skb_load_bytes(skb, p->l4, &icmp, sizeof(icmp)))
			return 0;
		p->icmp_type = icmp.type;
		p->icmp_code = icmp.code;
		switch (icmp.type) {
		case FBR_ICMP_ECHO:
			p->kind = FBR_L4_ECHO_REQ;
			p->sport = icmp.id;
			break;
		case FBR_ICMP_ECHOREPLY:
			p->kind = FBR_L4_ECHO_REP;
			p->dport = icmp.id;
			break;
		default:
			if (fbr_icmp_is_error(icmp.type))
				p->kind = FBR_L4_ICMP_ERR;
		}
	}
	return 0;
}

/* The same for a frame with an Ethernet header. */
static __always_inline int fbr_parse(struct __sk_buff *skb, struct fbr_pkt *p)
{
	return fbr_parse_at(skb, ETH_HLEN, p);
}

/* Whether a packet is the second of a TCP handshake. */
static __always_inline bool fbr_syn_ack(const struct fbr_pkt *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

static __always_inline void fbr_key_fill(struct fbr_flow_key *k, fbr_addr saddr, fbr_addr daddr,
					 __be16 sport, __be16 dport, __u8 proto)
{
	__builtin_memset(k, 0, sizeof(*k));
	k->saddr = saddr;
	k->daddr = daddr;
	k->sport = sport;
	k->dport = dport;
	k->proto = proto;
}

/* The key of a packet itself. */
__fbr_global6 int fbr_key(struct fbr_flow_key *k, const struct fbr_pkt *p)
{
	if (k && p)
		fbr_key_fill(k, p->saddr, p->daddr, p->sport, p->dport, p->proto);
	return 0;
}

/* The key of an answer to the packet. */
__fbr_global6 int fbr_answer_key(struct fbr_flow_key *k, const struct fbr_pkt *p)
{
	if (k && p)
		fbr_key_fill(k, p->daddr, p->saddr, p->dport, p->sport, p->proto);
	return 0;
}

/* The key of a session's inbound entry. */
static __always_inline void fbr_reverse_key(struct fbr_flow_key *k, const struct fbr_flow_key *fwd,
					    fbr_addr ext, __be16 eport)
{
	fbr_key_fill(k, fwd->daddr, ext, fwd->dport, eport, fwd->proto);
}

#endif
