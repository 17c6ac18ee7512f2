/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hairpinning (hairpin.h), second half: what the kernel delivers to a port. */
#ifndef FBR_HAIRPIN_DELIVER_H
#define FBR_HAIRPIN_DELIVER_H

#include "ct.h"
#include "extport.h"
#include "flow.h"
#include "hair.h"
#include "in.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "reason.h"
#include "refusal.h"
#include "rewrite.h"
#include "session.h"

/* Translates what the kernel delivers to a port from a bridge. Returns FBR_NOT_OURS if it
 * is no hairpinned packet, untouched; FBR_NONE if its source is now the host's address and
 * the sender's external port; otherwise the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_hairpin_deliver(struct __sk_buff *skb)
{
	struct fbr_session *s;
	struct fbr_pkt p;

	if (fbr_parse(skb, &p))
		return FBR_NOT_OURS;
	s = fbr_hair_session(skb->hash, p.saddr);
	if (!s)
		return FBR_NOT_OURS;
	if (p.frag & FBR_FRAG_LATER) {
		if (p.proto != s->fwd.proto)
			return FBR_NOT_OURS;
		/* Point of no return. */
		return fbr_rewrite_outer(skb, p.l3, 0, true, p.saddr, s->ext) ? FBR_UNSUPPORTED
									      : FBR_NONE;
	}
	if (p.kind == FBR_L4_ICMP_ERR)
		/* Point of no return. */
		return fbr_rewrite_quote(skb, p.l4, false, FBR_ARG(s->ext), s->eport) ||
				       fbr_rewrite_outer(skb, p.l3, p.l4, true, p.saddr, s->ext)
			       ? FBR_UNSUPPORTED
			       : FBR_NONE;
	if (p.kind != FBR_L4_PORTS || p.proto != s->fwd.proto || p.sport != s->fwd.sport)
		return FBR_NOT_OURS;

	struct fbr_flow_key inside;

	fbr_key(&inside, &p);
	fbr_ct_extend(skb, &inside, fbr_timeout(p.proto, s->fwd.dport, s->bits));
	/* Point of no return. */
	return fbr_rewrite(skb, p.l3, true, FBR_ARG(s->ext), s->eport) ? FBR_UNSUPPORTED : FBR_NONE;
}

/* Finds the packet, in, that a packet p of the host itself is about: the one that an ICMP
 * error quotes, or that a RST answers. False if p is neither.
 */
static __always_inline bool fbr_hair_subject(struct __sk_buff *skb, const struct fbr_pkt *p,
					     struct fbr_pkt *in)
{
	if (p->frag)
		return false;
	if (p->kind == FBR_L4_ICMP_ERR)
		return !fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), in) &&
		       in->kind == FBR_L4_PORTS && fbr_addr_eq(in->saddr, p->daddr);
	if (p->kind != FBR_L4_PORTS || !(p->tcp_flags & TCP_RST))
		return false;
	*in = (struct fbr_pkt){
		.saddr = p->daddr,
		.daddr = p->saddr,
		.sport = p->dport,
		.dport = p->sport,
		.proto = p->proto,
	};
	return true;
}

/* Whether p is the stack's own refusal of a packet, in, for another container's mapping.
 * The mapping may yet ask for that packet, so the refusal is dropped as at an uplink
 * (refusal.h).
 */
static __always_inline bool fbr_hairpin_refused(struct __sk_buff *skb, const struct fbr_pkt *p,
						const struct fbr_pkt *in)
{
	struct fbr_nport *np = fbr_nport_at(in->proto, in->dport);
	struct fbr_flow_key k;
	struct fbr_flow *f;

	if (!np)
		return false;
	if (p->kind == FBR_L4_ICMP_ERR
		    ? p->icmp_type != FBR_ICMP_UNREACH || p->icmp_code != FBR_ICMP_NO_PORT
		    : !fbr_answer_rst(skb, p))
		return false;
	fbr_key(&k, in);
	if (!fbr_passed_take(&k) || !np->refs || !np->pif || !fbr_addr_eq(np->ext, in->daddr))
		return false;
	f = fbr_flow_get(&k);
	return f && f->kind == FBR_OUT && fbr_addr_eq(f->addr, in->daddr) &&
	       !fbr_port_known(skb, &k);
}

/* Translates what the host itself sends to p->daddr, the sender of a hairpinned packet,
 * about that packet: an ICMP error, or a firewall's RST. Afterwards it is about the packet
 * as the sender knows it. Returns as fbr_hairpin_deliver().
 */
__fbr_global enum fbr_reason fbr_hairpin_from_host(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p)
		return FBR_NOT_OURS;

	struct fbr_session *s;
	struct fbr_flow_key k;
	struct fbr_flow *to;
	struct fbr_pkt in;
	__u32 *hint;

	if (!fbr_hair_subject(skb, p, &in))
		return FBR_NOT_OURS;
	if (fbr_hairpin_refused(skb, p, &in))
		return FBR_FILTERED;
	hint = fbr_hair_hint(&in, in.daddr, in.dport);
	s = hint ? fbr_hair_sender(*hint, in.saddr) : NULL;
	if (!s || s->fwd.sport != in.sport || s->fwd.proto != in.proto)
		return FBR_NOT_OURS;
	fbr_hair_key(&k, s->ext, s->eport, s->fwd.dport, in.proto);
	to = fbr_inbound_live(&k);
	if (!to || !fbr_addr_eq(to->addr, in.daddr) || to->port != in.dport)
		return FBR_NOT_OURS;
	/* Point of no return. */
	if (p->kind == FBR_L4_ICMP_ERR)
		return fbr_rewrite_quote(skb, p->l4, false, FBR_ARG(s->ext), s->fwd.dport)
			       ? FBR_UNSUPPORTED
			       : FBR_NONE;
	return fbr_rewrite(skb, p->l3, true, FBR_ARG(s->ext), s->fwd.dport) ? FBR_UNSUPPORTED
									    : FBR_NONE;
}

#endif
