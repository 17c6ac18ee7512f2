/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a port sends by IPv6 (fbr_port_in of the IPv6 programs). The IPv4 program stands before
 * this one. It has checked the frame's MAC address and that it is untagged, and has let it
 * go on here uncounted.
 */
#ifndef FBR_FROM_PORT6_H
#define FBR_FROM_PORT6_H

#include "../include/bpf/bpf_endian.h"
#include "addr6.h"
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
#include "nd.h"
#include "pair.h"
#include "qdisc.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "stats.h"
#include "stranded.h"
#include "way.h"

#define FBR_DHCP6_CLIENT 546 /* UDP ports */
#define FBR_DHCP6_SERVER 547

/* Whether a port may send from this source address. */
__fbr_global enum fbr_reason fbr_source_check(const struct fbr_dev *p, const struct fbr_seen *s)
{
	enum fbr_reason why;

	if (!p || !s)
		return FBR_SPOOF_IP;
	if (fbr_link_local(s->saddr)) {
		why = fbr_link_claim(p, &s->saddr);
		if (why)
			return why;
		/* Neighbours ask each other for global addresses, too. */
		return fbr_link_local(s->daddr) || fbr_link_group(s->daddr) || fbr_nd_type(s->type)
			       ? FBR_NONE
			       : FBR_ISOLATED;
	}
	if (!fbr_addr_zero(s->saddr))
		return fbr_may_have(p, &s->saddr);
	/* Who has no address yet: a probe (RFC 4862), a report (RFC 3590), a router solicitation */
	return !s->pieces && fbr_multicast(s->daddr) &&
			       (s->type == ICMPV6_NS || s->type == ICMPV6_RS ||
				s->type == ICMPV6_MLD_REPORT || s->type == ICMPV6_MLD_DONE ||
				s->type == ICMPV6_MLD2)
		       ? FBR_NONE
		       : FBR_SPOOF_IP;
}

/* Whether a UDP packet is one that only a DHCPv6 server or relay sends, or hides what it is. */
static __always_inline bool fbr_dhcp6_serves(struct __sk_buff *skb, const struct fbr_seen *s)
{
	struct l4ports ports;

	return s->l4 + sizeof(ports) > s->end ||
	       bpf_skb_load_bytes(skb, s->l4, &ports, sizeof(ports)) ||
	       ports.sport == bpf_htons(FBR_DHCP6_SERVER) ||
	       ports.dport == bpf_htons(FBR_DHCP6_CLIENT);
}

/* Follows the extension headers of s, whose l4 and proto are those of the first header behind
 * the IPv6 header. A first fragment must show the whole chain (RFC 7112). A later one ends
 * it: it is useless without its first. What stands in the frame behind the packet's end is
 * none of it. Returns FBR_NONE or the reason to drop the packet.
 */
__fbr_global enum fbr_reason fbr_chain_see(struct __sk_buff *skb, struct fbr_seen *s)
{
	struct fbr_chain c = {};

	if (!s || fbr_ext_walk(skb, s->l4, s->proto, &c))
		return FBR_L2_PROTO;
	/* Without a length: an option says it, or it is that of the frame (RFC 2675). */
	if (s->proto == IPPROTO_HOPOPTS && s->end == s->l4)
		s->end = skb->len;
	if (c.off > s->end)
		return FBR_L2_PROTO;
	s->l4 = c.off;
	s->proto = c.proto;
	s->frag = c.frag;
	s->pieces = c.pieces;
	if (s->frag & FBR_FRAG_LATER)
		return FBR_NONE;
	if (fbr_is_ext(s->proto))
		return FBR_L2_PROTO; /* too many */
	if (s->proto == IPPROTO_ICMPV6 &&
	    (s->l4 >= s->end || bpf_skb_load_bytes(skb, s->l4, &s->type, 1)))
		return FBR_SPOOF_IP; /* what it is cannot be seen */
	return FBR_NONE;
}

/* Reads the headers of the IPv6 frame of a port and judges it, wherever it goes. Returns
 * FBR_NONE, and s and eth are the headers; FBR_NOT_OURS if it is none; or the reason to drop it.
 */
static __always_inline enum fbr_reason fbr_check_ip6(struct __sk_buff *skb, const struct fbr_dev *p,
						     struct ethhdr *eth, struct fbr_seen *s)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	fbr_ip *ip = data + ETH_HLEN;
	enum fbr_reason why = FBR_NONE;
	enum fbr_pending sum;

	if (data + ETH_HLEN > data_end)
		return FBR_L2_PROTO;
	*eth = *(struct ethhdr *)data;
	if (eth->h_proto != bpf_htons(ETH_P_IPV6))
		return FBR_NOT_OURS;
	if ((void *)(ip + 1) > data_end || !fbr_ip_valid(ip))
		return FBR_L2_PROTO;
	s->saddr = ip->saddr;
	s->daddr = ip->daddr;
	s->proto = ip->protocol;
	s->hops = ip->ttl;
	s->l4 = ETH_HLEN + sizeof(*ip);
	s->end = s->l4 + bpf_ntohs(ip->payload_len);
	if (s->proto != IPPROTO_TCP && s->proto != IPPROTO_UDP)
		why = fbr_chain_see(skb, s);
	if (!why && (fbr_addr_zero(s->saddr) || !fbr_addr_eq(s->saddr, fbr_dev_ip(p))))
		why = fbr_source_check(p, s);
	if (why)
		return why;
	sum = fbr_sum_pending(skb, s->l4, s->proto);
	if (sum && (s->pieces || sum == FBR_SUM_BAD))
		return FBR_BAD_CSUM;
	if (s->frag & FBR_FRAG_LATER)
		return FBR_NONE;
	if (s->proto == IPPROTO_UDP && fbr_dhcp6_serves(skb, s))
		return FBR_SPOOF_IP;
	return s->proto == IPPROTO_ICMPV6 ? fbr_nd_check(skb, p, s) : FBR_NONE;
}

/* Whether the host would have to ask on the bridge who has an address of p's subnet. A
 * container could make it ask for all of them, until its neighbour table has no room for
 * anybody's (RFC 6583). Containers' own neighbours are permanent. The kernel tells only where
 * the host is a router. In a routed network it forwards in any case, and may ask for whatever
 * is no container's.
 */
static __always_inline bool fbr_host_asks(struct __sk_buff *skb, const struct fbr_dev *p,
					  fbr_addr addr)
{
	FBR_SCRATCH_ZERO(bpf_fib_lookup, fib);

	if (!fib || fbr_addr_port(FBR_ARG(addr)))
		return false;
	if (p->flags & FBR_IP_ROUTED)
		return true;
	fbr_fib_to(fib, p->bridge, addr);
	return bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_OUTPUT) ==
	       BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* Whether a packet that is not for another port may go to the kernel. The packet's
 * destination decides, whatever the frame says, except that a frame to a group must hold a
 * packet to a group. Returns FBR_NONE or the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_route6_allowed(struct __sk_buff *skb, const struct fbr_dev *p,
						const struct fbr_seen *s, bool group)
{
	struct fbr_net *n;

	if (!p || !s)
		return FBR_ISOLATED;
	if (fbr_multicast(s->daddr))
		return FBR_NONE;
	if (group)
		return FBR_ISOLATED;
	if (fbr_owner(p, &s->daddr) == p->bridge)
		return FBR_NONE;
	n = fbr_link_local(s->daddr) ? NULL : fbr_net_get(s->daddr);
	if (n && n->bridge == p->bridge)
		return fbr_host_asks(skb, p, s->daddr) ? FBR_ISOLATED : FBR_NONE;
	if (n || fbr_link_local(s->daddr) || (p->flags & FBR_DEV_INTERNAL))
		return FBR_ISOLATED;
	return FBR_NONE;
}

/* Whether a port may send a packet to another port t of its bridge. In an internal network
 * it must be addressed to that port's container.
 */
static __always_inline bool fbr_beside6(const struct fbr_dev *p, const struct fbr_dev *t,
					const struct fbr_seen *s)
{
	return t->bridge == p->bridge &&
	       (!(p->flags & FBR_DEV_INTERNAL) || fbr_link_local(s->daddr) ||
		fbr_multicast(s->daddr) || fbr_port_has(t, &s->daddr));
}

/* Sends p's packet out by the uplink, if its flow has a lease. Returns the uplink's ifindex; 0:
 * it has none, and the packet is untouched; -1: it is half changed.
 */
static __always_inline int fbr_fast_out(struct __sk_buff *skb, const struct fbr_dev *p,
					const struct fbr_conf *c)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct fbr_flow_key k;
	struct fbr_flow *f;
	__u32 l4_len, oif;
	__u64 now;

	if (p->flags & FBR_DEV_KERNEL_ROUTED)
		return 0;
	l4_len = fbr_fast_parse(skb, skb->len, data, data_end, ETH_HLEN, true, &k);
	if (!l4_len || fbr_sum_pending(skb, ETH_HLEN + sizeof(fbr_ip), k.proto) > FBR_SUM_OWN)
		return 0;
	f = fbr_flow_hit(&k);
	if (!f)
		return p->flags & FBR_DEV_PLAIN ? fbr_way_out(skb, p, &k, l4_len) : 0;
	now = fbr_now();
	if (f->kind != FBR_OUT || f->iif != p->ifindex || !fbr_lease_valid(f, c, now) ||
	    !fbr_fits(skb, ETH_HLEN, k.proto, l4_len, f->mtu))
		return 0;
	oif = f->oif;
	fbr_count_rx(skb, p, FBR_FAST);
	fbr_flow_seen(f, now, cfg_hz);
	/* Point of no return. */
	return fbr_rewrite_fast(skb, f, &k, true) ? -1 : oif;
}

/* Translates p's packet to an address of the host, as fbr_hairpin() does. */
static __always_inline enum fbr_reason fbr_hairpin6(struct __sk_buff *skb, const struct fbr_dev *p,
						    const struct fbr_seen *s)
{
	if (fbr_link_local(s->saddr) || fbr_link_local(s->daddr) || fbr_multicast(s->daddr))
		return FBR_NOT_OURS;
	return p->flags & FBR_DEV_INTERNAL ? FBR_NOT_OURS : fbr_hairpin(skb, p);
}

static __always_inline int fbr_from_port(struct __sk_buff *skb)
{
	struct fbr_dev *p = fbr_dev_get(skb->ifindex), *t;
	struct fbr_conf *c = fbr_conf_get();
	FBR_SCRATCH_ZERO(fbr_seen, seen);
	struct ethhdr eth;
	int done, oif;
	__u32 why;
	bool slow;

	if (!p || !c || !seen)
		return TCX_DROP; /* being detached */
	fbr_pull_headers(skb, ETH_HLEN);
	why = fbr_check_ip6(skb, p, &eth, seen);
	if (why == FBR_NOT_OURS)
		return TCX_NEXT; /* the IPv4 program's */
	if (why)
		goto drop;
	if (seen->type == ICMPV6_NS && seen->proto == IPPROTO_ICMPV6) {
		slow = fbr_choose_path(skb, p);
		done = fbr_nd_answer(skb, p, seen, c->lease && !slow);
		if (done > 0)
			return fbr_send_beside(skb, p, p);
		why = FBR_SPOOF_IP;
		if (done)
			goto drop;
	}
	if (!fbr_mac_equal(eth.h_dest, p->gw_mac)) {
		t = fbr_pair_hit(p, c, eth.h_dest);
		if (t && fbr_beside6(p, t, seen))
			return fbr_send_beside(skb, p, t);
		t = eth.h_dest[0] & 1 ? NULL : fbr_mac_port(eth.h_dest, p->bridge);
		if (t && t != p && fbr_beside6(p, t, seen)) {
			if (!fbr_beside_hit(skb, p, t))
				goto kernel;
			return fbr_send_beside(skb, p, t);
		}
	} else {
		oif = fbr_fast_out(skb, p, c);
		if (oif < 0)
			return TCX_DROP;
		if (oif) {
			skb->mark = cfg_mark;
			return bpf_redirect(oif, 0);
		}
	}
	why = fbr_hairpin6(skb, p, seen);
	if (why == FBR_NOT_OURS)
		why = fbr_route6_allowed(skb, p, seen, eth.h_dest[0] & 1);
	if (why == FBR_ISOLATED && !(p->flags & FBR_DEV_INTERNAL) && fbr_ct_answers(skb))
		why = FBR_NONE;
	if (why)
		goto drop;
kernel:
	return fbr_port_kernel(skb, p);
drop:
	fbr_count_rx(skb, p, FBR_SLOW);
	return fbr_drop(p, why);
}

#endif
