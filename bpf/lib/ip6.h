/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The IPv6 header and its extension headers: reading them, and taking a packet one hop
 * further (af.h).
 */
#ifndef FBR_IP6_H
#define FBR_IP6_H

#include "csum.h"
#include "packet.h"

#define FBR_EXT_MAX       6 /* extension headers followed before giving up */

#define ICMPV6_MLD_QUERY  130
#define ICMPV6_MLD_REPORT 131
#define ICMPV6_MLD_DONE   132
#define ICMPV6_RS         133
#define ICMPV6_RA         134
#define ICMPV6_NS         135
#define ICMPV6_NA         136
#define ICMPV6_MLD2       143 /* report of version 2 */
#define ICMPV6_MRD        151 /* multicast router advertisement, RFC 4286 */
#define ICMPV6_MRD_END    153 /* and its end */

/* Where the chain of a packet's extension headers ends. */
struct fbr_chain {
	__u32 off;      /* in the packet, of what follows the chain */
	__be32 frag_id; /* of the fragment header */
	__u8 proto;     /* of what follows; an extension header: the chain could not be followed */
	__u8 frag;      /* enum fbr_frag_bits */
	__u8 pieces; /* there is a fragment header, if only that of an atomic fragment (RFC 6946) */
	__u8 detour; /* a routing header names further destinations */
};

static __always_inline bool fbr_is_ext(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_FRAGMENT ||
	       proto == IPPROTO_DSTOPTS;
}

/* Follows the extension headers of the packet whose IPv6 header, of which first is the next
 * header, ends at off. Returns 0, or -1 if the packet ends before its chain does.
 */
__fbr_global int fbr_ext_walk(struct __sk_buff *skb, __u32 off, __u8 first, struct fbr_chain *c)
{
	__u8 ext[8], i;

	if (!c)
		return -1;
	*c = (struct fbr_chain){ .off = off, .proto = first };
	for (i = 0; i < FBR_EXT_MAX && fbr_is_ext(c->proto); i++) {
		if (bpf_skb_load_bytes(skb, c->off, ext, sizeof(ext)))
			return -1;
		if (c->proto == IPPROTO_FRAGMENT) {
			c->pieces = 1;
			__builtin_memcpy(&c->frag_id, &ext[4], sizeof(c->frag_id));
			c->off += sizeof(ext);
			c->proto = ext[0];
			c->frag = ext[3] & 1 ? FBR_FRAG_MORE : 0;
			if (ext[2] || ext[3] & 0xf8) {
				c->frag |= FBR_FRAG_LATER;
				return 0;
			}
			continue;
		}
		if (c->proto == IPPROTO_ROUTING && ext[3])
			c->detour = 1;
		c->off += (ext[1] + 1) * 8;
		c->proto = ext[0];
	}
	return 0;
}

/* What tells a fragment's datagram from others besides addresses and id: nothing (RFC 8200
 * section 4.5). Behind the fragment header may be another extension header, which only the
 * first fragment shows.
 */
#define fbr_frag_proto(p) 0

static __always_inline bool fbr_ip_valid(const fbr_ip *ip)
{
	return (ip->version & bpf_htonl(0xf0000000)) == bpf_htonl(0x60000000);
}

/* The length in bytes of a header without extension headers: of another one, protocol says so. */
#define fbr_ip_len(ip)    sizeof(*(ip))
#define fbr_ip_longer(ip) false

/* Follows the extension headers: completes p, and leaves in ip the protocol of what follows
 * them. Returns whether the packet has no L4 header.
 */
static __always_inline bool fbr_ip_pieces(struct __sk_buff *skb, fbr_ip *ip, struct fbr_pkt *p)
{
	struct fbr_chain c = {};

	if (!fbr_is_ext(ip->protocol))
		return false;
	if (fbr_ext_walk(skb, p->l4, ip->protocol, &c))
		return true;
	ip->protocol = c.proto;
	p->proto = c.proto;
	p->l4 = c.off;
	p->id = c.frag_id;
	p->frag = c.frag;
	/* Its checksum is over the last destination, which it has not in its header. */
	return (c.frag & FBR_FRAG_LATER) || c.detour;
}

/* A fragment header is an extension header: protocol says so. */
static __always_inline bool fbr_ip_later(const fbr_ip *ip)
{
	return false;
}

/* Whether a datagram lacks the checksum that IPv6 asks for (RFC 8200 section 8.1): that is for
 * the kernel to judge.
 */
#define fbr_sum_missing(udp) (!(udp)->check)

/* Whether a header is for the fast path: another hop to go. What follows it says the rest. */
static __always_inline bool fbr_ip_simple(const fbr_ip *ip)
{
	return (*(__u8 *)ip & 0xf0) == 0x60 && ip->ttl > 1;
}

static __always_inline __u32 fbr_ip_total(const fbr_ip *ip)
{
	return bpf_ntohs(ip->payload_len) + sizeof(*ip);
}

static __always_inline bool fbr_ip_open(const fbr_ip *ip)
{
	return !ip->payload_len;
}

/* Whether an ICMPv6 type is neighbour discovery: 133 to 137, and 148 and 149 of SEND. */
static __always_inline bool fbr_nd_type(__u8 type)
{
	return (type >= ICMPV6_RS && type <= ICMPV6_REDIRECT) || type == 148 || type == 149;
}

/* Whether an ICMPv6 type is multicast listener or router discovery. */
static __always_inline bool fbr_group_type(__u8 type)
{
	return (type >= ICMPV6_MLD_QUERY && type <= ICMPV6_MLD_DONE) || type == ICMPV6_MLD2 ||
	       (type >= ICMPV6_MRD && type <= ICMPV6_MRD_END);
}

/* Whether a packet from outside keeps the link going, which is the host's own affair:
 * neighbour discovery and its kin, whatever its addresses are, and what is link-local.
 */
static __always_inline bool fbr_link_affair(const struct fbr_pkt *p)
{
	if (p->proto == IPPROTO_ICMPV6 && !p->frag &&
	    (fbr_nd_type(p->icmp_type) || fbr_group_type(p->icmp_type)))
		return true;
	return fbr_link_local(p->saddr);
}

/* Lowers the hop limit. */
static __always_inline void fbr_next_hop(fbr_ip *ip, __u32 unused)
{
	ip->ttl--;
}

/* Lowers the hop limit of the packet at l3 if its device has summed it (CHECKSUM_COMPLETE). No
 * checksum in the header makes up for it, so a helper has to. Returns 1, and packet pointers
 * are invalid; 0 if the device has not; or an error.
 */
static __always_inline int fbr_hop_summed(struct __sk_buff *skb, __u32 l3)
{
	const __u32 at = l3 + offsetof(fbr_ip, protocol); /* even: the helper sums words */
	__u8 two[2];                                      /* next header, hop limit */

	if (fbr_ip_summed(skb) != CHECKSUM_COMPLETE)
		return 0;
	if (bpf_skb_load_bytes(skb, at, two, sizeof(two)))
		return -1;
	two[1]--;
	return bpf_skb_store_bytes(skb, at, two, sizeof(two), BPF_F_RECOMPUTE_CSUM) ? -1 : 1;
}

/* The sum of the pseudo header of an ICMPv6 message of len bytes (RFC 4443 section 2.3). */
static __always_inline __u16 fbr_icmp_seed(fbr_addr saddr, fbr_addr daddr, __u32 len)
{
	__u16 sum = fbr_sum(&saddr, sizeof(saddr), fbr_sum(&daddr, sizeof(daddr), 0));

	return fbr_fold((__u32)sum + bpf_htons(len) + bpf_htons(IPPROTO_ICMPV6));
}

#define fbr_icmp_head(ip, from, to, len)           \
	do {                                       \
		(ip).version = bpf_htonl(6 << 28); \
		(ip).payload_len = bpf_htons(len); \
		(ip).protocol = IPPROTO_ICMPV6;    \
		(ip).ttl = 64;                     \
		(ip).saddr = (from);               \
		(ip).daddr = (to);                 \
	} while (0)

#define FBR_QUOTE_MAX 104 /* IPv6 header, 56 bytes of extension headers, and eight */

#endif
