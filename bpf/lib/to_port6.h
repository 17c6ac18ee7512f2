/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel delivers to a port by IPv6 (fbr_port_out of the IPv6 programs). */
#ifndef FBR_TO_PORT6_H
#define FBR_TO_PORT6_H

#include "../include/bpf/bpf_endian.h"
#include "device.h"
#include "pair.h"
#include "parse.h"
#include "qdisc.h"
#include "reason.h"
#include "stats.h"

/* Why a packet that the kernel delivers must not reach the port, or FBR_NONE. */
static __always_inline __u32 fbr_deliver6(struct __sk_buff *skb, const struct fbr_dev *p)
{
	__u32 iif = skb->ingress_ifindex;
	struct fbr_dev *from = fbr_dev_get(iif);
	struct fbr_pkt pkt;

	if (!iif) /* all routes of a container lead through the bridge */
		return !fbr_parse(skb, &pkt) && pkt.proto == IPPROTO_ICMPV6 &&
				       pkt.icmp_type == ICMPV6_REDIRECT
			       ? FBR_UNSUPPORTED
			       : FBR_NONE;
	if (!from)
		return FBR_DIRECT;
	if (from->flags & FBR_DEV_UPLINK)
		return p->flags & FBR_DEV_INTERNAL ? FBR_ISOLATED : FBR_DIRECT;
	if (from->bridge != p->bridge)
		return FBR_ISOLATED;
	fbr_pair_grant(skb, from, p);
	return FBR_NONE;
}

static __always_inline int fbr_to_port6(struct __sk_buff *skb)
{
	struct fbr_dev *p = fbr_dev_get(skb->ifindex);
	__u32 why;

	if (!p)
		return TCX_DROP;
	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return TCX_NEXT; /* the IPv4 program's */
	why = fbr_deliver6(skb, p);
	if (why)
		return fbr_drop(p, why);
	fbr_choose_path(skb, p);
	fbr_count_tx(skb, p, FBR_SLOW);
	return TCX_NEXT;
}

#endif
