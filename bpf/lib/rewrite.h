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
#include FBR_AF_REWRITE

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
 * helpers have done it: helped), TTL - 1 (unless lowered), MACs. fbr_fast_parse() has checked
 * the frame: 20 bytes of IP header, the L4 header linear. On an error the packet must be
 * dropped (point of no return).
 *
 * Neighbouring fields are written in one store, since the next reader loads them together
 * (fbr_fast_key).
 */
static __always_inline int fbr_rewrite_frame(void *data, void *data_end, const struct fbr_flow *f,
					     const struct fbr_flow_key *k, bool out, bool helped,
					     bool lowered, bool partial)
{
	fbr_ip *ip = data + ETH_HLEN;
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
			fbr_addr_set(&ip->saddr, &f->addr);
		else
			fbr_addr_set(&ip->daddr, &f->addr);
		d_ip = f->d_addr;
	}
	if (!lowered)
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
	/* skb->csum must follow: the kernel's helpers do that. For IPv6 only the hop limit
	 * changes it.
	 */
	bool helped = FBR_AF == 4 && summed == CHECKSUM_COMPLETE;
	int lowered = fbr_hop_summed(skb, ETH_HLEN);

	if (lowered < 0)
		return -1;
	if (helped && fbr_rewrite(skb, ETH_HLEN, out, FBR_ARG(f->addr), f->port))
		return -1;
	return fbr_rewrite_frame((void *)(long)skb->data, (void *)(long)skb->data_end, f, k, out,
				 helped, lowered, summed == CHECKSUM_PARTIAL);
}

#endif
