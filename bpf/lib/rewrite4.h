/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting IPv4 packets on the kernel's path (rewrite.h). */
#ifndef FBR_REWRITE4_H
#define FBR_REWRITE4_H

#include "csum.h"
#include "packet.h"
#include "parse.h"
#include "sum.h"

/* Rewrites the source (out) or destination of the IPv4 packet whose header is at l3 to
 * addr:port. For ICMP, port is the echo id. All are in network byte order. Packet pointers
 * are invalid afterwards. Returns 0, or an error: then the packet may be half written, and
 * the caller must drop it (point of no return).
 */
__fbr_global int fbr_rewrite(struct __sk_buff *skb, __u32 l3, bool out, __be32 addr, __be16 port)
{
	const __u32 a_off = fbr_addr_at(l3, out);
	__u32 l4, p_off, c_off, mangled = 0, store = 0;
	enum fbr_pending pending;
	__be32 old_addr;
	__be16 old_port;
	fbr_ip ip;
	__sum16 csum;

	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)))
		return -1;
	l4 = l3 + ip.ihl * 4;
	pending = fbr_sum_pending(skb, l4, ip.protocol);
	if (pending == FBR_SUM_BAD)
		return -1;
	old_addr = out ? ip.saddr : ip.daddr;
	switch (ip.protocol) {
	case IPPROTO_TCP:
		p_off = l4 + (out ? 0 : 2);
		c_off = l4 + FBR_TCP_CSUM;
		break;
	case IPPROTO_UDP:
		p_off = l4 + (out ? 0 : 2);
		c_off = l4 + FBR_UDP_CSUM;
		mangled = BPF_F_MARK_MANGLED_0;
		if (bpf_skb_load_bytes(skb, c_off, &csum, 2))
			return -1;
		if (!csum) /* no checksum to make up for the port in skb->csum */
			store = BPF_F_RECOMPUTE_CSUM;
		else if (pending == FBR_SUM_INNER && !skb->gso_size)
			return -1; /* complete, which the helpers would not believe */
		break;
	case IPPROTO_ICMP:
		p_off = l4 + FBR_ICMP_ID;
		c_off = l4 + FBR_ICMP_CSUM;
		break;
	default:
		return -1;
	}
	if (bpf_skb_load_bytes(skb, p_off, &old_port, 2))
		return -1;
	if (ip.protocol != IPPROTO_ICMP &&
	    bpf_l4_csum_replace(skb, c_off, old_addr, addr, BPF_F_PSEUDO_HDR | mangled | 4))
		return -1;
	if (old_port != port && (bpf_l4_csum_replace(skb, c_off, old_port, port, mangled | 2) ||
				 bpf_skb_store_bytes(skb, p_off, &port, 2, store)))
		return -1;
	if (bpf_l3_csum_replace(skb, l3 + FBR_IP_CSUM, old_addr, addr, 4))
		return -1;
	return bpf_skb_store_bytes(skb, a_off, &addr, 4, 0);
}

/* Changes two bytes of an ICMP message whose checksum is at c. */
static __always_inline long fbr_patch2(struct __sk_buff *skb, __u32 c, __u32 off, __u16 old,
				       __u16 new)
{
	if (old == new)
		return 0;
	return bpf_l4_csum_replace(skb, c, old, new, 2)
		       ?: bpf_skb_store_bytes(skb, off, &new, 2, 0);
}

/* Rewrites the source (src) or destination of the packet quoted by the ICMP error whose
 * header is at icmp. Only eight bytes of the quoted L4 header are certain. Its checksum is
 * updated if it is there. On an error the packet must be dropped (point of no return).
 */
__fbr_global int fbr_rewrite_quote(struct __sk_buff *skb, __u32 icmp, bool src, __be32 addr,
				   __be16 port)
{
	const __u32 ip = icmp + sizeof(struct icmphdr), c = icmp + FBR_ICMP_CSUM;
	__u32 a_off = fbr_addr_at(ip, src), p_off, s_off;
	__sum16 ip_sum, l4_sum;
	__u16 d_addr, d_l4;
	struct fbr_pkt in;
	__be32 old_addr;
	__be16 old_port;

	if (fbr_parse_at(skb, ip, &in))
		return -1;
	p_off = in.l4 + (src ? 0 : 2);
	switch (in.proto) {
	case IPPROTO_TCP:
		s_off = in.l4 + FBR_TCP_CSUM;
		break;
	case IPPROTO_UDP:
		s_off = in.l4 + FBR_UDP_CSUM;
		break;
	case IPPROTO_ICMP:
		p_off = in.l4 + FBR_ICMP_ID;
		s_off = in.l4 + FBR_ICMP_CSUM;
		break;
	default:
		return -1;
	}
	if (bpf_skb_load_bytes(skb, a_off, &old_addr, 4) ||
	    bpf_skb_load_bytes(skb, p_off, &old_port, 2) ||
	    bpf_skb_load_bytes(skb, ip + FBR_IP_CSUM, &ip_sum, 2))
		return -1;
	d_addr = fbr_addr_diff(old_addr, addr);
	d_l4 = fbr_diff16(in.proto == IPPROTO_ICMP ? 0 : d_addr, old_port, port);

	if (!bpf_skb_load_bytes(skb, s_off, &l4_sum, 2) && !(in.proto == IPPROTO_UDP && !l4_sum)) {
		__sum16 sum = fbr_csum_add(l4_sum, d_l4);

		if (in.proto == IPPROTO_UDP && !sum)
			sum = 0xffff;
		if (fbr_patch2(skb, c, s_off, l4_sum, sum))
			return -1;
	}
	if (fbr_patch2(skb, c, p_off, old_port, port) ||
	    fbr_patch2(skb, c, ip + FBR_IP_CSUM, ip_sum, fbr_csum_add(ip_sum, d_addr)))
		return -1;
	if (bpf_l4_csum_replace(skb, c, old_addr, addr, 4))
		return -1;
	return bpf_skb_store_bytes(skb, a_off, &addr, 4, 0);
}

/* Rewrites the source (src) or destination address of the packet whose IP header is at l3: an
 * ICMP message whose header is at icmp, or (0) a fragment without L4 header.
 */
static __always_inline long fbr_rewrite_outer(struct __sk_buff *skb, __u32 l3, __u32 icmp, bool src,
					      __be32 old, __be32 new)
{
	if (old == new)
		return 0;
	return bpf_l3_csum_replace(skb, l3 + FBR_IP_CSUM, old, new, 4)
		       ?: bpf_skb_store_bytes(skb, fbr_addr_at(l3, src), &new, 4, 0);
}

/* Gives a fragment another id. */
static __always_inline long fbr_rewrite_id(struct __sk_buff *skb, __u32 l3, __be16 old, __be16 new)
{
	if (old == new)
		return 0;
	return bpf_l3_csum_replace(skb, l3 + FBR_IP_CSUM, old, new, 2)
		       ?: bpf_skb_store_bytes(skb, l3 + offsetof(fbr_ip, id), &new, 2, 0);
}

/* Raises the TTL of the packet at l3 by one. */
static __always_inline long fbr_raise_hop(struct __sk_buff *skb, __u32 l3)
{
	const __u32 off = l3 + offsetof(fbr_ip, ttl);
	__u16 old, new; /* TTL and protocol */

	if (bpf_skb_load_bytes(skb, off, &old, 2))
		return -1;
	new = old;
	(*(__u8 *)&new)++;
	return bpf_l3_csum_replace(skb, l3 + FBR_IP_CSUM, old, new, 2)
		       ?: bpf_skb_store_bytes(skb, off, &new, 2, 0);
}

__fbr_global bool fbr_sum_right(struct __sk_buff *skb, __u32 off, __u32 len)
{
	return fbr_sum_holds(skb, off, len, 0);
}

/* Whether the checksums of an ICMP error p and of the IPv4 header it quotes are right (RFC
 * 5508 REQ-3). The quoted packet's own L4 checksum may be wrong.
 */
__fbr_global bool fbr_icmp_sound(struct __sk_buff *skb, const struct fbr_pkt *p,
				 const struct fbr_pkt *in)
{
	__be16 total;

	if (!p || !in ||
	    bpf_skb_load_bytes(skb, p->l3 + offsetof(struct iphdr, tot_len), &total, sizeof(total)))
		return false;
	return fbr_sum_right(skb, in->l3, in->l4 - in->l3) &&
	       fbr_sum_right(skb, p->l4, bpf_ntohs(total) - (p->l4 - p->l3));
}

#endif
