/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The IPv4 header: reading it, and taking a packet one hop further (af.h). */
#ifndef FBR_IP4_H
#define FBR_IP4_H

#include "csum.h"
#include "packet.h"

static __always_inline bool fbr_ip_valid(const fbr_ip *ip)
{
	return !(ip->version != 4 || ip->ihl < 5);
}

/* The length in bytes of a header that is in memory, and whether it has options. */
#define fbr_ip_len(ip)    ((ip)->ihl * 4)
#define fbr_ip_longer(ip) ((ip)->ihl != 5)

/* Fills what the header tells of fragments. Returns whether the packet has no L4 header. */
static __always_inline bool fbr_ip_pieces(struct __sk_buff *skb, fbr_ip *ip, struct fbr_pkt *p)
{
	p->id = ip->id;
	if (ip->frag_off & bpf_htons(IP_MF))
		p->frag = FBR_FRAG_MORE;
	if (ip->frag_off & bpf_htons(IP_OFFMASK)) {
		p->frag |= FBR_FRAG_LATER;
		return true;
	}
	return false;
}

/* Whether a packet is a fragment, and not the first. */
static __always_inline bool fbr_ip_later(const fbr_ip *ip)
{
	return ip->frag_off & bpf_htons(IP_OFFMASK);
}

/* Whether the checksum of a header of 20 bytes is right. ip_rcv() drops the packet if it is
 * wrong, and a rewrite would carry the error on.
 */
static __always_inline bool fbr_ip_sum_right(const fbr_ip *ip)
{
	const __u32 *w = (const __u32 *)ip;
	__u64 sum = (__u64)w[0] + w[1] + w[2] + w[3] + w[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return ((sum & 0xffff) + (sum >> 16)) == 0xffff;
}

/* Whether a header is for the fast path: without options, not of a fragment, another hop to
 * go, its checksum right.
 */
static __always_inline bool fbr_ip_simple(const fbr_ip *ip)
{
	return *(__u8 *)ip == 0x45 && ip->ttl > 1 &&
	       !(ip->frag_off & bpf_htons(IP_MF | IP_OFFMASK)) && fbr_ip_sum_right(ip);
}

/* What tells a fragment's datagram from others besides addresses and id */
#define fbr_frag_proto(p)    ((p)->proto)

#define fbr_is_ext(proto)    false

/* A datagram of IPv4 needs no checksum. */
#define fbr_sum_missing(udp) false

/* The length of the packet according to its header. */
static __always_inline __u32 fbr_ip_total(const fbr_ip *ip)
{
	return bpf_ntohs(ip->tot_len);
}

/* Whether the header leaves the length open, as that of a super-packet of BIG TCP does. */
static __always_inline bool fbr_ip_open(const fbr_ip *ip)
{
	return !ip->tot_len;
}

/* The checksum difference of a TTL that is one lower and is the low byte of its word. */
#define FBR_TTL_DIFF 0xfffe

/* Lowers the TTL by one and updates the header's checksum in one go: the TTL is the low
 * byte of its word. d_ip is the difference of the header's other changes.
 */
static __always_inline void fbr_next_hop(fbr_ip *ip, __u32 d_ip)
{
	__u32 ttl = *(__u32 *)&ip->ttl;
	__u16 csum = ~fbr_fold((ttl >> 16 ^ 0xffff) + d_ip + FBR_TTL_DIFF);

	*(__u32 *)&ip->ttl = ((ttl - 1) & 0xffff) | (__u32)csum << 16;
}

/* Nothing is to be done for skb->csum: the header's checksum makes up for its TTL. */
#define fbr_hop_summed(skb, l3)      0

/* The sum of the pseudo header of an ICMP message of len bytes: there is none. */
#define fbr_icmp_seed(from, to, len) 0

/* Fills the empty header of an ICMP message of len bytes that the programs make. */
#define fbr_icmp_head(ip, from, to, len)                                              \
	do {                                                                          \
		(ip).version = 4;                                                     \
		(ip).ihl = 5;                                                         \
		(ip).tos = 0xc0; /* internetwork control, RFC 1812 section 4.3.2.5 */ \
		(ip).tot_len = bpf_htons(sizeof(ip) + (len));                         \
		(ip).ttl = 64;                                                        \
		(ip).protocol = IPPROTO_ICMP;                                         \
		(ip).saddr = (from);                                                  \
		(ip).daddr = (to);                                                    \
		(ip).check = ~fbr_sum(&(ip), sizeof(ip), 0);                          \
	} while (0)

#define FBR_QUOTE_MAX 68 /* IPv4 header with all options, and eight bytes */

#endif
