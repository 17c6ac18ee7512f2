/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors. An error quotes the packet that it is about, as the sender of the error saw
 * it. The quote has to be translated like that packet, in the other direction, with its own
 * checksums and the error's (RFC 5508 REQ-4 and REQ-5). Errors never create, refresh or end
 * a session (RFC 5508 REQ-6, RFC 4787 REQ-12).
 */
#ifndef FBR_ICMP_H
#define FBR_ICMP_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
#include "device.h"
#include "dnat.h"
#include "flow.h"
#include "in.h"
#include "l2.h"
#include "local.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "plain.h"
#include "reason.h"
#include "refusal.h"
#include "rewrite.h"
#include "scratch.h"
#include "session.h"

/* Translates an ICMP error from outside. Returns FBR_NONE if it was about a session of ours
 * and is now the container's (or the neighbour's), or the kernel will make it so;
 * FBR_NOT_OURS if it is not, untouched; or the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_icmp_error_in(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p)
		return FBR_UNSUPPORTED;

	struct fbr_flow_key k = {};
	struct fbr_flow *f;
	FBR_SCRATCH(fbr_pkt, quoted);

	if (!quoted || fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), quoted))
		return FBR_NOT_OURS;
	if ((quoted->kind != FBR_L4_PORTS && quoted->kind != FBR_L4_ECHO_REQ) ||
	    !fbr_addr_eq(quoted->saddr, p->daddr) || fbr_addr_eq(quoted->saddr, quoted->daddr))
		return FBR_NOT_OURS;
	fbr_answer_key(&k, quoted);
	f = fbr_inbound_live(&k);
	if (!f)
		return FBR_NOT_OURS;
	if (!fbr_icmp_sound(skb, p, quoted))
		return FBR_BAD_CSUM;
	if (fbr_dnat(skb, &k, f, FBR_DNAT_GOES_ON))
		return FBR_NONE;
	/* Point of no return. */
	if (fbr_rewrite_quote(skb, p->l4, true, FBR_ARG(f->addr), f->port) ||
	    fbr_rewrite_outer(skb, p->l3, p->l4, false, p->daddr, f->addr))
		return FBR_UNSUPPORTED;
	return FBR_NONE;
}

/* Translates an ICMP error on its way out, made by a container or by the host: its quote
 * must not carry a container's address. The stack's port unreachable about a port of the
 * NAT range that nobody here listens on is not sent (refusal.h). Returns FBR_NONE or the
 * reason to drop it.
 */
__fbr_global enum fbr_reason fbr_icmp_error_out(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p)
		return FBR_UNSUPPORTED;

	struct fbr_net *n, *outer = fbr_net_hidden(skb, FBR_ARG(p->saddr));
	struct fbr_flow_key k = {};
	struct fbr_flow *f;
	FBR_SCRATCH(fbr_pkt, quoted);

	if (!quoted || fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), quoted))
		return outer ? FBR_UNSUPPORTED : FBR_NONE;
	n = fbr_net_hidden(skb, FBR_ARG(quoted->daddr));
	if (n && !(n->flags & FBR_NET_INTERNAL)) {
		bool routed = (n->flags & FBR_NET_OWN) || fbr_plain_to(n, FBR_ARG(p->daddr));

		if (!fbr_net_leads(n, skb->ifindex))
			return FBR_NO_UPLINK;
		if (outer && !fbr_addr_eq(p->saddr, quoted->daddr))
			return routed ? FBR_NONE : FBR_SPOOF_IP; /* about somebody else's packet */
		fbr_answer_key(&k, quoted);
		f = fbr_flow_get(&k);
		if (!f || f->kind != FBR_OUT || !fbr_sess_lasts(f))
			return routed ? FBR_NONE : FBR_UNSUPPORTED; /* not to a published port */
		if (!fbr_icmp_sound(skb, p, quoted))
			return FBR_BAD_CSUM;
		/* Point of no return. */
		if (fbr_rewrite_quote(skb, p->l4, false, FBR_ARG(f->addr), f->port) ||
		    (outer && fbr_rewrite_outer(skb, p->l3, p->l4, true, p->saddr, f->addr)))
			return FBR_UNSUPPORTED;
		return FBR_NONE;
	}
	if (outer || n ||
	    (fbr_net_get(quoted->saddr) &&
	     !fbr_lies_beyond(skb, fbr_dev_get(skb->ifindex), FBR_ARG(quoted->saddr))))
		return FBR_UNSUPPORTED;
	fbr_key(&k, quoted);
	if (!skb->ingress_ifindex && p->icmp_type == FBR_ICMP_UNREACH &&
	    p->icmp_code == FBR_ICMP_NO_PORT && quoted->kind == FBR_L4_PORTS &&
	    fbr_nport_at(quoted->proto, quoted->dport) && fbr_passed_take(&k) &&
	    !fbr_port_known(skb, &k))
		return FBR_FOREIGN;
	return FBR_NONE;
}

_Static_assert(FBR_QUOTE_MAX % 4 == 0, "fbr_sum() wants words");

/* Limits ICMP errors about refused flows to ten a second for one container (RFC 1812
 * section 4.3.2.8).
 */
static __always_inline bool fbr_refuse_allowed(const struct fbr_dev *port)
{
	struct fbr_quota *q = fbr_quota_get(port->ifindex);
	__u64 now = fbr_now(), last;

	if (!q)
		return false;
	last = q->refused_at;
	return now - last >= cfg_hz / 10 &&
	       __sync_val_compare_and_swap(&q->refused_at, last, now) == last;
}

/* Turns a container's packet whose flow is refused into the answer to it: destination
 * unreachable, communication administratively prohibited, from the gateway (RFC 5508
 * REQ-8). Returns true if the packet is now that answer, to be sent to the port; false if
 * it is to be dropped.
 */
__fbr_global bool fbr_icmp_refuse(struct __sk_buff *skb, const struct fbr_pkt *p,
				  const struct fbr_dev *port)
{
	if (!p || !port)
		return false;

	struct fbr_dev *br = fbr_dev_get(port->bridge);
	__u32 len = p->l4 - p->l3 + 8;
	struct {
		struct ethhdr eth;
		fbr_ip ip;
		struct icmphdr icmp;
	} __attribute__((packed)) h = {};
	__u8 quote[FBR_QUOTE_MAX] = {};

	if (!br || len > sizeof(quote))
		return false;
	/* Else the compiler merges two checks into one, from which Linux 6.12 learns no bounds. */
	barrier_var(len);
	if (len < sizeof(fbr_ip) + 8 || !fbr_refuse_allowed(port))
		return false;
	if (bpf_skb_load_bytes(skb, p->l3, quote, len) || (!p->l3 && fbr_push_eth(skb)) ||
	    bpf_skb_change_tail(skb, sizeof(h) + len, 0))
		return false;
	__builtin_memcpy(h.eth.h_dest, port->mac, ETH_ALEN);
	__builtin_memcpy(h.eth.h_source, port->gw_mac, ETH_ALEN);
	h.eth.h_proto = bpf_htons(FBR_ETH_P);
	fbr_icmp_head(h.ip, fbr_dev_ip(br), p->saddr, sizeof(h.icmp) + len);
	h.icmp.type = FBR_ICMP_UNREACH;
	h.icmp.code = FBR_ICMP_FILTERED;
	/* The quote is zero beyond len, which adds nothing to the sum. */
	h.icmp.checksum =
		~fbr_sum(quote, sizeof(quote),
			 fbr_sum(&h.icmp, sizeof(h.icmp),
				 fbr_icmp_seed(fbr_dev_ip(br), p->saddr, sizeof(h.icmp) + len)));
	return !bpf_skb_store_bytes(skb, 0, &h, sizeof(h), 0) &&
	       !bpf_skb_store_bytes(skb, sizeof(h), quote, len, 0);
}

#endif
