/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a port sends (fbr_port_in). */
#ifndef FBR_FROM_PORT_H
#define FBR_FROM_PORT_H

#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "arp.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
#include "ct.h"
#include "device.h"
#include "fast.h"
#include "flow.h"
#include "hairpin.h"
#include "instance.h"
#include "lease.h"
#include "nat.h"
#include "pair.h"
#include "port.h"
#include "publish.h"
#include "qdisc.h"
#include "reason.h"
#include "rewrite.h"
#include "stats.h"
#include "stranded.h"
#include "way.h"

/* Whether a packet that is neither a hit nor for another port may go to the kernel. The
 * packet's destination decides, whatever the frame says: the kernel also takes packets from
 * frames to a group or to the port's own host end. Returns FBR_NONE or the reason to drop
 * it.
 */
__fbr_global enum fbr_reason fbr_route_allowed(const struct fbr_dev *p, fbr_addr_arg arg)
{
	if (!p || !FBR_GIVEN(arg))
		return FBR_ISOLATED;

	fbr_addr daddr = FBR_ADDR(arg);
	struct fbr_net *n = fbr_net_get(daddr);

	if (n)
		return n->bridge == p->bridge ? FBR_NONE : FBR_ISOLATED;
	if (!(p->flags & FBR_DEV_INTERNAL))
		return FBR_NONE;
	return fbr_multicast(daddr) || fbr_broadcast(daddr) ? FBR_NONE : FBR_ISOLATED;
}

/* Whether a container's packet is for a published SCTP port at the gateway of another network,
 * as at any address of the host. The kernel leads it to the container.
 */
__fbr_global bool fbr_sctp_elsewhere(struct __sk_buff *skb)
{
	struct l4ports ports;
	struct fbr_net *n;
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.protocol != IPPROTO_SCTP ||
	    (ip.frag_off & bpf_htons(IP_OFFMASK)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + ip.ihl * 4, &ports, sizeof(ports)))
		return false;
	n = fbr_net_get(ip.daddr);
	return n && !(n->flags & FBR_NET_INTERNAL) && fbr_is_gateway(n, ip.daddr) &&
	       fbr_pub_get(ip.daddr, ports.dport, IPPROTO_SCTP);
}

static __always_inline int fbr_from_port(struct __sk_buff *skb)
{
	struct fbr_dev *p = fbr_dev_get(skb->ifindex);
	struct fbr_conf *c = fbr_conf_get();
	void *data, *data_end;
	struct fbr_flow_key k;
	struct ethhdr *eth;
	enum fbr_pending sum;
	struct fbr_flow *f;
	struct iphdr *ip;
	__u32 why, l4_len;
	__u64 now;

	if (!p || !c)
		return TCX_DROP; /* being detached */
	fbr_pull_headers(skb, ETH_HLEN);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	eth = data;
	if ((void *)(eth + 1) > data_end)
		return TCX_DROP;

	/* Anti-spoofing comes before everything else. */
	if (!fbr_port_has_mac(p, eth->h_source)) {
		why = FBR_SPOOF_MAC;
		goto drop;
	}
	if (skb->vlan_present) {
		why = FBR_L2_PROTO;
		goto drop;
	}
	if (eth->h_proto != bpf_htons(ETH_P_IP)) {
		if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (p->flags & FBR_DEV_IP6))
			return TCX_NEXT; /* the IPv6 program is next: it checks and counts */
		why = eth->h_proto == bpf_htons(ETH_P_ARP) ? fbr_check_arp(skb, p) : FBR_L2_PROTO;
		if (why)
			goto drop;
		if (eth->h_proto == bpf_htons(ETH_P_ARP) && c->lease && !fbr_choose_path(skb, p) &&
		    fbr_answer_arp(skb, p))
			return fbr_send_beside(skb, p, p);
		goto kernel;
	}
	ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > data_end) {
		why = FBR_L2_PROTO;
		goto drop;
	}
	if (!fbr_port_has(p, ip->saddr)) {
		why = FBR_SPOOF_IP;
		goto drop;
	}

	sum = fbr_sum_pending(skb, ETH_HLEN + ip->ihl * 4, ip->protocol);
	if (sum && (sum == FBR_SUM_BAD || (ip->frag_off & bpf_htons(IP_MF | IP_OFFMASK)))) {
		why = FBR_BAD_CSUM;
		goto drop;
	}

	if (!fbr_mac_equal(eth->h_dest, p->gw_mac)) {
		fbr_addr daddr = ip->daddr;
		struct fbr_dev *t = fbr_pair_hit(p, c, eth->h_dest);

		if (t && fbr_beside(p, t, daddr))
			return fbr_send_beside(skb, p, t);
		t = eth->h_dest[0] & 1 ? NULL : fbr_mac_port(eth->h_dest, p->bridge);
		if (t && t != p && fbr_beside(p, t, daddr)) {
			if (!fbr_beside_hit(skb, p, t))
				goto kernel;
			return fbr_send_beside(skb, p, t);
		}
		why = fbr_route_allowed(p, daddr);
		if (why)
			goto drop;
		goto kernel;
	}

	l4_len = fbr_fast_parse(skb, skb->len, data, data_end, ETH_HLEN, true, &k);
	if (l4_len) {
		f = fbr_flow_hit(&k);
		now = fbr_now();
		if (f && f->kind == FBR_OUT && f->iif == p->ifindex && fbr_lease_valid(f, c, now) &&
		    !(p->flags & FBR_DEV_KERNEL_ROUTED) && sum <= FBR_SUM_OWN &&
		    fbr_fits(skb, ETH_HLEN, k.proto, l4_len, f->mtu)) {
			__u32 oif = f->oif;

			fbr_count_rx(skb, p, FBR_FAST);
			fbr_flow_seen(f, now, cfg_hz);
			/* Point of no return. */
			if (fbr_rewrite_fast(skb, f, &k, true))
				return TCX_DROP;
			skb->mark = cfg_mark;
			return bpf_redirect(oif, 0);
		}
		if (!f && (p->flags & FBR_DEV_PLAIN) && !(p->flags & FBR_DEV_KERNEL_ROUTED) &&
		    sum <= FBR_SUM_OWN) {
			__u32 oif = fbr_way_out(skb, p, &k, l4_len);

			if (oif) {
				skb->mark = cfg_mark;
				return bpf_redirect(oif, 0);
			}
		}
	}
	if (!(p->flags & FBR_DEV_INTERNAL)) {
		fbr_addr daddr = ip->daddr; /* ip is invalid after the call */

		why = fbr_hairpin(skb, p);
		if (why == FBR_NOT_OURS)
			why = fbr_route_allowed(p, daddr);
		if (why == FBR_ISOLATED && (fbr_ct_answers(skb) || fbr_sctp_elsewhere(skb)))
			why = FBR_NONE;
	} else {
		why = fbr_route_allowed(p, ip->daddr);
	}
	if (why)
		goto drop;
kernel:
	return fbr_port_kernel(skb, p);
drop:
	fbr_count_rx(skb, p, FBR_SLOW);
	return fbr_drop(p, why);
}

#endif
