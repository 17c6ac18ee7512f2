/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting IPv6 packets on the kernel's path (rewrite.h).
 *
 * There is no header checksum. A new address or port and the L4 checksum that makes up for it
 * cancel in the sum over the packet (skb->csum), so direct writes are right for every
 * ip_summed. bpf_l4_csum_replace() with BPF_F_PSEUDO_HDR is not: it takes addresses for bytes
 * that skb->csum does not cover (Linux 6.16, BPF_F_IPV6).
 */
#ifndef FBR_REWRITE6_H
#define FBR_REWRITE6_H

#include "csum.h"
#include "packet.h"
#include "parse.h"
#include "scratch.h"
#include "sum.h"

/* The offset of the L4 checksum of a packet of protocol proto whose L4 header is at l4; 0 if
 * the protocol is not translated.
 */
static __always_inline __u32 fbr_sum_at(__u32 l4, __u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return l4 + FBR_TCP_CSUM;
	case IPPROTO_UDP:
		return l4 + FBR_UDP_CSUM;
	case IPPROTO_ICMPV6:
		return l4 + FBR_ICMP_CSUM;
	}
	return 0;
}

/* The offset of the source (src) or destination port, or of an echo's id. */
static __always_inline __u32 fbr_port_at(__u32 l4, __u8 proto, bool src)
{
	return l4 + (proto == IPPROTO_ICMPV6 ? FBR_ICMP_ID : src ? 0 : 2);
}

/* A checksum plus a difference. UDP never gets the checksum 0 (RFC 8200 section 8.1). */
static __always_inline __sum16 fbr_sum_new(__sum16 sum, __u16 diff, __u8 proto)
{
	sum = fbr_csum_add(sum, diff);
	return proto == IPPROTO_UDP && !sum ? 0xffff : sum;
}

/* As in rewrite4.h. */
__fbr_global int fbr_rewrite(struct __sk_buff *skb, __u32 l3, bool out, fbr_addr_arg addr,
			     __be16 port)
{
	enum fbr_pending pending;
	__u32 c_off, p_off;
	__be16 old_port;
	__sum16 sum;
	__u16 diff;
	FBR_SCRATCH(fbr_pkt, rewritten);

	if (!addr || !rewritten || fbr_parse_at(skb, l3, rewritten) ||
	    rewritten->kind == FBR_L4_NONE)
		return -1;
	c_off = fbr_sum_at(rewritten->l4, rewritten->proto);
	pending = fbr_sum_pending(skb, rewritten->l4, rewritten->proto);
	p_off = fbr_port_at(rewritten->l4, rewritten->proto, out);
	if (!c_off || pending == FBR_SUM_BAD || bpf_skb_load_bytes(skb, c_off, &sum, sizeof(sum)) ||
	    bpf_skb_load_bytes(skb, p_off, &old_port, sizeof(old_port)))
		return -1;
	diff = fbr_addr_diff(out ? rewritten->saddr : rewritten->daddr, *addr);
	if (rewritten->proto == IPPROTO_UDP && !sum)
		; /* it has none, and neither has any segment of a tunnel */
	/* The sum over the pseudo header, not complemented; also of each segment of a tunnel. */
	else if (pending == FBR_SUM_OWN || (pending == FBR_SUM_INNER && skb->gso_size))
		sum = fbr_fold((__u32)sum + diff);
	else
		sum = fbr_sum_new(sum, fbr_diff16(diff, old_port, port), rewritten->proto);
	return bpf_skb_store_bytes(skb, c_off, &sum, sizeof(sum), 0)
		       ?: bpf_skb_store_bytes(skb, p_off, &port, sizeof(port), 0)
			       ?: bpf_skb_store_bytes(skb, fbr_addr_at(l3, out), addr,
						      sizeof(*addr), 0);
}

/* As in rewrite4.h. */
__fbr_global int fbr_rewrite_quote(struct __sk_buff *skb, __u32 icmp, bool src, fbr_addr_arg addr,
				   __be16 port)
{
	const __u32 ip = icmp + sizeof(struct icmphdr), c_off = icmp + FBR_ICMP_CSUM;
	__sum16 sum, quoted, fixed;
	__u32 p_off, q_off;
	__be16 old_port;
	__u16 diff, more;
	FBR_SCRATCH(fbr_pkt, rewritten);

	if (!addr || !rewritten || fbr_parse_at(skb, ip, rewritten))
		return -1;
	p_off = fbr_port_at(rewritten->l4, rewritten->proto, src);
	q_off = fbr_sum_at(rewritten->l4, rewritten->proto);
	if (!q_off || bpf_skb_load_bytes(skb, c_off, &sum, sizeof(sum)) ||
	    bpf_skb_load_bytes(skb, p_off, &old_port, sizeof(old_port)))
		return -1;
	diff = fbr_diff16(fbr_addr_diff(src ? rewritten->saddr : rewritten->daddr, *addr), old_port,
			  port);
	more = diff;
	/* The quote's own checksum may be cut off. It is among what the error's covers. */
	if (!bpf_skb_load_bytes(skb, q_off, &quoted, sizeof(quoted)) &&
	    !(rewritten->proto == IPPROTO_UDP && !quoted)) {
		fixed = fbr_sum_new(quoted, diff, rewritten->proto);
		more = fbr_diff16(more, quoted, fixed);
		if (bpf_skb_store_bytes(skb, q_off, &fixed, sizeof(fixed), 0))
			return -1;
	}
	sum = fbr_csum_add(sum, more);
	return bpf_skb_store_bytes(skb, p_off, &port, sizeof(port), 0)
		       ?: bpf_skb_store_bytes(skb, fbr_addr_at(ip, src), addr, sizeof(*addr), 0)
			       ?: bpf_skb_store_bytes(skb, c_off, &sum, sizeof(sum), 0);
}

/* As in rewrite4.h. The checksum of an ICMPv6 message covers its addresses. */
static __always_inline long fbr_rewrite_outer(struct __sk_buff *skb, __u32 l3, __u32 icmp, bool src,
					      fbr_addr old, fbr_addr new)
{
	const __u64 plain = icmp ? 0 : BPF_F_RECOMPUTE_CSUM;
	__sum16 sum;

	if (fbr_addr_eq(old, new))
		return 0;
	if (icmp) {
		if (bpf_skb_load_bytes(skb, icmp + FBR_ICMP_CSUM, &sum, sizeof(sum)))
			return -1;
		sum = fbr_csum_add(sum, fbr_addr_diff(old, new));
		if (bpf_skb_store_bytes(skb, icmp + FBR_ICMP_CSUM, &sum, sizeof(sum), 0))
			return -1;
	}
	return bpf_skb_store_bytes(skb, fbr_addr_at(l3, src), &new, sizeof(new), plain);
}

/* Ids stay (fbr_frag_new_id). */
#define fbr_rewrite_id(skb, l3, old, new) 0

/* Whether the checksum of an ICMPv6 error p is right. */
__fbr_global bool fbr_icmp_sound(struct __sk_buff *skb, const struct fbr_pkt *p,
				 const struct fbr_pkt *in)
{
	__be16 payload;
	__u32 len;

	if (!p || !in ||
	    bpf_skb_load_bytes(skb, p->l3 + offsetof(fbr_ip, payload_len), &payload,
			       sizeof(payload)))
		return false;
	len = bpf_ntohs(payload) + sizeof(fbr_ip) - (p->l4 - p->l3);
	return fbr_sum_holds(skb, p->l4, len, fbr_icmp_seed(p->saddr, p->daddr, len));
}

/* Raises the hop limit of the packet at l3 by one. Two bytes at an even offset are what the
 * kernel can add to the sum of a device (CHECKSUM_COMPLETE).
 */
static __always_inline long fbr_raise_hop(struct __sk_buff *skb, __u32 l3)
{
	const __u32 off = l3 + offsetof(fbr_ip, protocol);
	__u8 two[2]; /* next header, hop limit */

	if (bpf_skb_load_bytes(skb, off, two, sizeof(two)))
		return -1;
	two[1]++;
	return bpf_skb_store_bytes(skb, off, two, sizeof(two), BPF_F_RECOMPUTE_CSUM);
}

#endif
