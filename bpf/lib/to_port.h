/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel delivers to a port (fbr_port_out). */
#ifndef FBR_TO_PORT_H
#define FBR_TO_PORT_H

#include "../include/bpf/bpf_endian.h"
#include "ct.h"
#include "device.h"
#include "dnat.h"
#include "hair.h"
#include "hairpin_deliver.h"
#include "in.h"
#include "kctx.h"
#include "pair.h"
#include "parse.h"
#include "plain.h"
#include "publish.h"
#include "qdisc.h"
#include "reason.h"
#include "stats.h"

/* Whether a rule of the host directs a packet from another network to this port. An
 * internal network does not get it.
 */
static __always_inline bool fbr_led_in(struct __sk_buff *skb, const struct fbr_dev *p)
{
	return !(p->flags & FBR_DEV_INTERNAL) && fbr_ct_led(bpf_cast_to_kern_ctx(skb));
}

/* Whether a packet without a session may reach a container of a network with FBR_NET_OWN:
 * ICMP, an answer as connection tracking knows it, or what comes to a published port.
 */
__fbr_global bool fbr_own_admits(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	struct fbr_net *n = p ? fbr_net_get(p->daddr) : NULL;
	struct fbr_pub *pub;

	if (!n || !(n->flags & FBR_NET_OWN))
		return false;
	if (p->proto == FBR_ICMP || (p->frag & FBR_FRAG_LATER) ||
	    fbr_ct_goes_on(bpf_cast_to_kern_ctx(skb)))
		return true;
	pub = p->kind == FBR_L4_PORTS ? fbr_pub_get(p->daddr, p->dport, p->proto) : NULL;
	/* What is published for any address of the host is another container's. */
	return pub && fbr_addr_eq(pub->ip, p->daddr) && fbr_pub_allows(pub, p->saddr);
}

/* Whether a packet from another device of the host may reach a port. */
static __always_inline bool fbr_other_in(struct __sk_buff *skb, const struct fbr_dev *p)
{
	struct fbr_pkt pkt;

	if (p->flags & FBR_IP_ROUTED)
		return true;
	if ((p->flags & FBR_DEV_PLAIN) && skb->protocol == bpf_htons(FBR_ETH_P) &&
	    !fbr_parse(skb, &pkt) && (fbr_plain_in(skb, &pkt) || fbr_own_admits(skb, &pkt)))
		return true;
	return fbr_led_in(skb, p) ||
	       (!(p->flags & FBR_DEV_INTERNAL) && fbr_ct_returns(bpf_cast_to_kern_ctx(skb)));
}

/* Why a packet that the kernel delivers must not reach the port, or FBR_NONE. */
static __always_inline __u32 fbr_deliver(struct __sk_buff *skb, const struct fbr_dev *p)
{
	__u32 iif = skb->ingress_ifindex, why = FBR_NOT_OURS;
	struct fbr_dev *from = fbr_dev_get(iif);
	struct fbr_pkt pkt;

	if (iif && (!from || (from->flags & FBR_DEV_UPLINK)) && !fbr_dev_leads(p, iif))
		return FBR_DIRECT;
	if (iif && !from)
		return fbr_other_in(skb, p) ? FBR_NONE : FBR_DIRECT;
	if (from && !(from->flags & FBR_DEV_UPLINK)) {
		if ((from->flags & FBR_DEV_BRIDGE) && fbr_hair_tagged(skb->hash))
			why = fbr_hairpin_deliver(skb);
		if (why != FBR_NOT_OURS)
			return why;
		if (from->bridge != p->bridge)
			return fbr_led_in(skb, p) ? FBR_NONE : FBR_ISOLATED;
		fbr_pair_grant(skb, from, p);
		return FBR_NONE;
	}

	/* From an uplink, or the host itself. */
	if (from && (p->flags & FBR_DEV_INTERNAL))
		return FBR_ISOLATED;
	if (skb->protocol != bpf_htons(FBR_ETH_P) || fbr_parse(skb, &pkt))
		return FBR_NONE;
	if (pkt.proto == FBR_ICMP && pkt.icmp_type == FBR_ICMP_REDIRECT)
		return FBR_UNSUPPORTED; /* all routes of a container lead through the bridge */
	if (!from) {
		why = fbr_hairpin_from_host(skb, &pkt);
		return why == FBR_NOT_OURS ? FBR_NONE : why;
	}
	/* fbr_uplink_in has let this packet in, or the packet has bypassed it, so it is
	 * judged again. A later fragment is useless without its first, which the kernel has
	 * reassembled in order and delivered just before.
	 */
	if (fbr_lease_inbound(skb, &pkt, p))
		return FBR_NONE;
	if ((p->flags & FBR_DEV_PLAIN) && fbr_plain_in(skb, &pkt)) {
		if (!(p->flags & FBR_DEV_KERNEL_ROUTED) && !(from->flags & FBR_DEV_QUEUES))
			fbr_way_passed(skb, &pkt, FBR_WAY_IN, iif, p->mtu);
		return FBR_NONE;
	}
	if ((pkt.frag & FBR_FRAG_LATER) || fbr_multicast(pkt.daddr) ||
	    ((p->flags & FBR_DEV_PLAIN) && fbr_own_admits(skb, &pkt)))
		return FBR_NONE;
	/* What fbr_dnat has entered outlives the session, not the publication. */
	return fbr_ct_translates(skb) && !fbr_dnat_entered(bpf_cast_to_kern_ctx(skb)) ? FBR_NONE
										      : FBR_DIRECT;
}

static __always_inline int fbr_to_port(struct __sk_buff *skb)
{
	struct fbr_dev *p = fbr_dev_get(skb->ifindex);
	__u32 why;

	if (!p)
		return TCX_DROP;
	if (FBR_AF == 4 && skb->protocol == bpf_htons(ETH_P_IPV6))
		return p->flags & FBR_DEV_IP6 ? TCX_NEXT : fbr_drop(p, FBR_L2_PROTO);
	if (FBR_AF == 6 && skb->protocol != bpf_htons(ETH_P_IPV6))
		return TCX_NEXT; /* the IPv4 program's */
	why = fbr_deliver(skb, p);
	if (why)
		return fbr_drop(p, why);
	fbr_choose_path(skb, p);
	fbr_count_tx(skb, p, FBR_SLOW);
	return TCX_NEXT;
}

#endif
