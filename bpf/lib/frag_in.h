/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments from outside: the detour that puts them in order (frag.h), and the way back. */
#ifndef FBR_FRAG_IN_H
#define FBR_FRAG_IN_H

#include "../include/bpf/bpf_endian.h"
#include "config.h"
#include "csum.h"
#include "device.h"
#include "flow.h"
#include "frag.h"
#include "in.h"
#include "instance.h"
#include "l2.h"
#include "local.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "stats.h"

/* Sends an inbound fragment, come by uplink u, to the namespace that puts fragments in
 * order. Only a fragment that the host would deliver to itself goes there. The TTL is
 * restored later. A TTL of 1 would not survive the detour, and would reach no container
 * either. Returns whether the frame is now addressed to that namespace.
 */
__fbr_global bool fbr_frag_bounce(struct __sk_buff *skb, const struct fbr_pkt *p,
				  const struct fbr_dev *u, __u32 frags)
{
	if (!p || !u)
		return false;

	struct fbr_dev *d = fbr_dev_get(frags);
	__u32 *via = fbr_frag_via_get(p);
	__u8 ttl;

	if (!d || !via || (FBR_AF == 6 && !(d->flags & FBR_DEV_IP6)) ||
	    skb->pkt_type != PACKET_HOST ||
	    (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != FBR_ICMP &&
	     !fbr_is_ext(p->proto)) ||
	    bpf_skb_load_bytes(skb, p->l3 + offsetof(fbr_ip, ttl), &ttl, 1) || ttl <= 1 ||
	    !fbr_is_local(skb, u, FBR_ASK(u->ifindex, frags), FBR_ARG(p->daddr)))
		return false;
	*via = u->ifindex;
	return !(!p->l3 && fbr_push_eth(skb)) && !bpf_skb_store_bytes(skb, 0, d->mac, ETH_ALEN, 0);
}

/* Whether a fragment arrives at the uplink for the second time, from fbr_frag_in. */
static __always_inline bool fbr_frag_returned(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p->frag || !cfg_mark || skb->mark != cfg_mark)
		return false;
	skb->mark = 0;
	/* The frame is still addressed to the other namespace. */
	bpf_skb_change_type(skb, PACKET_HOST);
	return true;
}

/* Enters the datagram of a first fragment from outside that fbr_unsnat() has just
 * translated under k. p is as it was before.
 */
__fbr_global enum fbr_reason fbr_frag_first_in(struct __sk_buff *skb, const struct fbr_pkt *p,
					       const struct fbr_flow_key *k)
{
	if (!p || !k)
		return FBR_UNSUPPORTED;

	struct fbr_frag_key fk = fbr_frag_key_of(p, true);
	struct fbr_flow *f = fbr_flow_get(k);
	struct fbr_frag v = { .id = p->id };

	if (!f || bpf_skb_load_bytes(skb, fbr_addr_at(p->l3, false), &v.addr, sizeof(v.addr)))
		return FBR_UNSUPPORTED;
	if (fbr_addr_eq(v.addr, p->daddr))
		return FBR_NONE; /* the host's own: the other fragments need no translation */
	v.pif = fbr_flow_port(f);
	return fbr_frag_track(&fk, &v) ? FBR_NONE : FBR_FRAGMENT;
}

/* Translates a fragment from outside if it belongs to a flow or may begin one. Returns
 * FBR_NONE, FBR_NOT_OURS (the host's, untouched), or the reason to drop it.
 */
static __always_inline enum fbr_reason
fbr_frag_unsnat(struct __sk_buff *skb, const struct fbr_pkt *p, const struct fbr_dev *u)
{
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_flow_key k;
	enum fbr_reason why;

	if (p->frag & FBR_FRAG_LATER)
		return fbr_frag_later(skb, p, true);
	if (!c || (p->kind != FBR_L4_PORTS && p->kind != FBR_L4_ECHO_REP) ||
	    !(fbr_in_range(c, p->dport) || c->published) || fbr_addr_eq(p->saddr, p->daddr))
		return FBR_NOT_OURS;
	fbr_key(&k, p);
	why = fbr_unsnat_first(skb, p, u, &k);
	return why ? why : fbr_frag_first_in(skb, p, &k);
}

/* Handles a packet that comes back from the other namespace. Returns the verdict. */
static __always_inline int fbr_frag_return(struct __sk_buff *skb)
{
	FBR_SCRATCH(fbr_pkt, pkt);
	struct fbr_dev *u;
	__u32 *via, why;

	if (FBR_AF == 4 && skb->protocol == bpf_htons(ETH_P_IPV6))
		return TCX_NEXT; /* to the IPv6 program; without one, the device has no IPv6 */
	if (skb->protocol != bpf_htons(FBR_ETH_P) || !pkt || fbr_parse(skb, pkt) || !pkt->frag)
		return TCX_DROP; /* made by that namespace itself */
	via = fbr_frag_via_get(pkt);
	u = via ? fbr_dev_get(*via) : NULL;
	/* The other namespace has lowered the TTL. */
	if (!u || !(u->flags & FBR_DEV_UPLINK) || fbr_raise_hop(skb, ETH_HLEN))
		return TCX_DROP;
	why = fbr_frag_unsnat(skb, pkt, u);
	if (why && why != FBR_NOT_OURS) {
		fbr_count_drop(u, why);
		return TCX_DROP;
	}
	skb->mark = cfg_mark;
	return bpf_redirect(u->ifindex, BPF_F_INGRESS);
}

#endif
