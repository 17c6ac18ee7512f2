/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting addresses and ports together with their checksums, in two ways. fbr_rewrite()
 * uses the kernel's helpers and is right for every ip_summed: for the kernel's path.
 * fbr_rewrite_fast() adds precomputed differences and writes directly: for hits. The same
 * tests run against both.
 */
#ifndef FBR_REWRITE_H
#define FBR_REWRITE_H

#include "csum.h"
#include "flow.h"
#include "nat.h"
#include "parse.h"

#define FBR_ICMP_ID  4 /* offset in the ICMP header */

/* The checksum difference of a TTL that is one lower and is the low byte of its word. */
#define FBR_TTL_DIFF 0xfffe

/* Lowers the TTL by one and updates the header's checksum in one go: the TTL is the low
 * byte of its word. d_ip is the difference of the header's other changes.
 */
static __always_inline void fbr_next_hop(struct iphdr *ip, __u32 d_ip)
{
	__u32 ttl = *(__u32 *)&ip->ttl;
	__u16 csum = ~fbr_fold((ttl >> 16 ^ 0xffff) + d_ip + FBR_TTL_DIFF);

	*(__u32 *)&ip->ttl = ((ttl - 1) & 0xffff) | (__u32)csum << 16;
}

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
	struct iphdr ip;
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

/* Adjusts the L4 checksum for a rewrite by f. */
static __always_inline void fbr_l4_fix(__sum16 *csum, const struct fbr_flow *f, __u8 proto,
				       bool partial)
{
	if (partial) {
		/* The field holds the sum over the pseudo header, not complemented. */
		*csum = fbr_fold((__u32)*csum + f->d_addr);
		return;
	}
	if (proto == IPPROTO_UDP) {
		if (!*csum)
			return; /* no checksum */
		*csum = fbr_csum_add(*csum, f->d_l4);
		if (!*csum)
			*csum = 0xffff;
		return;
	}
	*csum = fbr_csum_add(*csum, f->d_l4);
}

/* Rewrites a frame of flow f, found under k, by direct writes: address and port (unless the
 * helpers have done it: helped), TTL - 1, MACs. fbr_fast_parse() has checked the frame: 20
 * bytes of IP header, the L4 header linear. On an error the packet must be dropped (point
 * of no return).
 *
 * Neighbouring fields are written in one store, since the next reader loads them together
 * (fbr_fast_key).
 */
static __always_inline int fbr_rewrite_frame(void *data, void *data_end, const struct fbr_flow *f,
					     const struct fbr_flow_key *k, bool out, bool helped,
					     bool partial)
{
	struct iphdr *ip = data + ETH_HLEN;
	__u32 d_ip = 0;

	if ((void *)(ip + 1) > data_end)
		return -1;

	if (!helped) {
		void *l4 = ip + 1;

		if (ip->protocol == IPPROTO_TCP) {
			struct tcphdr *tcp = l4;

			if ((void *)(tcp + 1) > data_end)
				return -1;
			fbr_l4_fix(&tcp->check, f, IPPROTO_TCP, partial);
			if (out)
				tcp->source = f->port;
			else
				tcp->dest = f->port;
		} else if (ip->protocol == IPPROTO_UDP) {
			struct udphdr *udp = l4;

			if ((void *)(udp + 1) > data_end)
				return -1;
			fbr_l4_fix(&udp->check, f, IPPROTO_UDP, partial);
			if (out)
				udp->source = f->port;
			else
				udp->dest = f->port;
		} else {
			struct icmphdr *icmp = l4;

			if ((void *)(icmp + 1) > data_end)
				return -1;
			icmp->checksum = fbr_csum_add(icmp->checksum, f->d_l4);
			icmp->id = f->port;
		}
		if (out)
			ip->saddr = f->addr;
		else
			ip->daddr = f->addr;
		d_ip = f->d_addr;
	}
	fbr_next_hop(ip, d_ip);
	((__u64 *)data)[0] = *(__u64 *)&f->macs[0];
	((__u32 *)data)[2] = *(__u32 *)&f->macs[8];
	/* The entry may have been deleted while we read it, and may be another flow's by
	 * now. A new entry has no lease.
	 */
	barrier();
	return fbr_flow_is(f, k) && f->granted ? 0 : -1;
}

/* The same for a packet in tc, whatever its ip_summed. */
static __always_inline int fbr_rewrite_fast(struct __sk_buff *skb, const struct fbr_flow *f,
					    const struct fbr_flow_key *k, bool out)
{
	__u32 summed = fbr_ip_summed(skb);
	/* skb->csum must follow: the kernel's helpers do that. */
	bool helped = summed == CHECKSUM_COMPLETE;

	if (helped && fbr_rewrite(skb, ETH_HLEN, out, f->addr, f->port))
		return -1;
	return fbr_rewrite_frame((void *)(long)skb->data, (void *)(long)skb->data_end, f, k, out,
				 helped, summed == CHECKSUM_PARTIAL);
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
	d_addr = fbr_diff32(old_addr, addr);
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

/* Rewrites the source (src) or destination address of the IPv4 packet whose header is at
 * l3. The packet has no pseudo header (ICMP), or its L4 header is not here.
 */
static __always_inline long fbr_rewrite_outer(struct __sk_buff *skb, __u32 l3, bool src, __be32 old,
					      __be32 new)
{
	if (old == new)
		return 0;
	return bpf_l3_csum_replace(skb, l3 + FBR_IP_CSUM, old, new, 4)
		       ?: bpf_skb_store_bytes(skb, fbr_addr_at(l3, src), &new, 4, 0);
}

#endif
