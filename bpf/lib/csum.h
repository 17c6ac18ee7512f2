/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Checksum arithmetic, and checksums that are still to be filled in. */
#ifndef FBR_CSUM_H
#define FBR_CSUM_H

#include "../include/bpf/bpf_core_read.h"
#include "af.h"
#include "kctx.h"

#define FBR_IP_CSUM   10 /* offsets in the headers */
#define FBR_TCP_CSUM  16
#define FBR_UDP_CSUM  6
#define FBR_ICMP_CSUM 2
#define FBR_SCTP_CSUM 8
#define FBR_L4_MIN    8 /* bytes: the shortest L4 header in front of a tunnelled packet */

/* The one's complement difference between the sums over old and over new, added to base. */
static __always_inline __u16 fbr_diff16(__u16 base, __be16 old, __be16 new)
{
	return fbr_fold((__u32)base + (__u16)~old + new);
}

/* A checksum field plus a difference (RFC 1624, equation 3). */
static __always_inline __sum16 fbr_csum_add(__sum16 csum, __u16 diff)
{
	return ~fbr_fold((__u32)(__u16)~csum + diff);
}

/* The one's complement sum of size bytes (a multiple of 4, known to the compiler), added to sum. */
static __always_inline __u16 fbr_sum(const void *data, __u32 size, __u16 sum)
{
	__wsum s = bpf_csum_diff(NULL, 0, (__be32 *)data, size, sum);

	return fbr_fold(s);
}

static __always_inline __u32 fbr_ip_summed(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);

	return BPF_CORE_READ_BITFIELD(k, ip_summed);
}

/* Where the device or the stack still has to fill in a checksum (CHECKSUM_PARTIAL). The
 * sender of a packet may have asked for this itself (PACKET_VNET_HDR). The checksum is then
 * filled in after all programs and rules have seen the packet.
 */
enum fbr_pending {
	FBR_SUM_DONE,  /* nowhere */
	FBR_SUM_OWN,   /* the packet's own TCP or UDP checksum */
	FBR_SUM_INNER, /* behind the L4 header: of a tunnelled packet */
	FBR_SUM_BAD,   /* anywhere else */
};

/* The same for a packet of protocol proto whose L4 header is at l4. */
static __always_inline enum fbr_pending fbr_sum_pending(struct __sk_buff *skb, __u32 l4, __u8 proto)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	__u32 start, field;

	if (BPF_CORE_READ_BITFIELD(k, ip_summed) != CHECKSUM_PARTIAL)
		return FBR_SUM_DONE;
	start = k->csum_start - (__u32)((__u64)k->data - (__u64)k->head);
	field = k->csum_offset;
	if (start == l4 && ((proto == IPPROTO_TCP && field == FBR_TCP_CSUM) ||
			    (proto == IPPROTO_UDP && field == FBR_UDP_CSUM)))
		return FBR_SUM_OWN;
	if (proto == IPPROTO_TCP || proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6)
		return FBR_SUM_BAD;
	/* This checksum is SCTP's own, but SCTP is not translated. */
	if (proto == IPPROTO_SCTP && start == l4 && field == FBR_SCTP_CSUM)
		return FBR_SUM_INNER;
	/* start may be negative */
	return (__s32)start >= (__s32)(l4 + FBR_L4_MIN) ? FBR_SUM_INNER : FBR_SUM_BAD;
}

#endif
