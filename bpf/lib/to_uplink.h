/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What leaves by an uplink (fbr_uplink_out, fbr_tun_out). */
#ifndef FBR_TO_UPLINK_H
#define FBR_TO_UPLINK_H

#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "config.h"
#include "device.h"
#include "icmp.h"
#include "instance.h"
#include "local.h"
#include "out.h"
#include "parse.h"
#include "plain.h"
#include "reason.h"
#include "scratch.h"
#include "stats.h"
#include "uplink.h"

/* Whether port_in has sent a packet here itself that is not translated: what the kernel
 * forwards comes from the bridge.
 */
static __always_inline bool fbr_port_sent(struct __sk_buff *skb, fbr_addr saddr)
{
	struct fbr_dev *port = fbr_dev_get(skb->ingress_ifindex);

	if (FBR_AF == 6 && skb->ingress_ifindex == skb->ifindex)
		return true; /* an answer of fbr_nd_proxy */
	return port && (port->flags & FBR_DEV_PLAIN) && fbr_port_has(port, FBR_ARG(saddr));
}

/* tcx egress, uplink: the only way out, and the only place where flows begin. */
static __always_inline int fbr_to_uplink(struct __sk_buff *skb, const __u32 l2)
{
	struct fbr_dev *u = fbr_dev_get(skb->ifindex), *blame;
	void *data, *data_end;
	struct fbr_conf *c;
	struct fbr_net *n;
	fbr_ip *ip;
	__u32 why;

	if (!u) {
		FBR_SCRATCH(fbr_pkt, pkt);

		/* The uplink is being detached. No packet of a container may slip through. */
		if (!pkt || skb->protocol != bpf_htons(FBR_ETH_P) || fbr_parse_at(skb, l2, pkt))
			return TCX_NEXT;
		n = fbr_net_get(pkt->saddr);
		return n && !(fbr_plain_to(n, FBR_ARG(pkt->daddr)) &&
			      fbr_net_leads(n, skb->ifindex))
			       ? TCX_DROP
			       : TCX_NEXT;
	}
	if (skb->protocol != bpf_htons(FBR_ETH_P)) {
		if (fbr_other_family(skb, u))
			return TCX_NEXT;
		goto pass;
	}
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	ip = data + l2;
	if ((void *)(ip + 1) > data_end)
		goto parse;

	/* A container's source is checked first: the mark only says that the rest has been
	 * done. Comparing with the uplink's own address spares most packets the trie
	 * lookup.
	 */
	if (cfg_mark && skb->mark == cfg_mark &&
	    (fbr_addr_eq(ip->saddr, fbr_dev_ip(u)) || fbr_port_sent(skb, ip->saddr))) {
		skb->mark = 0;
		fbr_count_tx(skb, u, FBR_FAST);
		return TCX_NEXT;
	}
parse:;
	FBR_SCRATCH(fbr_pkt, pkt);

	if (!pkt || fbr_parse_at(skb, l2, pkt))
		goto pass;
	n = fbr_addr_eq(pkt->saddr, fbr_dev_ip(u)) ? NULL
						   : fbr_net_hidden(skb, FBR_ARG(pkt->saddr));
	if (cfg_mark && skb->mark == cfg_mark && (!n || fbr_is_gateway(n, pkt->saddr))) {
		skb->mark = 0;
		fbr_count_tx(skb, u, FBR_FAST);
		return TCX_NEXT;
	}
	c = fbr_conf_get();
	why = FBR_NOT_OURS;
	/* Answers of published ports, with the address that the client has used. It may be the
	 * gateway's.
	 */
	if (c && c->published && (!n || !fbr_addr_port(FBR_ARG(pkt->saddr))))
		why = fbr_dnat_out(skb, pkt, u);
	if (n && why == FBR_NOT_OURS) {
		blame = u;
		why = fbr_container_out(skb, pkt, u, n, &blame);
		if (!why)
			goto pass;
		if (!blame)
			return fbr_drop(u, why);
		fbr_count_drop(blame, why);
		if ((why == FBR_NAT_FULL || why == FBR_QUOTA) && fbr_icmp_refuse(skb, pkt, blame))
			return bpf_redirect(blame->ifindex, 0);
		return TCX_DROP;
	}
	if (why == FBR_NOT_OURS)
		why = fbr_host_out(skb, pkt, u);
	if (why)
		return fbr_drop(u, why);
pass:
	fbr_count_tx(skb, u, FBR_SLOW);
	return TCX_NEXT;
}

#endif
