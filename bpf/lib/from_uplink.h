/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What comes in by an uplink (fbr_uplink_in, fbr_tun_in). */
#ifndef FBR_FROM_UPLINK_H
#define FBR_FROM_UPLINK_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
#include "device.h"
#include "fast.h"
#include "frag_in.h"
#include "icmp.h"
#include "in.h"
#include "instance.h"
#include "l2.h"
#include "lease.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "qdisc.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "stats.h"
#include "uplink.h"
#include "way.h"

/* tcx ingress, uplink. l2 is the length of the device's L2 header in bytes: ETH_HLEN, or 0
 * where packets begin with the IP header (tun, WireGuard, ppp).
 */
static __always_inline int fbr_from_uplink(struct __sk_buff *skb, const __u32 l2)
{
	struct fbr_dev *u = fbr_dev_get(skb->ifindex), *t;
	struct fbr_conf *c = fbr_conf_get();
	void *data, *data_end;
	struct fbr_flow_key k;
	struct fbr_flow *f;
	__u32 why, l4_len;
	int done;
	__u64 now;

	if (!u || !c)
		return TCX_NEXT;
	if (l2 && skb->vlan_present) {
		why = fbr_untag(skb);
		if (why) {
			fbr_count_rx(skb, u, FBR_SLOW);
			return fbr_drop(u, why);
		}
		if (skb->vlan_present)
			goto host;
	}
	if (skb->protocol != bpf_htons(FBR_ETH_P)) {
		if (fbr_other_family(skb, u))
			return TCX_NEXT;
		goto host;
	}
	fbr_pull_headers(skb, l2);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;

	l4_len = skb->pkt_type == PACKET_HOST
			 ? fbr_fast_parse(skb, skb->len, data, data_end, l2, false, &k)
			 : 0;
	if (l4_len && (fbr_in_range(c, k.dport) || c->published)) {
		now = fbr_now();
		f = fbr_inbound_hit(&k, u, c, now, &t);
		if (f && fbr_fits(skb, l2, k.proto, l4_len, f->mtu) &&
		    fbr_sum_pending(skb, l2 + sizeof(fbr_ip), k.proto) <= FBR_SUM_OWN) {
			__u32 oif = f->oif;

			fbr_count_rx(skb, u, FBR_FAST);
			/* Point of no return. The container gets a frame with an Ethernet
			 * header.
			 */
			if (!l2 && fbr_push_eth(skb))
				return TCX_DROP;
			fbr_count_tx(skb, t, FBR_FAST);
			fbr_flow_seen(f, now, cfg_hz);
			if (fbr_rewrite_fast(skb, f, &k, false))
				return TCX_DROP;
			skb->mark = 0;
			return bpf_redirect_peer(oif, 0);
		}
	}
	if (l4_len && (u->flags & FBR_IP_WAYS)) {
		int oif = fbr_way_in(skb, u, &k, l4_len, l2);

		if (oif < 0)
			return TCX_DROP;
		if (oif) {
			skb->mark = 0;
			return bpf_redirect_peer(oif, 0);
		}
	}

	FBR_SCRATCH(fbr_pkt, pkt);

	/* A promiscuous device hears what is for others. ip_rcv() drops it. A fragment that
	 * comes back is still addressed to the other namespace.
	 */
	if (!pkt || (skb->pkt_type == PACKET_OTHERHOST && skb->mark != cfg_mark) ||
	    fbr_parse_at(skb, l2, pkt))
		goto host;
	done = l2 ? fbr_nd_proxy(skb, u, pkt) : 0;
	if (done) {
		fbr_count_rx(skb, u, FBR_SLOW);
		skb->mark = cfg_mark; /* fbr_to_uplink lets it pass */
		return done > 0 ? bpf_redirect(u->ifindex, 0) : TCX_DROP;
	}
	if (fbr_frag_returned(skb, pkt))
		return TCX_NEXT; /* counted when it first came */
	fbr_note_filters(skb, u);
	why = FBR_NOT_OURS;
	if (!pkt->frag && pkt->kind == FBR_L4_ICMP_ERR) {
		if (fbr_martian(skb, u, pkt->saddr, pkt->daddr))
			why = FBR_MARTIAN;
		else
			why = fbr_icmp_error_in(skb, pkt);
	} else if (!pkt->frag && (pkt->kind == FBR_L4_PORTS || pkt->kind == FBR_L4_ECHO_REP) &&
		   !fbr_link_affair(pkt) &&
		   !fbr_addr_eq(pkt->saddr,
				pkt->daddr) && /* hairpin sessions are not for outside */
		   (fbr_in_range(c, pkt->dport) || c->published)) {
		fbr_key(&k, pkt);
		why = fbr_unsnat_first(skb, pkt, u, &k);
	}
	if (why == FBR_NONE)
		goto host;
	if (why != FBR_NOT_OURS) { /* perhaps half translated */
		fbr_count_rx(skb, u, FBR_SLOW);
		return fbr_drop(u, why);
	}
	why = fbr_from_outside(skb, u, pkt);
	if (why) {
		fbr_count_rx(skb, u, FBR_SLOW);
		return fbr_drop(u, why);
	}
	if (pkt->frag && c->frags && fbr_frag_bounce(skb, pkt, u, c->frags)) {
		fbr_count_rx(skb, u, FBR_SLOW);
		return bpf_redirect(c->frags, 0);
	}
host:
	fbr_count_rx(skb, u, FBR_SLOW);
	return TCX_NEXT;
}

#endif
